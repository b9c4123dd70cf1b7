"""The fan-out sampler: what it may draw, what it must, and how evenly."""

import numpy as np
import torch

from recsys.item_graph import Relation
from recsys.models.graph.sampler import Sampler

DEGREES = (0, 1, 3, 10, 4)


def relation() -> Relation:
    """Row r has nodes 100 r, 100 r + 1, .. of falling weight."""
    source_E = np.repeat(np.arange(5), DEGREES)
    place_E = np.concatenate([np.arange(degree) for degree in DEGREES])
    return Relation.of_edges("item", 500, 5, source_E, 100 * source_E + place_E, 1 / (1 + place_E))


def test_evaluation_takes_the_strongest_in_order():
    sampler = Sampler(relation(), 3).eval()
    nodes_BF, weights_BF = sampler(torch.tensor([3, 0, 1, 2, 3]))
    assert nodes_BF.tolist() == [
        [300, 301, 302],
        [-1, -1, -1],
        [100, -1, -1],
        [200, 201, 202],
        [300, 301, 302],
    ]
    strongest_IN = relation().strongest(3)
    np.testing.assert_array_equal(sampler(torch.arange(5))[0], strongest_IN[0])
    np.testing.assert_array_equal(sampler(torch.arange(5))[1], strongest_IN[1])
    assert weights_BF[1].tolist() == [0, 0, 0]


def test_training_draws_from_long_rows_alone_and_evenly():
    sampler = Sampler(relation(), 4).train()
    torch.manual_seed(0)
    rows_B = torch.arange(5).repeat(3000)
    nodes_BF, weights_BF = sampler(rows_B)
    short_B = rows_B != 3  # the only row of more than four
    np.testing.assert_array_equal(nodes_BF[short_B][:4], relation().strongest(4)[0][[0, 1, 2, 4]])
    assert (nodes_BF[short_B].view(3000, 4, 4) == nodes_BF[short_B][:4]).all()
    drawn = nodes_BF[rows_B == 3]
    assert (drawn.diff(dim=1) >= 0).all()  # in order of weight, so that a place in the row is a rank
    np.testing.assert_allclose(weights_BF[rows_B == 3], 1 / (1 + drawn.numpy() - 300), rtol=1e-6)
    shares = np.bincount(drawn.flatten().numpy() - 300) / drawn.numel()
    assert len(shares) == 10 and np.abs(shares - 0.1).max() < 0.01  # five standard errors of 12,000 draws
    again = sampler(rows_B)[0]
    assert not torch.equal(again, nodes_BF)


def test_a_relation_without_edges_gives_nothing():
    none = Relation.of_edges("item", 3, 3, *(np.zeros(0, np.int64),) * 2, np.zeros(0))
    for sampler in (Sampler(none, 2).train(), Sampler(none, 2).eval()):
        nodes_BF, weights_BF = sampler(torch.arange(3))
        assert (nodes_BF == -1).all() and not weights_BF.any()

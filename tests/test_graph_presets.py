"""Each graph preset against dense matrices on a toy graph, with the same weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from dense_graph import COLD, ITEMS, PAIRS, REFERENCES, USERS, K, context, dense_world, fresh

from recsys.models.base import Model
from recsys.models.graph.propagation import UserItems
from recsys.models.sparse import Pattern, SparseMap
from recsys.registry import MODELS, load_class
from recsys.schema import Queries
from recsys.train import fit
from recsys.train_config import TrainConfig

SETTINGS = {
    "vbpr": {},
    "mmgcn": {"layers": 2},
    "lattice": {"raw_share": 0.6},
    "freedom": {"table_weights": (0.9, 0.1), "content_weight": 0.3},
    "bm3": {"layers": 2},
    "mgcn": {"contrast_weight": 0.3, "modality_dropout": 0.3},
    "smore": {"contrast_weight": 0.3},
    "lgmrec": {"contrast_weight": 0.3, "hyper_layers": 2, "hyperedges": 3},
    "pgl": {"contrast_weight": 0.3},
}


def preset(name: str, **more):
    settings = SETTINGS[name] | more
    if name == "vbpr":
        made = load_class(name, MODELS, Model)
        made = made(made.Config(tables=("text", "image"), widths=(6,)))
        torch.manual_seed(1)
        made.setup(context())
        made.module.eval()
        return made
    return fresh(load_class(name, MODELS, Model), **settings)


@pytest.mark.parametrize("name", REFERENCES)
def test_vectors_and_loss_are_those_of_the_equations(name):
    model = preset(name)
    module, world = model.module, dense_world()
    user_P, item_P = torch.tensor(PAIRS).T
    torch.manual_seed(5)
    drawn = module.objective.columns(item_P)
    triples = [
        (user, item, int(drawn.rows_N[column]))
        for (user, item), column in zip(PAIRS, drawn.drawn[:, 0].tolist(), strict=True)
    ]
    with torch.no_grad():
        wanted_users, wanted_items, wanted_loss = REFERENCES[name](module, world, model.config, triples)
        users, items = module.vectors()
        torch.manual_seed(5)
        loss, _ = module({"user_P": user_P, "item_P": item_P})
    torch.testing.assert_close(users, wanted_users, atol=1e-5, rtol=0)
    torch.testing.assert_close(items, wanted_items, atol=1e-5, rtol=0)
    torch.testing.assert_close(loss, wanted_loss, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", REFERENCES)
def test_every_weight_learns(name):
    """In training, with dropout, each parameter has a gradient that is finite and not all zero."""
    model = preset(name)
    module = model.module.train()
    torch.manual_seed(0)
    user_P, item_P = torch.tensor(PAIRS).T
    loss, parts = module({"user_P": user_P, "item_P": item_P})
    loss.backward()
    assert all(np.isfinite(value) for value in parts.values())
    learnt = [(where, weight) for where, weight in module.named_parameters() if weight.requires_grad]
    for where, weight in learnt:
        assert weight.grad is not None and torch.isfinite(weight.grad).all(), where
        assert weight.grad.any(), where


@pytest.mark.parametrize("name", ["lightgcn", *REFERENCES])
def test_half_precision_trains(name):
    """Sparse products and transforms have none: they stay in float32, whatever comes in."""
    made = load_class(name, MODELS, Model)
    own = {} if name == "lightgcn" else {"tables": ("text", "image"), "modality_dropout": 0.3}
    model = made(made.Config(widths=(6,), **own))
    progress = fit(model, context(), TrainConfig(epochs=1, precision="bf16"))
    assert np.isfinite(progress.history[0]["loss"]) and np.isfinite(model.item_vectors()).all()


def test_a_map_of_any_shape_and_its_gradient():
    rng = torch.Generator().manual_seed(0)
    dense = torch.randn(5, 7, generator=rng, dtype=torch.float64).relu()
    places = dense.nonzero().T.flip(1)
    sparse = SparseMap(places, dense[tuple(places)], (5, 7))
    x = torch.randn(7, 3, generator=rng, dtype=torch.float64).requires_grad_()
    torch.testing.assert_close(sparse(x), dense @ x)
    assert torch.autograd.gradcheck(sparse, x)


def test_learnt_values_at_fixed_places_and_their_gradients():
    rng = torch.Generator().manual_seed(0)
    places = torch.randperm(36, generator=rng)[:14]
    places = torch.stack([places // 6, places % 6])
    pattern = Pattern(*places, 6)
    values, x = (torch.randn(*shape, generator=rng, dtype=torch.float64) for shape in ((14,), (6, 3)))
    dense = torch.zeros(6, 6, dtype=torch.float64)
    dense[tuple(places)] = values
    torch.testing.assert_close(pattern.product(values, x), dense @ x)
    torch.testing.assert_close(pattern.dots(x), (x @ x.T)[tuple(places)])
    assert torch.autograd.gradcheck(pattern.product, (values.requires_grad_(), x.requires_grad_()))
    assert torch.autograd.gradcheck(pattern.dots, x)


def test_a_sample_of_edges_spares_the_busy_ones():
    """As many as asked for, drawn by 1 / sqrt(degrees); renormalised; scoring goes over all."""
    log = context().train
    graph, kept = UserItems(log), np.zeros((USERS, ITEMS))
    full = graph.graph_NN.to_dense()
    for seed in range(400):
        graph.sample(0.3, np.random.default_rng(seed))
        sampled = graph.train().current_NN.to_dense()
        there = sampled[:USERS, USERS:] > 0
        assert there.sum() == round(0.3 * len(PAIRS))
        torch.testing.assert_close(sampled, sampled.T)
        degrees = there.sum(1).clamp_min(1)[:, None] * there.sum(0).clamp_min(1)
        torch.testing.assert_close(sampled[:USERS, USERS:], there / degrees.sqrt())
        kept += there.numpy()
    torch.testing.assert_close(graph.eval().current_NN.to_dense(), full)
    busy, quiet = kept[3, 6], kept[5, 3]  # degrees 3 x 2 and 1 x 2: the odds are about as 1 to 1.7
    assert quiet > 1.3 * busy


def test_an_epoch_begins_the_same_however_often():
    model = preset("freedom", edge_share=0.5)
    model.seed = 0
    seen = []
    for epoch in (3, 3, 4):
        next(model.batches(epoch))
        seen.append(model.module.graph.sampled_NN.to_dense())
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])


def edges_of(module) -> set[tuple[int, int]]:
    edges = module.learnt_edges("text")
    return set(zip(edges.rows_N.tolist(), edges.columns_N.tolist(), strict=True))


def test_the_learnt_graph_is_found_anew_each_epoch_and_stays_in_a_checkpoint():
    model = preset("lattice")
    module, rng = model.module, np.random.default_rng(0)
    with torch.no_grad():
        before = module.vectors()[1]
        module.content.maps["text"].weight.copy_(-module.content.maps["text"].weight.flip(0).flip(1) * 2)
        module.begin(0, rng)  # the same epoch, as after an interruption: its edges stay
        same = edges_of(module)
        state = {key: value.clone() for key, value in module.state_dict().items()}
        module.begin(1, rng)
        assert edges_of(module) != same
        module.load_state_dict(state)
        assert edges_of(module) == same
    assert torch.isfinite(before[:COLD]).all()


class Stopped(Exception):
    pass


@pytest.mark.parametrize("name", ["lattice", "freedom", "lgmrec"])
def test_a_resumed_run_equals_an_uninterrupted_one(name, tmp_path):
    """Broken off within an epoch: its sample of edges, its learnt graph and its noise are the same again."""
    made = load_class(name, MODELS, Model)
    settings = made.Config(
        tables=("text", "image"), widths=(6,), neighbours=K, batch_size=4, modality_dropout=0.3
    )
    config = TrainConfig(epochs=3, lr=0.05, checkpoint_steps=1)

    class Breaks(made):
        def batches(self, epoch: int, rank: int = 0, world: int = 1):
            for step, batch in enumerate(super().batches(epoch, rank, world)):
                if (epoch, step) == (1, 2):
                    raise Stopped
                yield batch

    def run(kind: type[Model], folder: str) -> dict[str, np.ndarray]:
        model = kind(settings)
        ctx = replace(context(), folder=tmp_path / folder, validate=lambda m: float(m.score(asked).std()))
        fit(model, ctx, config)
        return model.state()

    asked = Queries.of([[1], [2, 3]], users=[0, -1])
    whole = run(made, "whole")
    with pytest.raises(Stopped):
        run(Breaks, "broken")
    resumed = run(made, "broken")
    for key, value in whole.items():
        np.testing.assert_array_equal(resumed[key], value, key)

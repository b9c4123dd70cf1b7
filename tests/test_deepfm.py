"""DeepFM against its equations, field by field, and its fields against plain lookups."""

import itertools

import numpy as np
import torch
from contracts.worlds import world

from recsys.fields import Categorical, Fields, MultiValued, Numeric
from recsys.models.baselines.deepfm import DeepFM, DeepFMConfig
from recsys.models.field_vectors import FieldVectors
from recsys.schema import Queries, Ragged
from recsys.train import fit
from recsys.train_config import TrainConfig


def test_scores_are_those_of_the_equations():
    """Linear terms, products of all pairs of fields, and the network over all of them side by side."""
    model = DeepFM(DeepFMConfig(tables=("about", "text"), width=4, hidden=(6, 5)))
    fit(model, world("hidden").context(), TrainConfig(epochs=2, lr=1e-2))
    module = model.module.eval()
    scores = model.score(Queries.of([[]] * 3, users=[0, 7, -1]), np.array([1, 20, -1]))
    assert np.isneginf(scores[:, 2]).all()
    with torch.no_grad():
        for q, user in enumerate((0, 7, module.sides["user"].rows)):
            for c, item in enumerate((1, 20)):
                fields = torch.cat(
                    [
                        module.sides["user"](torch.tensor([user]))[0],
                        module.sides["item"](torch.tensor([item]))[0],
                    ]
                )
                vectors, linear = fields[:, :-1], fields[:, -1]
                machine = sum(a @ b for a, b in itertools.combinations(vectors, 2))
                first = torch.cat([module.first["user"].weight, module.first["item"].weight], dim=1)
                hidden = first @ vectors.flatten() + module.first["item"].bias
                for layer in module.layers:
                    hidden = layer(torch.relu(hidden))
                expected = linear.sum() + machine + hidden.squeeze()
                assert abs(expected.item() - scores[q, c]) < 1e-5


def test_vectors_of_fields():
    """Rows 0 to 2 and the one that nothing is known of; row 1 lacks everything, row 2 was never trained."""
    has = np.array([True, False, True])
    fields = Fields(
        {
            "one": Categorical(np.array([2, 0, 0]), has, 3),
            "many": MultiValued(Ragged.of([[1, 3], [], [2]]), has, 4),
            "number": Numeric(np.array([0.5, np.nan, -2.0], np.float32), has),
        }
    )
    torch.manual_seed(0)
    vectors = FieldVectors([fields], np.array([True, True, False]), 5, 8)
    for field in vectors.fields:
        torch.nn.init.normal_(field.missing)
    one, many, number = vectors.fields
    with torch.no_grad():
        got = vectors(torch.tensor([2, 0, 3, 1]))
        torch.testing.assert_close(
            got[:, 0], torch.stack([torch.zeros(5), vectors.ids[0], torch.zeros(5), vectors.ids[1]])
        )
        torch.testing.assert_close(
            got[0, 1:], torch.stack([one.weight[0], many.weight[2], -2 * number.weight[0]])
        )
        mean = (many.weight[1] + many.weight[3]) / 2
        torch.testing.assert_close(got[1, 1:], torch.stack([one.weight[2], mean, 0.5 * number.weight[0]]))
        absent = torch.stack([one.missing, many.missing, number.missing])
        torch.testing.assert_close(got[2:, 1:], absent.expand(2, -1, -1))

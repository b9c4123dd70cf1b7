"""Content kNN and the profile behind it, by hand."""

import numpy as np
import pytest
from test_baselines import ROWS, context

from recsys.models.base import FitContext
from recsys.models.baselines.content_knn import ContentKNN, ContentKNNConfig
from recsys.profile import Profile
from recsys.schema import Dense, Queries


def tables(rng: np.random.Generator) -> dict[tuple[str, str], Dense]:
    """Items 0 to 4: item 1 has no image, item 3 no text, item 4 neither."""
    absent = {"text": [3, 4], "image": [1, 4]}
    made = {}
    for name, rows in absent.items():
        values = rng.normal(size=(5, 3)).astype(np.float32)
        values[rows] = np.nan
        made["item", name] = Dense(values, ~np.isin(np.arange(5), rows))
    return made


def test_fused_cosines_by_hand():
    """Mean of the cosines of the modalities that both have, over all that either has."""
    found = tables(np.random.default_rng(0))
    ctx = context(ROWS, 5)
    model = ContentKNN(ContentKNNConfig(tables=("text", "image"), half_life=None))
    model.fit(FitContext(ctx.train, found))
    unit = {}
    for name in ("text", "image"):
        table = found["item", name]
        trained = table.present_E & (np.bincount(ctx.train.item_N, minlength=5) > 0)
        rows = table.values_EF - table.values_EF[trained].mean(axis=0)
        unit[name] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    expected = np.zeros((5, 5))
    for i in range(5):
        for j in range(5):
            has_i, has_j = ({name for name in unit if found["item", name].present_E[item]} for item in (i, j))
            shared = sum(float(unit[name][i] @ unit[name][j]) for name in has_i & has_j)
            expected[i, j] = shared / max((len(has_i) * len(has_j)) ** 0.5, 1)
    np.testing.assert_allclose(model.item_vectors() @ model.item_vectors().T, expected, atol=1e-5)
    asked = Queries.of([[0], [0, 1, 1]])
    means = np.stack([expected[0], (expected[0] + 2 * expected[1]) / 3])
    np.testing.assert_allclose(model.score(asked), means + model.vectors.bias_I, atol=1e-5)


@pytest.mark.parametrize("scaling", ["mean", "root"])
@pytest.mark.parametrize("half_life", [None, 2.0])
def test_a_profile_step_by_step(scaling, half_life):
    rng = np.random.default_rng(1)
    inputs, users, offset, default = (
        rng.normal(size=shape).astype(np.float32) for shape in ((6, 4), (3, 4), (4,), (4,))
    )
    known = np.array([True, False, True])
    profile = Profile(inputs, default, users, known, offset, half_life, scaling, "sigmoid")
    rows = [[], [5], [1, 2, 1, 0], [], [3, 3]]
    got = profile.vectors(Queries.of(rows, users=[-1, 1, -1, 2, 0]))  # user 1 was never trained
    np.testing.assert_array_equal(got[3:], users[[2, 0]])  # known users need no history
    np.testing.assert_array_equal(got[0], default)
    for query in (1, 2):
        weights = [1.0 if half_life is None else 2 ** (-ago / half_life) for ago in range(len(rows[query]))][
            ::-1
        ]
        total = sum(weight * inputs[item] for weight, item in zip(weights, rows[query], strict=True))
        total = {"mean": total / sum(weights), "root": total / sum(weights) ** 0.5}[scaling]
        np.testing.assert_allclose(got[query], 1 / (1 + np.exp(-total - offset)), rtol=1e-5)
    for query, user in enumerate([-1, 1, -1, 2, 0]):
        alone = profile.vectors(Queries.of(rows[query : query + 1], users=[user]))
        np.testing.assert_allclose(alone, got[query : query + 1], rtol=1e-6)
    assert got.dtype == alone.dtype == np.float32

"""The baselines against values worked out by hand and by a plain solve."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp

from recsys.errors import ModelError
from recsys.fields import Categorical, Fields
from recsys.models.base import FitContext
from recsys.models.baselines.ease import EASE, EASEConfig
from recsys.models.baselines.itemknn import ItemKNN, ItemKNNConfig
from recsys.models.baselines.neighbourhood import ItemItemModel, binary_matrix
from recsys.models.baselines.popularity import Popularity, PopularityConfig
from recsys.models.baselines.rp3beta import RP3Beta, RP3BetaConfig
from recsys.schema import Log, Queries
from recsys.serving.forms import open_form

DAY = 86_400


def context(rows: list[list[int]], items: int, days: list[int] | None = None) -> FitContext:
    """User u did rows[u]; times count up by days unless given, flat."""
    lengths = np.array([len(row) for row in rows])
    item_N = np.concatenate([np.array(row, np.int64) for row in rows])
    time_N = DAY * (np.arange(len(item_N)) if days is None else np.array(days))
    user_N = np.repeat(np.arange(len(rows)), lengths)
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    return FitContext(Log(user_N, item_N, time_N, np.ones(len(item_N), np.float32), indptr, items))


# items 0 and 1 share two users, 0 and 2 one, 1 and 2 one; item 3 is alone, 4 is never seen; a repeat counts once
ROWS = [[0, 1, 1], [1, 0, 2], [3]]


def dense(model: ItemItemModel) -> np.ndarray:
    return model.weights_II.toarray() if sp.issparse(model.weights_II) else model.weights_II


def test_a_user_item_pair_counts_once():
    assert binary_matrix(context(ROWS, 5).train).toarray().tolist() == [
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [0, 0, 0, 1, 0],
    ]


def test_itemknn_by_hand():
    model = ItemKNN(ItemKNNConfig(shrink=1.0))
    model.fit(context(ROWS, 5))
    # users per item: 2, 2, 1, 1, 0; cosine with one added to the denominator
    near, far = 2 / (2 + 1), 1 / (2**0.5 + 1)
    expected = np.zeros((5, 5))
    expected[0, 1] = expected[1, 0] = near
    expected[0, 2] = expected[2, 0] = expected[1, 2] = expected[2, 1] = far
    np.testing.assert_allclose(dense(model), expected, rtol=1e-6)


def test_itemknn_keeps_the_strongest_neighbours_of_each_item():
    model = ItemKNN(ItemKNNConfig(shrink=0.0, neighbours=1))
    model.fit(context(ROWS, 5))
    # a column is a candidate: 0 keeps 1, 1 keeps 0, and 2, as near to 0 as to 1, the lower index
    assert {tuple(cell) for cell in np.argwhere(dense(model)).tolist()} == {(1, 0), (0, 1), (0, 2)}


@pytest.mark.parametrize("regularisation", [0.5, 20.0])
def test_ease_solves_its_least_squares(regularisation):
    """Each column minimises |x_j - X w|^2 + lambda |w|^2 with w_j = 0: solved without that item, one by one."""
    rng = np.random.default_rng(0)
    rows = [rng.permutation(8)[: rng.integers(1, 6)].tolist() for _ in range(30)]
    model = EASE(EASEConfig(regularisation=regularisation))
    ctx = context(rows, 8)
    model.fit(ctx)
    users_UI = binary_matrix(ctx.train).toarray().astype(float)
    for item in range(8):
        others = [other for other in range(8) if other != item]
        kept = users_UI[:, others]
        gram = kept.T @ kept + regularisation * np.eye(7)
        expected = np.linalg.solve(gram, kept.T @ users_UI[:, item])
        np.testing.assert_allclose(dense(model)[others, item], expected, atol=1e-6)
        assert dense(model)[item, item] == 0


def test_scores_sum_over_distinct_history_items_and_fall_back_on_popularity():
    model = ItemKNN(ItemKNNConfig(shrink=1.0))
    model.fit(context(ROWS, 5))
    scores = model.score(Queries.of([[0, 0, 2], [3], []]))
    weights, prior = dense(model), 1e-4 * np.array([2, 3, 1, 1, 0]) / 3  # rows of the log, not users
    np.testing.assert_allclose(scores[0], weights[0] + weights[2] + prior, rtol=1e-5)
    np.testing.assert_allclose(scores[1:], [prior, prior], rtol=1e-5)


def test_popularity_by_hand():
    ctx = context([[0, 1, 1], [1, 2]], 4, days=[0, 1, 8, 9, 10])
    for window, expected in {
        None: [1, 3, 1, 0],
        2.0: [0, 2, 1, 0],
        1.0: [0, 1, 1, 0],
        0.5: [0, 0, 1, 0],
    }.items():
        model = Popularity(PopularityConfig(window_days=window))
        model.fit(ctx)
        assert model.score(Queries.of([[3], []])).tolist() == [expected, expected]


def test_popularity_by_segment_by_hand():
    """Users 0 and 2 tell the same, user 1 something else, user 3 nothing; an unknown user gets everybody's list."""
    ctx = context([[0, 1], [1, 2], [0], [2, 2, 2]], 4)
    told = Categorical(np.array([1, 2, 1, 0]), np.array([True, True, True, False]), 3)
    tables = {("user", "about"): Fields({"sex": told})}
    model = Popularity(PopularityConfig(tables=("about",), smoothing=8.0))
    model.fit(replace(ctx, tables=tables))
    shares = np.array([2, 2, 4, 0])  # 8 mixed in, of 8 in all
    scores = model.score(Queries.of([[]] * 5, users=[0, 1, 2, 3, -1]))
    assert scores[[0, 2]].tolist() == [(np.array([2, 1, 0, 0]) + shares).tolist()] * 2
    assert scores[1].tolist() == (np.array([0, 1, 1, 0]) + shares).tolist()
    assert scores[3:].tolist() == [[2, 2, 4, 0]] * 2


def test_popularity_by_segment_needs_categories_of_users():
    with pytest.raises(ModelError, match="no categorical fields of users"):
        Popularity(PopularityConfig(tables=("about",))).fit(context(ROWS, 5))


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.6), (0.5, 0.0)])
def test_rp3beta_walks(alpha, beta):
    """Every walk item, user, item of the plain graph, summed up one by one."""
    rng = np.random.default_rng(0)
    rows = [rng.permutation(7)[: rng.integers(1, 6)].tolist() for _ in range(20)]
    model = RP3Beta(RP3BetaConfig(alpha=alpha, beta=beta))
    model.fit(context(rows, 8))
    users = [sum(item in row for row in rows) for item in range(8)]
    expected = np.zeros((8, 8))
    for row in rows:
        for i, j in itertools.permutations(row, 2):
            expected[i, j] += users[i] ** -alpha * len(row) ** -alpha * users[j] ** -beta
    np.testing.assert_allclose(dense(model), expected, rtol=1e-5)


@pytest.mark.parametrize("sparse", [False, True])
def test_a_history_of_thousands_scores_the_same_in_the_form(sparse):
    """Sums of many float32 weights of either sign, as EASE has them: both sides have to round alike."""
    rng = np.random.default_rng(0)
    weights = rng.normal(0, 1e-2, (4_000, 4_000)).astype(np.float32)
    weights[rng.random(weights.shape) < 0.9 * sparse] = 0
    state = {"prior": np.zeros(4_000, np.float32)}
    if sparse:
        matrix = sp.csr_matrix(weights)
        state |= {"indptr": matrix.indptr, "indices": matrix.indices, "data": matrix.data}
    model = EASE.from_state(EASEConfig(), state if sparse else state | {"dense": weights})
    asked = Queries.of([rng.permutation(4_000)[:2_500], [], [7]])
    np.testing.assert_allclose(
        open_form(model.serving_form()).score(asked), model.score(asked), rtol=0, atol=1e-6
    )

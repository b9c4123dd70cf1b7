"""What the trees are shown: features of pairs by hand, and no word of the answer."""

import numpy as np
import pytest
from contracts.worlds import world
from scipy.stats import spearmanr
from test_baselines import context

from recsys.boosted import Pairs
from recsys.models.baselines.lightgbm import LightGBM, LightGBMConfig
from recsys.schema import Queries, Ragged


def test_features_of_pairs_by_hand():
    """User 1 lacks its only feature; item 2 has no content."""
    content = np.array([[1, 0], [0.6, 0.8], [0, 0]], np.float32)
    pairs = Pairs(
        {
            "users": np.array([[3.0], [0.0], [0.0]]),
            "users_present": np.array([[True], [False], [False]]),
            "items": np.array([[10.0], [11.0], [12.0]]),
            "items_present": np.ones((3, 1), bool),
            "content.0": content,
        }
    )
    totals = pairs.totals(Ragged.of([[0, 1, 1], []]))
    np.testing.assert_allclose(totals[0], [[2.2, 1.6], [0, 0]], rtol=1e-6)
    found = pairs.features(np.array([0, 1]), totals, np.array([[0, 1, 2], [1, 1, 0]]))
    length = (2.2**2 + 1.6**2) ** 0.5
    cosines = [[2.2 / length, (2.2 * 0.6 + 1.6 * 0.8) / length, np.nan], [np.nan] * 3]
    users = [[3.0] * 3, [np.nan] * 3]
    expected = np.stack([users, [[10, 11, 12], [11, 11, 10]], cosines], axis=2)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_pair_is_left_out_of_the_history_it_is_compared_with():
    place = world("content")
    model = LightGBM(LightGBMConfig(tables=("about", "text"), negatives=3, rounds=1))
    model.fit(place.context())
    log = place.split.fit_log()
    counts, activity = log.item_counts(), np.diff(log.indptr_U1)
    shown, labels = model._examples(log, model.pairs)
    positive = np.flatnonzero(labels)
    assert len(positive) == len(log) and len(labels) < 4 * len(
        log
    )  # drawn items that the user took are left out
    np.testing.assert_allclose(np.expm1(shown[positive, 0]), activity[log.user_N], rtol=1e-5)
    np.testing.assert_allclose(np.expm1(shown[positive, 2]), counts[log.item_N], rtol=1e-5)
    text = place.tables["item", "text"]
    rows = text.values_EF - text.values_EF[counts > 0].mean(axis=0)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    for row in (0, 17):
        others = log.item_N[(log.user_N == log.user_N[row]) & (np.arange(len(log)) != row)]
        total = rows[others].sum(axis=0)
        cosine = rows[log.item_N[row]] @ total / np.linalg.norm(total)
        assert shown[positive[row], -1] == pytest.approx(cosine, abs=1e-4)


def test_without_fields_the_trees_find_popularity():
    """Every item has a count of its own: what tells an interaction from a drawn item may be nothing but how many."""
    rng = np.random.default_rng(0)
    weights = 1 / np.arange(1, 61)
    rows = [
        rng.choice(60, size=int(rng.integers(5, 15)), replace=False, p=weights / weights.sum()).tolist()
        for _ in range(300)
    ]
    ctx = context(rows, 60)
    model = LightGBM(LightGBMConfig(rounds=50))
    model.fit(ctx)
    (scores,) = model.score(Queries.of([[]]))
    assert spearmanr(scores, ctx.train.item_counts()).statistic > 0.95


def test_what_a_user_took_is_no_negative():
    """With one item left to draw, every negative is that one."""
    log = context([[0, 1, 2], [0, 1, 2, 3]], 4).train
    model = LightGBM(LightGBMConfig(negatives=50))
    pairs = Pairs(
        {
            "users": np.zeros((3, 1)),
            "users_present": np.ones((3, 1), bool),
            "items": np.arange(4.0)[:, None],
            "items_present": np.ones((4, 1), bool),
        }
    )
    shown, labels = model._examples(log, pairs)
    assert labels.sum() == len(log) and set(shown[labels == 0, 1].tolist()) == {3.0}

"""Item-to-item retrieval against brute force, ties, absent items and pools."""

import numpy as np
import pytest

from recsys.errors import EvaluationError
from recsys.item_retrieval import RetrievalTask, by_cosine, per_query, summary


def brute(vectors, queries, targets, groups, pool, k):
    """Sort everything, one query at a time; ties go before a target."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    recall, mrr = [], []
    for query, partners in zip(queries, targets, strict=True):
        candidates = [i for i in range(len(vectors)) if groups[i] != groups[query] and pool[i]]
        candidates.sort(key=lambda item: (-np.float32(unit[query] @ unit[item]), item in partners))
        ranks = [candidates.index(partner) + 1 for partner in partners]
        recall.append(np.mean([rank <= k for rank in ranks]))
        mrr.append(1 / min(ranks))
    return np.array(recall), np.array(mrr)


@pytest.mark.parametrize("pool_all", [True, False])
def test_brute_force_on_200_items(pool_all):
    rng = np.random.default_rng(0)
    vectors, groups = rng.normal(size=(200, 5)), rng.integers(60, size=200)
    pool = np.ones(200, bool) if pool_all else rng.random(200) < 0.7
    queries = rng.permutation(200)[:50]
    targets = [
        rng.choice(np.flatnonzero((groups != groups[query]) & pool), size=rng.integers(1, 5), replace=False)
        for query in queries
    ]
    task = RetrievalTask.of(queries, targets, groups, None if pool_all else pool)
    found = per_query(task, by_cosine(vectors), (10,))
    recall, mrr = brute(vectors, queries, targets, groups, pool, 10)
    np.testing.assert_allclose(found["recall_at_10"], recall)
    np.testing.assert_allclose(found["mrr"], mrr)


def test_ties_count_against_a_target():
    vectors = np.ones((8, 3))
    task = RetrievalTask.of(np.array([0]), [np.array([5])], np.arange(8))
    found = per_query(task, by_cosine(vectors), (6, 7))
    assert (found["recall_at_6"][0], found["recall_at_7"][0], found["mrr"][0]) == (0, 1, pytest.approx(1 / 7))


def test_an_absent_target_or_query_is_last():
    rng = np.random.default_rng(0)
    vectors = np.abs(rng.normal(size=(8, 3)))
    vectors[5] = np.nan
    present = np.arange(8) != 5
    task = RetrievalTask.of(np.array([0, 5]), [np.array([5]), np.array([1])], np.arange(8))
    found = per_query(task, by_cosine(vectors, present), (6,))
    assert found["mrr"].tolist() == pytest.approx([1 / 7, 1 / 7])


def test_a_width_is_its_own_cosine():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(30, 6))
    np.testing.assert_allclose(
        by_cosine(vectors, width=2)(np.arange(5)), by_cosine(vectors[:, :2])(np.arange(5))
    )


def test_what_cannot_be_asked():
    groups = np.array([0, 0, 1, 2])
    with pytest.raises(EvaluationError, match="own group"):
        RetrievalTask.of(np.array([0]), [np.array([1])], groups)
    with pytest.raises(EvaluationError, match="not in the pool"):
        RetrievalTask.of(np.array([0]), [np.array([2])], groups, np.array([1, 1, 0, 1], bool))
    with pytest.raises(EvaluationError, match="no query"):
        per_query(RetrievalTask.of(np.zeros(0, np.int64), [], groups), by_cosine(np.ones((4, 2))))


def test_intervals_hold_the_mean():
    values = {"mrr": np.random.default_rng(0).random(300), "constant": np.full(300, 0.25)}
    found = summary(values)
    mean, low, high = found["mrr"]
    assert mean == pytest.approx(values["mrr"].mean())
    assert low < mean < high
    assert found["constant"] == pytest.approx((0.25, 0.25, 0.25))

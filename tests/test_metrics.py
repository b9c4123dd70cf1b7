"""Ranks and metrics against values worked out by hand and against the slow oracle."""

import math

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.errors import EvaluationError
from recsys.metrics import list_metrics, query_metrics, target_ranks, top_k
from recsys.schema import Dense, Ragged

INF = math.inf


def test_ranks_by_hand():
    # item 0 beats all; 1 and 2 tie; 3 is last; 4 is not eligible
    scores = np.array([[3.0, 2.0, 2.0, 1.0, -INF]])
    assert target_ranks(scores, Ragged.of([[1]])).tolist() == [3]  # the tie with 2 counts against 1
    assert target_ranks(scores, Ragged.of([[1, 2]])).tolist() == [
        2,
        3,
    ]  # tied positives take successive places
    assert target_ranks(scores, Ragged.of([[0, 3, 4, -1]])).tolist() == [1, 4, 0, 0]


def test_metrics_by_hand():
    # one query, three targets at ranks 1 and 4, one missed; k = 3, then 5
    ranks, rows, sizes = np.array([1, 4, 0]), np.array([0, 0, 0]), np.array([3])
    at3 = query_metrics(ranks, rows, sizes, 3)
    assert at3["recall"][0] == pytest.approx(1 / 3)
    assert at3["ndcg"][0] == pytest.approx(1 / (1 + 1 / math.log2(3) + 0.5))
    assert at3["map"][0] == pytest.approx(1 / 3)
    at5 = query_metrics(ranks, rows, sizes, 5)
    assert at5["recall"][0] == pytest.approx(2 / 3)
    assert at5["map"][0] == pytest.approx((1 + 2 / 4) / 3)
    assert at5["mrr"][0] == 1.0 and at5["hr"][0] == 1.0


def test_query_without_targets_is_nan():
    found = query_metrics(np.array([1]), np.array([0]), np.array([1, 0]), 10)
    assert all(np.isnan(values[1]) and values[0] == 1 for values in found.values())


def test_all_tied_never_beats_chance_or_the_ideal():
    scores = np.zeros((1, 6))
    ranks = target_ranks(scores, Ragged.of([[0, 1, 2]]))
    assert sorted(ranks.tolist()) == [4, 5, 6]
    assert query_metrics(ranks, np.zeros(3, int), np.array([3]), 3)["ndcg"][0] == 0
    everything = target_ranks(scores, Ragged.of([list(range(6))]))
    assert query_metrics(everything, np.zeros(6, int), np.array([6]), 6)["ndcg"][0] == pytest.approx(1)


def test_nan_scores_are_refused():
    with pytest.raises(EvaluationError, match="query 1 of the batch"):
        target_ranks(np.array([[1.0, 2.0], [np.nan, 1.0]]), Ragged.of([[0], [1]]))


SCORE = st.sampled_from([-INF, 0.0, 0.5, 1.0, 2.0])


@st.composite
def batches(draw):
    items = draw(st.integers(1, 8))
    rows = draw(st.integers(1, 4))
    scores = [[draw(SCORE) for _ in range(items)] for _ in range(rows)]
    target = st.lists(st.integers(-1, items - 1), max_size=items, unique_by=lambda item: (item, item < 0))
    return scores, [draw(target) for _ in range(rows)]


@settings(max_examples=300, deadline=None)
@given(batches(), st.integers(1, 6))
def test_fast_equals_slow(batch, k):
    scores, targets = batch
    ragged = Ragged.of(targets)
    ranks = target_ranks(np.array(scores), ragged)
    slow = [
        oracle.rank_of(row, wanted, target)
        for row, wanted in zip(scores, targets, strict=True)
        for target in wanted
    ]
    # the ranks of tied positives may be dealt in any order: compare them as sets of (score, rank)
    rows, items = ragged.flat()
    own = [scores[row][item] if item >= 0 else -INF for row, item in zip(rows, items, strict=True)]
    assert sorted(zip(rows, own, ranks, strict=True)) == sorted(zip(rows, own, slow, strict=True))
    found = query_metrics(ranks, rows, ragged.lengths, k)
    for row, wanted in enumerate(targets):
        mine = [rank for number, rank in zip(rows, slow, strict=True) if number == row]
        if not wanted:
            assert np.isnan(found["ndcg"][row])
            continue
        for name, value in oracle.metrics(mine, k).items():
            assert found[name][row] == pytest.approx(value), name


@settings(max_examples=100, deadline=None)
@given(batches(), st.integers(1, 9))
def test_top_k_is_a_stable_sort(batch, k):
    scores, _ = batch
    lists = top_k(np.array(scores), k)
    for row, found in zip(scores, lists, strict=True):
        eligible = [item for item in range(len(row)) if row[item] > -INF]
        expected = sorted(eligible, key=lambda item: (-row[item], item))[: min(k, len(row))]
        assert [item for item in found if item >= 0] == expected


@pytest.mark.parametrize("columns", [63, 64, 65, 500, 1283])
@pytest.mark.parametrize("levels", [1, 3, 40, 100_000])  # few levels: ties everywhere, also at the k-th place
def test_top_k_over_many_columns(columns, levels):
    rng = np.random.default_rng(columns * levels)
    scores = rng.integers(levels, size=(5, columns)).astype(np.float32)
    scores[rng.random(scores.shape) < 0.2] = -INF
    scores[4] = -INF
    for k in (1, 10, columns):
        expected = np.lexsort((np.broadcast_to(np.arange(columns), scores.shape), -scores), axis=1)[:, :k]
        eligible = np.take_along_axis(scores, expected, axis=1) > -INF
        assert np.array_equal(top_k(scores, k), np.where(eligible, expected, -1))


def test_list_metrics_by_hand():
    counts = np.array([6, 2, 0, 0])
    tables = {
        "text": Dense(
            np.array([[1.0, 0], [0, 1], [1, 0], [np.nan, np.nan]], np.float32), np.array([1, 1, 1, 0], bool)
        )
    }
    found = list_metrics(np.array([[0, 1], [0, 2]]), counts, tables)
    assert found["coverage"] == 0.75
    assert found["cold_share"] == pytest.approx(0.25)
    # p = (count + 1) / (8 + 4): 7/12, 3/12, 1/12
    bits = [-math.log2(7 / 12), -math.log2(3 / 12), -math.log2(1 / 12)]
    assert found["novelty"] == pytest.approx((bits[0] + bits[1]) / 4 + (bits[0] + bits[2]) / 4)
    assert found["diversity"] == pytest.approx((1.0 + 0.0) / 2)
    # exposure 0, 1, 1, 2 over four items: gini = sum (2i - n - 1) x_i / (n sum x)
    assert found["gini"] == pytest.approx((-3 * 0 - 1 * 1 + 1 * 1 + 3 * 2) / (4 * 4))

"""What a history adds to the scores of its own items, against loops in plain Python."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.models.sequence_module import training_batch
from recsys.schema import Queries, Ragged, pick
from recsys.scoring import (
    RECENCY_BUCKETS,
    dot_scores,
    past_of_positions,
    recency_bucket,
    seen_items,
    segment_scores,
)

ROWS = st.lists(st.lists(st.integers(0, 5), max_size=9), min_size=1, max_size=5)


def slow_past(history: list[int]) -> dict[int, int]:
    """item -> bucket of how many events ago it was last seen."""
    found = {}
    for ago, item in enumerate(reversed(history), start=1):
        found.setdefault(item, min(math.ceil(math.log2(ago)), RECENCY_BUCKETS - 1))
    return found


def test_buckets_by_hand():
    ago = np.array([1, 2, 3, 4, 5, 8, 9, 16, 17, 32, 33, 64, 65, 10_000])
    assert recency_bucket(ago).tolist() == [0, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7]


@given(ROWS)
def test_seen_items_of_histories(rows):
    found = {}
    for row, item, bucket in zip(*(part.tolist() for part in seen_items(Ragged.of(rows))), strict=True):
        assert found.setdefault((row, item), bucket) == bucket
    expected = {(row, item): b for row, history in enumerate(rows) for item, b in slow_past(history).items()}
    assert found == expected


@given(ROWS)
def test_past_of_every_position(rows):
    triples = list(zip(*(part.tolist() for part in past_of_positions(Ragged.of(rows))), strict=True))
    expected = {
        (row, step, item, bucket)
        for row, sequence in enumerate(rows)
        for step in range(len(sequence))
        for item, bucket in slow_past(sequence[:step]).items()
    }
    assert len(triples) == len(set(triples)) and set(triples) == expected


@given(ROWS)
def test_a_training_batch_brings_each_position_its_past(rows):
    """Position by position in the packed layout, ascending, as the loss wants it."""
    rows = [row for row in rows if row] or [[1]]
    batch = {name: value.tolist() for name, value in training_batch(Ragged.of(rows), past=True).items()}
    assert batch["past_position_R"] == sorted(batch["past_position_R"])
    found = {}
    for position, item, bucket in zip(
        *(batch[f"past_{part}_R"] for part in ("position", "item", "bucket")), strict=True
    ):
        found.setdefault(position, {})[item] = bucket
    longest_first = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
    position = 0
    for step, active in enumerate(batch["counts_T"]):
        for row in longest_first[:active]:
            assert batch["labels_P"][position] == rows[row][step]
            assert found.get(position, {}) == slow_past(rows[row][:step])
            position += 1


def test_dot_scores_by_hand():
    queries, items, bias = np.array([[1.0, 2.0], [0.0, 1.0]]), np.eye(3, 2), np.array([0.0, 0.5, 0.25])
    repeat = np.arange(RECENCY_BUCKETS) * -10.0
    history = Ragged.of([[2, 0], []])
    plain = dot_scores(queries, items, bias, None, scale=2.0)
    np.testing.assert_allclose(plain, [[2, 4.5, 0.25], [0, 2.5, 0.25]])
    # the first query saw item 0 just now (bucket 0: nothing) and item 2 the event before (bucket 1)
    full = dot_scores(queries, items, bias, None, scale=2.0, history=history, repeat=repeat)
    np.testing.assert_allclose(full, [[2, 4.5, -9.75], [0, 2.5, 0.25]])
    own = dot_scores(
        queries, items, bias, np.array([[2, -1], [1, 2]]), scale=2.0, history=history, repeat=repeat
    )
    np.testing.assert_allclose(own, [[-9.75, -np.inf], [2.5, 0.25]])
    assert full.dtype == own.dtype == np.float32


@given(ROWS, st.integers(0, 2**31), st.booleans())
@settings(deadline=None)
def test_scores_of_candidates_are_those_of_the_catalogue(rows, seed, known):
    """One query or several, the same candidates for all or each its own, padding among them."""
    rng = np.random.default_rng(seed)
    history, count = Ragged.of(rows), len(rows)
    queries, items, bias = rng.normal(size=(count, 3)), rng.normal(size=(6, 3)), rng.normal(size=6)
    repeat, seen = rng.normal(size=RECENCY_BUCKETS), seen_items(history) if known else None
    full = dot_scores(queries, items, bias, None, scale=0.5, history=history, repeat=repeat)
    slow = 0.5 * queries @ items.T + bias
    for row, past in enumerate(map(slow_past, rows)):
        for item, bucket in past.items():
            slow[row, item] += repeat[bucket]
    np.testing.assert_allclose(full, slow, rtol=1e-5, atol=1e-6)
    for candidates in (rng.integers(-1, 6, size=4), rng.integers(-1, 6, size=(count, 4))):
        found = dot_scores(
            queries, items, bias, candidates, scale=0.5, history=history, repeat=repeat, seen=seen
        )
        np.testing.assert_allclose(found, pick(full, candidates), rtol=1e-5, atol=1e-6)


@given(st.integers(0, 2**31))
def test_segments_of_candidates_are_those_of_the_catalogue(seed):
    rng = np.random.default_rng(seed)
    scores, segments = rng.normal(size=(3, 6)).astype(np.float32), np.array([2, 0, 1])
    queries = Queries.of([[]] * 4, users=rng.integers(-1, 3, size=4))
    full = segment_scores(scores, segments, queries, None)
    expected = [scores[0 if user < 0 else segments[user]] for user in queries.user_Q.tolist()]
    np.testing.assert_array_equal(full, expected)
    for candidates in (rng.integers(-1, 6, size=5), rng.integers(-1, 6, size=(4, 5))):
        np.testing.assert_array_equal(
            segment_scores(scores, segments, queries, candidates), pick(full, candidates)
        )

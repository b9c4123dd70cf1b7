"""Scores from query and item vectors, and what a history adds to the scores of its own items. NumPy only.

Models use it offline and their torch-free programs in service, so that both say the same.
"""

import numpy as np

from recsys.schema import Queries, Ragged, pick

RECENCY_BUCKETS = 8
"""How long ago an item was last seen, in events: 1, 2, 3-4, 5-8, 9-16, 17-32, 33-64, more."""


def recency_bucket(ago: np.ndarray) -> np.ndarray:
    """Events since an item was last seen (1 = it is the newest) to a bucket."""
    return np.minimum(np.ceil(np.log2(ago)), RECENCY_BUCKETS - 1).astype(np.int64)


def seen_items(history: Ragged) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(row, item, recency bucket) of every distinct item of every history."""
    rows, items = history.flat()
    lengths = history.lengths
    ago = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(rows))
    newest_first = np.lexsort((ago, items, rows))
    rows, items, ago = rows[newest_first], items[newest_first], ago[newest_first]
    last = np.ones(len(rows), bool)
    last[1:] = (rows[1:] != rows[:-1]) | (items[1:] != items[:-1])
    return rows[last], items[last], recency_bucket(ago[last])


def past_of_positions(sequences: Ragged) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(row, step, item, recency bucket) of every distinct item before each step of each row: what a model that is
    asked for the item at that step has seen."""
    lengths = sequences.lengths
    rows, items = sequences.flat()
    steps = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    ends = np.repeat(lengths - 1, lengths)  # the row's last step
    order = np.lexsort((steps, items, rows))
    again = np.zeros(len(rows), bool)
    again[:-1] = (rows[order][1:] == rows[order][:-1]) & (items[order][1:] == items[order][:-1])
    until = ends.copy()  # an item's place in the past ends where it comes again: a newer one stands for it
    until[order[:-1][again[:-1]]] = steps[order[1:][again[:-1]]]
    spans = until - steps
    which = np.repeat(np.arange(len(rows)), spans)
    ago = np.arange(len(which)) - np.repeat(np.cumsum(spans) - spans, spans) + 1
    return rows[which], steps[which] + ago, items[which], recency_bucket(ago)


def segment_scores(
    scores_SI: np.ndarray, segment_U: np.ndarray | None, queries: Queries, candidates: np.ndarray | None
) -> np.ndarray:
    """Each query's row of scores_SI: its user's; row 0 for an unknown user, and for all where there are no segments."""
    row_Q = np.zeros(len(queries), np.int64)
    if segment_U is not None:
        known_Q = queries.user_Q >= 0
        row_Q[known_Q] = segment_U[queries.user_Q[known_Q]]
    return pick(scores_SI[row_Q], candidates)


def dot_scores(
    queries_QD: np.ndarray,
    items_ID: np.ndarray,
    bias_I: np.ndarray,
    candidates: np.ndarray | None,
    *,
    scale: float = 1.0,
    history: Ragged | None = None,
    repeat: np.ndarray | None = None,
) -> np.ndarray:
    """scale * q . e + bias + repeat[recency of the item in the query's history]; float32, candidates as in `score`.

    repeat: one value per recency bucket, or None where a model makes no difference between old and new items.
    """
    if candidates is None:
        scores = scale * (queries_QD @ items_ID.T) + bias_I
    else:
        candidates = np.broadcast_to(candidates, (len(queries_QD), np.shape(candidates)[-1]))
        safe = np.maximum(candidates, 0)
        scores = scale * np.einsum("qd,qcd->qc", queries_QD, items_ID[safe]) + bias_I[safe]
    if repeat is not None:
        added_QI = np.zeros((len(queries_QD), len(items_ID)), np.float32)
        rows, items, buckets = seen_items(history)
        added_QI[rows, items] = repeat[buckets]
        scores = scores + pick(added_QI, candidates)
    if candidates is not None:
        scores = np.where(candidates < 0, -np.inf, scores)
    return scores.astype(np.float32)

"""Scores from query and item vectors, and what a history adds to the scores of its own items. NumPy only.

Models use it offline and their torch-free programs in service, so that both say the same.
"""

import numpy as np

from recsys.schema import Queries, Ragged

RECENCY_BUCKETS = 8
"""How long ago an item was last seen, in events: 1, 2, 3-4, 5-8, 9-16, 17-32, 33-64, more."""


def recency_bucket(ago: np.ndarray) -> np.ndarray:
    """Events since an item was last seen (1 = it is the newest) to a bucket."""
    return np.minimum(np.ceil(np.log2(ago)), RECENCY_BUCKETS - 1).astype(np.int64)


def seen_items(history: Ragged) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(row, item, recency bucket) of every distinct item of every history, ascending by row, then item."""
    rows, items = history.flat()
    order = np.lexsort((items, rows))  # stable: of an item's events the newest comes last
    rows, items = rows[order], items[order]
    last = np.ones(len(rows), bool)
    last[:-1] = (rows[1:] != rows[:-1]) | (items[1:] != items[:-1])
    rows, items = rows[last], items[last]
    return rows, items, recency_bucket(np.cumsum(history.lengths)[rows] - order[last])


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
    if candidates is None:
        return scores_SI[row_Q]
    candidates_QC = np.broadcast_to(candidates, (len(queries), np.shape(candidates)[-1]))
    return _real(scores_SI[row_Q[:, None], candidates_QC], candidates_QC)


def dot_scores(
    queries_QD: np.ndarray,
    items_ID: np.ndarray,
    bias_I: np.ndarray,
    candidates: np.ndarray | None,
    *,
    scale: float = 1.0,
    history: Ragged | None = None,
    repeat: np.ndarray | None = None,
    seen: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
) -> np.ndarray:
    """scale * q . e + bias + repeat[recency of the item in the query's history]; float32, candidates as in `score`.

    repeat: one value per recency bucket, or None where a model makes no difference between old and new items. seen:
    `seen_items(history)`, where it is known already.
    """
    if repeat is not None:
        rows, items, buckets = seen_items(history) if seen is None else seen
    if candidates is None:
        scores_QI = queries_QD @ items_ID.T
        scores_QI *= scale
        scores_QI += bias_I  # in place: the largest array of a full ranking
        if repeat is not None:
            scores_QI[rows, items] += repeat[buckets]
        return scores_QI.astype(np.float32, copy=False)
    candidates_QC = np.broadcast_to(candidates, (len(queries_QD), np.shape(candidates)[-1]))
    if len(queries_QD) == 1:  # as in service; without the axis of queries it is twice as quick
        dots_QC = np.einsum("cd,d->c", items_ID.take(candidates_QC[0], axis=0), queries_QD[0])[None]
    else:
        dots_QC = np.einsum("qd,qcd->qc", queries_QD, items_ID[candidates_QC])
    scores_QC = scale * dots_QC + bias_I[candidates_QC]
    if repeat is not None and len(items):
        size = len(items_ID)
        asked_QC = candidates_QC + size * np.arange(len(queries_QD))[:, None]
        known = items + size * rows
        at_QC = np.minimum(np.searchsorted(known, asked_QC), len(known) - 1)
        scores_QC = scores_QC + np.where(known[at_QC] == asked_QC, repeat[buckets[at_QC]], 0)
    return _real(scores_QC, candidates_QC)


def _real(scores_QC: np.ndarray, candidates_QC: np.ndarray) -> np.ndarray:
    """float32, -inf for a candidate of -1."""
    unreal_QC = candidates_QC < 0
    if unreal_QC.any():
        scores_QC = np.where(unreal_QC, -np.inf, scores_QC)
    return scores_QC.astype(np.float32, copy=False)

"""Ranks and ranking metrics, vectorised over queries. NumPy only."""

from collections.abc import Mapping

import numpy as np

from recsys.errors import EvaluationError
from recsys.schema import Dense, Ragged

MISS = 0
"""The rank of a target that is not in the list."""


def target_ranks(scores_QC: np.ndarray, targets: Ragged) -> np.ndarray:
    """Rank from 1 of every target (flat, row by row), MISS where it is not ranked.

    scores_QC: -inf = not eligible (masked, or padding of a candidate list); targets hold columns of scores_QC, -1 =
    not among them, and no column twice in a row. rank = 1 + |eligible non-positives with score >= own| +
    |positives placed before it|: ties with others count against a target; tied positives take successive
    places (counting only higher-scored positives would give both the same place and let NDCG pass 1).
    Raises EvaluationError for NaN scores.
    """
    if np.isnan(scores_QC).any():
        query = int(np.flatnonzero(np.isnan(scores_QC).any(axis=1))[0])
        raise EvaluationError(
            f"scores of query {query} of the batch are NaN", fix="check the model for absent rows"
        )
    rows_T, columns_T = targets.flat()
    own_T = np.where(columns_T >= 0, scores_QC[rows_T, np.maximum(columns_T, 0)], -np.inf)
    ranked_T = own_T > -np.inf
    ranks_T = np.zeros(len(rows_T), np.int64)
    if not ranked_T.any():
        return ranks_T
    rows, own = rows_T[ranked_T], own_T[ranked_T]
    if len(np.unique(rows)) == len(rows):  # one target a row: a single comparison
        ranks_T[ranked_T] = (scores_QC[rows] >= own[:, None]).sum(axis=1)
        return ranks_T
    ranks = np.empty(len(rows), np.int64)
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    for start, end in zip(starts, [*starts[1:], len(rows)], strict=True):
        mine = own[start:end]
        ascending = np.sort(mine)
        # at_least[j] = eligible scores >= ascending[j], positives included
        bins = np.searchsorted(ascending, scores_QC[rows[start]], side="right")
        at_least = np.cumsum(np.bincount(bins, minlength=len(mine) + 1)[::-1])[::-1][1:]
        others = at_least - (len(mine) - np.searchsorted(ascending, ascending, side="left"))
        place = np.empty(len(mine), np.int64)
        place[np.argsort(-mine, kind="stable")] = np.arange(1, len(mine) + 1)
        ranks[start:end] = place + others[np.searchsorted(ascending, mine, side="left")]
    ranks_T[ranked_T] = ranks
    return ranks_T


def query_metrics(
    ranks_T: np.ndarray, rows_T: np.ndarray, sizes_Q: np.ndarray, k: int
) -> dict[str, np.ndarray]:
    """hr, recall, ndcg, map and mrr at k of every query.

    ranks_T, rows_T: rank and query of every target; sizes_Q: |T| of every query, targets outside the list included.
    recall divides by |T|; ndcg and map by their best value for min(|T|, k) targets. A query without targets is NaN.
    """
    count = len(sizes_Q)
    hit_T = (ranks_T != MISS) & (ranks_T <= k)
    rows, ranks = rows_T[hit_T], ranks_T[hit_T]
    hits_Q = np.bincount(rows, minlength=count).astype(float)
    gains_Q = np.bincount(rows, weights=1 / np.log2(ranks + 1.0), minlength=count)
    first_Q = np.full(count, np.inf)
    np.minimum.at(first_Q, rows, ranks)
    order = np.lexsort((ranks, rows))
    nth = np.arange(len(rows)) - np.searchsorted(rows[order], rows[order], side="left") + 1
    precision_Q = np.bincount(rows[order], weights=nth / ranks[order], minlength=count)
    best_Q = np.minimum(sizes_Q, k)
    ideal_K = np.concatenate([[np.nan], np.cumsum(1 / np.log2(np.arange(2, k + 2)))])
    some_Q = np.where(sizes_Q > 0, 1.0, np.nan)
    safe_Q = np.maximum(sizes_Q, 1)
    return {
        "ndcg": gains_Q / ideal_K[best_Q],
        "hr": (hits_Q > 0) * some_Q,
        "recall": hits_Q / safe_Q * some_Q,
        "mrr": 1 / first_Q * some_Q,
        "map": precision_Q / np.maximum(best_Q, 1) * some_Q,
    }


def top_k(scores_QC: np.ndarray, k: int) -> np.ndarray:
    """[Q, k] best columns, best first, equal scores by lower column; -1 where fewer are eligible.

    The columns are dealt into stripes; the k-th best of the stripes' maxima bounds the k-th best score from below, so
    one pass for the maxima and one comparison leave a few columns a row to be sorted, ties included.
    """
    queries, columns = scores_QC.shape
    k = min(k, columns)
    stripes = max(columns // 64, min(4 * k, columns))
    deep = columns // stripes
    maxima_QS = scores_QC[:, : deep * stripes].reshape(queries, deep, stripes).max(axis=1)
    bound_Q = np.partition(maxima_QS, stripes - k, axis=1)[:, stripes - k]
    eligible_Q = np.maximum(bound_Q, np.finfo(scores_QC.dtype).min)  # -inf is never eligible
    rows, found = np.divmod(np.flatnonzero(scores_QC >= eligible_Q[:, None]), columns)
    order = np.lexsort((found, -scores_QC[rows, found], rows))
    rows, found = rows[order], found[order]
    places = np.arange(len(rows)) - np.searchsorted(rows, rows, side="left")
    out_QK = np.full((queries, k), -1, np.int64)
    kept = places < k
    out_QK[rows[kept], places[kept]] = found[kept]
    return out_QK


def list_metrics(lists_QK: np.ndarray, counts_I: np.ndarray, tables: Mapping[str, Dense]) -> dict[str, float]:
    """What the recommended lists are like, beyond accuracy.

    lists_QK: item indices, -1 = no item. counts_I: interactions in the fit parts. coverage: share of the catalogue
    recommended at all. gini: of the exposure, 0 = even. novelty: mean -log2 of (count + 1) / (total + items).
    diversity: mean 1 - cosine over pairs of a list with content (first table). cold_share: items without a count.
    """
    shown = lists_QK[lists_QK >= 0]
    exposure_I = np.sort(np.bincount(shown, minlength=len(counts_I)))
    size = len(counts_I)
    lorenz = (2 * np.arange(1, size + 1) - size - 1) @ exposure_I
    filled = np.maximum((lists_QK >= 0).sum(axis=1), 1)
    information_I = -np.log2((counts_I + 1) / (counts_I.sum() + size))
    novelty_Q = (np.where(lists_QK >= 0, information_I[lists_QK], 0)).sum(axis=1) / filled
    cold_Q = ((lists_QK >= 0) & (counts_I[lists_QK] == 0)).sum(axis=1) / filled
    found: dict[str, float] = {
        "coverage": float((exposure_I > 0).mean()),
        "gini": float(lorenz / max(size * exposure_I.sum(), 1)),
        "novelty": float(novelty_Q.mean()),
        "cold_share": float(cold_Q.mean()),
    }
    for table in list(tables.values())[:1]:
        diversity_Q = _diversity(lists_QK, table)
        if not np.isnan(diversity_Q).all():
            found["diversity"] = float(np.nanmean(diversity_Q))
    return found


def _diversity(lists_QK: np.ndarray, table: Dense) -> np.ndarray:
    values = np.where(table.present_E[:, None], table.values_EF, 0)
    unit_IF = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    shown_QK = (lists_QK >= 0) & table.present_E[lists_QK]
    total_QF = np.einsum("qk,qkf->qf", shown_QK.astype(np.float32), unit_IF[lists_QK])
    count_Q = shown_QK.sum(axis=1)
    pairs_Q = count_Q * (count_Q - 1)
    # the sum over ordered pairs of cosines = |sum of unit vectors|^2 - number of vectors
    similar_Q = (total_QF**2).sum(axis=1) - count_Q
    return np.where(pairs_Q > 0, 1 - similar_Q / np.maximum(pairs_Q, 1), np.nan)

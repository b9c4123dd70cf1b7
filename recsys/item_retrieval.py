"""Item-to-item retrieval over the whole pool: given an item, where do its partners rank?"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from recsys.errors import EvaluationError
from recsys.metrics import query_metrics, target_ranks
from recsys.schema import Ragged
from recsys.stats import bootstrap_intervals

_BLOCK = 512
Scores = Callable[[np.ndarray], np.ndarray]
"""Query items [Q] to scores of all items [Q, I]."""


@dataclass(frozen=True)
class RetrievalTask:
    """queries_Q: items; targets: their partners, no item twice in a row. group_I: group of every item; the query's
    own group, itself included, is not ranked. pool_I: bool, what is ranked; None = every item."""

    queries_Q: np.ndarray
    targets: Ragged
    group_I: np.ndarray
    pool_I: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        queries_Q: np.ndarray,
        targets: Sequence[np.ndarray],
        group_I: np.ndarray,
        pool_I: np.ndarray | None = None,
    ) -> "RetrievalTask":
        """Raises EvaluationError where a target is of its query's group, or not in the pool."""
        found = cls(queries_Q, Ragged.of(targets), group_I, pool_I)
        rows_T, items_T = found.targets.flat()
        if (group_I[queries_Q][rows_T] == group_I[items_T]).any():
            raise EvaluationError("a target is of its query's own group", fix="leave such pairs out")
        if pool_I is not None and not pool_I[items_T].all():
            raise EvaluationError("a target is not in the pool", fix="leave it out, or widen the pool")
        return found


def by_cosine(
    vectors_ID: np.ndarray, present_I: np.ndarray | None = None, width: int | None = None
) -> Scores:
    """Scores by cosine of the first `width` values. An absent item, and every item of an absent query, scores below all
    others: it ties there, and ties count against a target."""
    cut_ID = np.where(np.isfinite(vectors_ID), vectors_ID, 0)[:, :width]
    unit_ID = cut_ID / np.maximum(np.linalg.norm(cut_ID, axis=1, keepdims=True), 1e-12)
    present_I = np.ones(len(unit_ID), bool) if present_I is None else present_I

    def scores(queries_Q: np.ndarray) -> np.ndarray:
        found_QI = unit_ID[queries_Q] @ unit_ID.T
        return np.where(present_I & present_I[queries_Q, None], found_QI, -2.0)

    return scores


def per_query(task: RetrievalTask, scores: Scores, ks: Sequence[int] = (10, 100)) -> dict[str, np.ndarray]:
    """recall_at_K for each of `ks` (found partners over all partners) and mrr (of the first one, at any rank): [Q].

    Ranks are counted, not sorted, and pessimistic: items that tie with a partner are placed before it.
    """
    if not len(task.queries_Q):
        raise EvaluationError("no query has a partner", expected="at least one pair in the part")
    parts: list[Mapping[str, np.ndarray]] = []
    for start in range(0, len(task.queries_Q), _BLOCK):
        rows = slice(start, start + _BLOCK)
        queries_B, targets = task.queries_Q[rows], task.targets.take(rows)
        scores_BI = scores(queries_B).astype(np.float32, copy=True)
        scores_BI[task.group_I[queries_B, None] == task.group_I[None]] = -np.inf
        if task.pool_I is not None:
            scores_BI[:, ~task.pool_I] = -np.inf
        rows_T, _ = targets.flat()
        ranks_T, sizes_B = target_ranks(scores_BI, targets), targets.lengths
        found = {f"recall_at_{k}": query_metrics(ranks_T, rows_T, sizes_B, k)["recall"] for k in ks}
        whole = query_metrics(ranks_T, rows_T, sizes_B, scores_BI.shape[1])
        parts.append(found | {"mrr": whole["mrr"]})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def summary(
    values: Mapping[str, np.ndarray], resamples: int = 1000, seed: int = 0
) -> dict[str, tuple[float, ...]]:
    """name -> (mean, lower, upper): 95 % intervals by resampling queries."""
    table_QM = np.stack(list(values.values()), 1)
    low_M, high_M = bootstrap_intervals(table_QM, np.arange(len(table_QM)), resamples, seed)
    means_M = np.nanmean(table_QM, axis=0)
    return {name: (float(means_M[n]), float(low_M[n]), float(high_M[n])) for n, name in enumerate(values)}

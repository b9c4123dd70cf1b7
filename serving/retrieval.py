"""Coarse to fine: the first columns of the item vectors pick a pool, the later ones rank it. NumPy only.

The dot product over the first columns is kept, so that ranking the pool reads the later columns of its rows alone.
"""

from dataclasses import dataclass

import numpy as np

from recsys.errors import ModelError
from recsys.schema import Queries, legal_width, pick
from recsys.scoring import seen_items
from recsys.serving.forms import Sequence


@dataclass(frozen=True)
class Pool:
    """items_QP: the items that go on, in no order; dots_QP: their dot products over the first columns."""

    items_QP: np.ndarray
    dots_QP: np.ndarray


def coarse_pool(
    queries_QD: np.ndarray,
    items_ID: np.ndarray,
    bias_QI: np.ndarray,
    *,
    coarse: int,
    size: int,
    scale: float = 1.0,
) -> Pool:
    """The `size` best items of every query by the first `coarse` columns and the bias."""
    dots_QI = queries_QD[:, :coarse] @ items_ID[:, :coarse].T
    size = min(size, len(items_ID))
    items_QP = np.argpartition(scale * dots_QI + bias_QI, -size, axis=1)[:, -size:]
    return Pool(items_QP, np.take_along_axis(dots_QI, items_QP, axis=1))


def refined(queries_QD: np.ndarray, items_ID: np.ndarray, pool: Pool, *, coarse: int) -> np.ndarray:
    """[Q, P] dot products over all columns: the pool's own, and those over the columns from `coarse` on."""
    rest_QR, later_IR = queries_QD[:, coarse:], items_ID[:, coarse:]
    dots_QP = pool.dots_QP.copy()
    for row, items_P in enumerate(pool.items_QP):  # one query at a time: [Q, P, R] would be large
        dots_QP[row] += later_IR[items_P] @ rest_QR[row]
    return dots_QP


def top(
    queries_QD: np.ndarray,
    items_ID: np.ndarray,
    bias: np.ndarray,
    k: int,
    *,
    coarse: int,
    pool: int,
    scales: tuple[float, float] = (1.0, 1.0),
) -> tuple[np.ndarray, np.ndarray]:
    """([Q, k] items, [Q, k] scores), best first; the exact list where the pool is the catalogue.

    bias: [I] or [Q, I], added to the scores of both stages; -inf keeps an item out. pool: how many items are ranked
    over all columns. scales: what the dot products of the coarse and of the full width are multiplied by.
    Raises ModelError for k beyond the pool or the catalogue.
    """
    if not 1 <= k <= min(pool, len(items_ID)):
        raise ModelError(f"k = {k}", expected=f"1 to {min(pool, len(items_ID))}, the size of the pool")
    bias_QI = np.broadcast_to(bias, (len(queries_QD), len(items_ID)))
    chosen = coarse_pool(queries_QD, items_ID, bias_QI, coarse=coarse, size=pool, scale=scales[0])
    dots_QP = refined(queries_QD, items_ID, chosen, coarse=coarse)
    scores_QP = scales[1] * dots_QP + np.take_along_axis(bias_QI, chosen.items_QP, axis=1)
    best_QK = np.lexsort((chosen.items_QP, -scores_QP), axis=1)[:, :k]
    items_QK = np.take_along_axis(chosen.items_QP, best_QK, axis=1)
    return items_QK, np.take_along_axis(scores_QP, best_QK, axis=1).astype(np.float32)


class CoarseToFine:
    """A sequence program that ranks coarse to fine at its full width. Its pool holds items outside the history.

    Raises ModelError for a program without nested widths, or for a coarse width that is not below the full one.
    """

    def __init__(self, program: Sequence, coarse: int, pool: int):
        legal_width(coarse, program.widths[:-1])
        self.program, self.coarse, self.pool = program, coarse, pool
        self.scales = (program.scale(coarse), program.scale(program.widths[-1]))

    @property
    def widths(self) -> tuple[int, ...]:
        return self.program.widths[-1:]

    def top(self, queries: Queries, k: int) -> tuple[np.ndarray, np.ndarray]:
        """([Q, k] items, [Q, k] scores) of items outside the history, best first."""
        return self._top(self.program.query_vectors(queries), queries, k)

    def _top(self, queries_QD: np.ndarray, queries: Queries, k: int) -> tuple[np.ndarray, np.ndarray]:
        form = self.program.form
        bias_QI = np.tile(form.item_bias_I, (len(queries), 1))
        rows, items = queries.history.flat()
        bias_QI[rows, items] = -np.inf
        return top(
            queries_QD,
            form.item_vectors_ID,
            bias_QI,
            k,
            coarse=self.coarse,
            pool=self.pool,
            scales=self.scales,
        )

    def score(
        self, queries: Queries, candidates: np.ndarray | None = None, width: int | None = None
    ) -> np.ndarray:
        """[Q, I] full-width scores of the pool and, for a protocol that ranks them, of the history's own items; -inf
        elsewhere. Candidates as in every `score`."""
        legal_width(width, self.widths)
        form = self.program.form
        queries_QD = self.program.query_vectors(queries)
        items_QP, scores_QP = self._top(queries_QD, queries, min(self.pool, len(form.item_vectors_ID)))
        scores_QI = np.full((len(queries), len(form.item_vectors_ID)), -np.inf, np.float32)
        np.put_along_axis(scores_QI, items_QP, scores_QP, axis=1)
        rows, items, buckets = seen_items(queries.history)
        dots = np.einsum("nd,nd->n", queries_QD[rows], form.item_vectors_ID[items])
        own = self.scales[1] * dots + form.item_bias_I[items]
        scores_QI[rows, items] = own + (form.arrays["repeat"][buckets] if "repeat" in form.arrays else 0)
        return pick(scores_QI, candidates)

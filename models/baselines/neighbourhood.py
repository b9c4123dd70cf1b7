"""What item-item models share: binary histories, a score that sums rows of an item-item matrix, and a prior."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Self

import numpy as np
import scipy.sparse as sp

from recsys.models.base import ConfigT, FitContext, Model
from recsys.schema import Form, Log, Queries, legal_width, pick


def binary_matrix(log: Log) -> sp.csr_matrix:
    """[U, I] with a one for every user-item pair of the log, however often it occurs."""
    return _ones(log.user_N, log.item_N, (log.num_users, log.num_items))


def _ones(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> sp.csr_matrix:
    matrix = sp.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape=shape)
    matrix.data[:] = 1.0
    return matrix


def nearest(weights_II: sp.coo_matrix, neighbours: int) -> sp.csr_matrix:
    """The `neighbours` strongest entries of every column; equal ones keep the lower row."""
    rows, columns, values = weights_II.row, weights_II.col, weights_II.data
    order = np.lexsort((rows, -values, columns))
    ordered = columns[order]
    first = np.searchsorted(ordered, ordered)
    kept = order[np.arange(len(order)) - first < neighbours]
    places = (rows[kept], columns[kept])
    kept_II = sp.csr_matrix((values[kept].astype(np.float32), places), shape=weights_II.shape)
    kept_II.sort_indices()
    return kept_II


class ItemItemModel(Model[ConfigT]):
    """score(j) = prior(j) + sum over the distinct history items i of W[i, j]; subclasses find W.

    weights_II: [I, I] float32, dense or CSR. prior_I: training counts scaled to at most 1e-4, so that popularity
    decides where the history says nothing: for an empty history, and among items it does not reach.
    """

    weights_II: np.ndarray | sp.csr_matrix
    prior_I: np.ndarray

    @abstractmethod
    def weights(self, users_UI: sp.csr_matrix) -> np.ndarray | sp.csr_matrix:
        """W from the binary user-item matrix."""

    def fit(self, ctx: FitContext) -> None:
        self.weights_II = self.weights(binary_matrix(ctx.train))
        counts_I = ctx.train.item_counts()
        self.prior_I = (1e-4 * counts_I / max(counts_I.max(), 1)).astype(np.float32)

    def score(
        self, queries: Queries, candidates: np.ndarray | None = None, width: int | None = None
    ) -> np.ndarray:
        legal_width(width, self.widths)
        rows, items = queries.history.flat()
        seen_QI = _ones(rows, items, (len(queries), self.weights_II.shape[0]))
        if sp.issparse(self.weights_II):  # in float64, as the serving form does: a long history rounds often
            scores_QI = (seen_QI.astype(np.float64) @ self.weights_II).toarray()
        else:
            scores_QI = seen_QI @ self.weights_II
        return pick((scores_QI + self.prior_I).astype(np.float32, copy=False), candidates)

    def state(self) -> dict[str, np.ndarray]:
        if not sp.issparse(self.weights_II):
            return {"dense": self.weights_II, "prior": self.prior_I}
        return {
            "prior": self.prior_I,
            "indptr": self.weights_II.indptr.astype(np.int64),
            "indices": self.weights_II.indices.astype(np.int32),
            "data": self.weights_II.data,
        }

    @classmethod
    def from_state(cls, config: ConfigT, state: Mapping[str, np.ndarray]) -> Self:
        model = cls(config)
        model.prior_I = state["prior"]
        if "dense" in state:
            model.weights_II = state["dense"]
        else:
            size = len(state["indptr"]) - 1
            parts = (state["data"], state["indices"], state["indptr"])
            model.weights_II = sp.csr_matrix(parts, shape=(size, size))
        return model

    def serving_form(self) -> Form:
        return Form("item_item", self.state())

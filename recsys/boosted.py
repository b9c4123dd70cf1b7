"""Scores of user-item pairs by gradient-boosted trees over the features of both.

LightGBM models use it offline and their torch-free program in service, so that both say the same.
"""

from collections.abc import Mapping
from functools import cached_property

import numpy as np

from recsys.schema import Queries, Ragged

_CHUNK_FLOATS = 1 << 24
"""Floats of the feature matrix that exist at once."""


class Pairs:
    """Features of user-item pairs. arrays:

    users [U + 1, F] and users_present, of the same shape: features and whether there is one; the last row is that of an
    unknown user. items [I, F'] and items_present. content.{n} [I, D]: rows of length one, zeros where an item has none.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self.arrays = arrays
        self.users_UF, self.items_IF = (
            np.where(arrays[f"{side}_present"], arrays[side], np.nan) for side in ("users", "items")
        )
        self.contents = [
            arrays[f"content.{number}"] for number in range(sum("content." in name for name in arrays))
        ]

    @property
    def width(self) -> int:
        return self.users_UF.shape[1] + self.items_IF.shape[1] + len(self.contents)

    def totals(self, history: Ragged) -> list[np.ndarray]:
        """By table, [Q, D] sums of the content of every history."""
        rows, items = history.flat()
        return [_sums(content_ID[items], rows, len(history)) for content_ID in self.contents]

    def features(self, row_Q: np.ndarray, totals: list[np.ndarray], items_QC: np.ndarray) -> np.ndarray:
        """[Q, C, width]: features of the user, of the item, and by table the cosine of the item's content with that of
        the history, NaN where either has none."""
        shape = items_QC.shape
        users_QCF = np.broadcast_to(self.users_UF[row_Q][:, None], (*shape, self.users_UF.shape[1]))
        parts = [users_QCF, self.items_IF[items_QC]]
        for total_QD, content_ID in zip(totals, self.contents, strict=True):
            length_Q1 = np.linalg.norm(total_QD, axis=1, keepdims=True)
            cosine_QI = (total_QD / np.where(length_Q1 > 0, length_Q1, np.nan)) @ content_ID.T
            cosine_QI[:, ~content_ID.any(axis=1)] = np.nan
            parts.append(np.take_along_axis(cosine_QI, items_QC, axis=1)[..., None])
        return np.concatenate(parts, axis=2)


class BoostedPairs(Pairs):
    """The trees over them. arrays, too: trees, the bytes of LightGBM's text form."""

    @cached_property
    def _booster(self):
        import lightgbm

        return lightgbm.Booster(model_str=self.arrays["trees"].tobytes().decode())

    def score(self, queries: Queries, candidates: np.ndarray | None) -> np.ndarray:
        """[Q, I], or the columns of candidates as in `score`; float32, before the link function."""
        row_Q = np.where(queries.user_Q >= 0, queries.user_Q, len(self.users_UF) - 1)
        columns = np.arange(len(self.items_IF)) if candidates is None else candidates
        columns_QC = np.broadcast_to(columns, (len(queries), np.shape(columns)[-1]))
        out_QC = np.empty(columns_QC.shape, np.float32)
        rows = max(_CHUNK_FLOATS // max(columns_QC.shape[1] * self.width, 1), 1)
        for start in range(0, len(queries), rows):
            here = slice(start, start + rows)
            safe_QC = np.maximum(columns_QC[here], 0)
            pairs_QCF = self.features(row_Q[here], self.totals(queries.history.take(here)), safe_QC)
            scores = self._booster.predict(pairs_QCF.reshape(-1, self.width), raw_score=True)
            out_QC[here] = scores.reshape(safe_QC.shape)
        return np.where(columns_QC < 0, -np.inf, out_QC).astype(np.float32)


def _sums(values_RD: np.ndarray, rows_R: np.ndarray, count: int) -> np.ndarray:
    """[count, D] sums by row; rows ascend."""
    total_QD = np.zeros((count, values_RD.shape[1]))
    if len(rows_R):
        first = np.flatnonzero(np.diff(rows_R, prepend=-1))
        total_QD[rows_R[first]] = np.add.reduceat(values_RD.astype(np.float64), first)
    return total_QD

"""Rows with several contents, such as several pictures of an item: encoded one by one, averaged into one vector."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recsys.features.base import Content, content_hash


@dataclass(frozen=True)
class Parts:
    """The contents of all rows one after the other, P in all; a row without content is one missing part.

    row_P: the row that a part belongs to.
    """

    contents: list[Content | None]
    row_P: np.ndarray

    @classmethod
    def of(cls, contents: Sequence[Content | tuple[Content, ...] | None]) -> "Parts":
        listed = [content if isinstance(content, tuple) else (content,) for content in contents]
        row_P = np.repeat(np.arange(len(listed)), [len(parts) for parts in listed])
        return cls([part for parts in listed for part in parts], row_P)

    @property
    def _rows(self) -> int:
        return int(self.row_P[-1]) + 1 if len(self.row_P) else 0

    def hashes(self, hashes_P: Sequence[str]) -> list[str]:
        """Of every row: that of its one content, else one over those of all its contents, readable or not."""
        if self._rows == len(hashes_P):
            return list(hashes_P)
        of_rows = np.split(np.array(hashes_P, object), np.flatnonzero(np.diff(self.row_P)) + 1)
        return [found[0] if len(found) == 1 else content_hash(" ".join(found)) for found in of_rows]

    def pooled(
        self, values_PF: np.ndarray, present_P: np.ndarray, *, unit: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """(values_EF, present_E): the mean of a row's present parts, NaN where it has none."""
        rows = self._rows
        if rows == len(self.row_P):
            return values_PF, present_P
        parts = np.flatnonzero(present_P)
        present, first, counts = np.unique(self.row_P[parts], return_index=True, return_counts=True)
        values_EF = np.full((rows, values_PF.shape[1]), np.nan, np.float32)
        if len(parts):
            means = np.add.reduceat(values_PF[parts], first) / counts[:, None].astype(np.float32)
            if unit:
                several = counts > 1
                norms = np.linalg.norm(means[several], axis=1, keepdims=True)
                means[several] /= np.maximum(norms, np.finfo(np.float32).tiny)
            values_EF[present] = means
        present_E = np.zeros(rows, bool)
        present_E[present] = True
        return values_EF, present_E

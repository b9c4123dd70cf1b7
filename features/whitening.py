"""PCA of frozen features, with or without whitening, fitted on the items that training saw."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load, save

from recsys.schema import Dense

_FILE, _PREFIX = "whitening.safetensors", "fitted"


@dataclass(frozen=True)
class Whitening:
    """x -> (x - mean_F) @ map_FK: decorrelated and, where scaled, of unit variance on the fitted rows."""

    mean_F: np.ndarray
    map_FK: np.ndarray

    @classmethod
    def fit(
        cls, table: Dense, fitted_I: np.ndarray, dims: int, *, scaled: bool = True, floor: float = 1e-6
    ) -> "Whitening":
        """From the rows that are present and in `fitted_I`; directions of next to no variance are dropped.

        Where fewer than two such rows differ there is nothing to tell apart: everything maps to one zero.
        """
        rows = table.values_EF[table.present_E & fitted_I].astype(np.float64)
        if len(rows) < 2 or not np.ptp(rows, axis=0).any():
            return cls(np.zeros(table.width, np.float32), np.zeros((table.width, 1), np.float32))
        mean_F = rows.mean(axis=0)
        values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(rows, rowvar=False)))
        order = np.argsort(-values)[:dims]
        order = order[values[order] > floor * values.max()]
        # eigenvectors come with an arbitrary sign: fix it, so that equal data gives equal features
        signs = np.sign(vectors[np.abs(vectors[:, order]).argmax(axis=0), order])
        map_FK = vectors[:, order] * signs / (np.sqrt(values[order]) if scaled else 1.0)
        return cls(mean_F.astype(np.float32), map_FK.astype(np.float32))

    def __call__(self, values_EF: np.ndarray, present_E: np.ndarray) -> np.ndarray:
        """[E, K] float32; absent rows come back as zeros (their mask says so)."""
        filled = np.where(present_E[:, None], values_EF, self.mean_F)
        return ((filled - self.mean_F) @ self.map_FK).astype(np.float32)

    def state(self, prefix: str) -> dict[str, np.ndarray]:
        return {f"{prefix}.mean": self.mean_F, f"{prefix}.map": self.map_FK}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray], prefix: str) -> "Whitening":
        return cls(state[f"{prefix}.mean"], state[f"{prefix}.map"])

    def files(self) -> dict[str, bytes]:
        """What `read_whitening` finds in a folder, by file name."""
        arrays = {name: np.ascontiguousarray(value) for name, value in self.state(_PREFIX).items()}
        return {_FILE: save(arrays)}


def read_whitening(folder: Path) -> Whitening:
    return Whitening.from_state(load((folder / _FILE).read_bytes()), _PREFIX)

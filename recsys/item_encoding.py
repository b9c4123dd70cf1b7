"""Vectors of items from their content alone, as a model makes them: what serving does with an item it has never seen.

Models say what theirs is (`serving_form`), and a bundle carries it. NumPy only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from recsys.schema import Dense


@dataclass(frozen=True)
class TableMap:
    """A row x of a feature table becomes (x - mean_F) @ map_FD; a missing one missing_D."""

    mean_F: np.ndarray
    map_FD: np.ndarray
    missing_D: np.ndarray


@dataclass(frozen=True)
class ItemEncoding:
    """kind "sum": the tables' vectors added up. "unit": each scaled to length one, side by side, scaled again."""

    kind: Literal["sum", "unit"]
    tables: Mapping[str, TableMap]

    def vectors(self, rows: Mapping[str, Dense]) -> np.ndarray:
        """[N, D] float32; a row depends on its own content alone. rows: every table's, in one order."""
        parts = []
        for name, table in self.tables.items():
            found = rows[name]
            filled_NF = np.where(found.present_E[:, None], found.values_EF, table.mean_F)
            part_ND = (filled_NF - table.mean_F) @ table.map_FD
            parts.append(np.where(found.present_E[:, None], part_ND, table.missing_D))
        if self.kind == "sum":
            return np.sum(parts, axis=0).astype(np.float32)
        return unit(np.concatenate([unit(part_ND) for part_ND in parts], axis=1)).astype(np.float32)

    def arrays(self) -> dict[str, np.ndarray]:
        return {
            f"{name}.{part}": np.ascontiguousarray(getattr(table, attribute), np.float32)
            for name, table in self.tables.items()
            for part, attribute in (("mean", "mean_F"), ("map", "map_FD"), ("missing", "missing_D"))
        }

    @classmethod
    def of(
        cls, kind: Literal["sum", "unit"], tables: list[str], arrays: Mapping[str, np.ndarray]
    ) -> "ItemEncoding":
        """From what `arrays` gave."""
        parts = ("mean", "map", "missing")
        return cls(kind, {name: TableMap(*(arrays[f"{name}.{part}"] for part in parts)) for name in tables})

    def cut(self, width: int) -> "ItemEncoding":
        """That of a nested model's narrower width."""
        tables = {
            name: TableMap(table.mean_F, table.map_FD[:, :width], table.missing_D[:width])
            for name, table in self.tables.items()
        }
        return ItemEncoding(self.kind, tables)


def unit(rows_ND: np.ndarray) -> np.ndarray:
    """Rows of length one; zeros stay."""
    return rows_ND / np.maximum(np.linalg.norm(rows_ND, axis=1, keepdims=True), 1e-12)

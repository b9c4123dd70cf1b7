"""Vectors of items from their content alone, as a model makes them: what serving does with an item it has never seen.

Models say what theirs is (`serving_form`), and a bundle carries it. NumPy only.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from recsys.near import Neighbourhood
from recsys.schema import Dense

Kind = Literal["sum", "unit", "beside"]
_NEAR, _FINISH = "near.", "finish"


@dataclass(frozen=True)
class TableMap:
    """A row x of a feature table becomes (x - mean_F) @ map_FD; a missing one missing_D."""

    mean_F: np.ndarray
    map_FD: np.ndarray
    missing_D: np.ndarray


@dataclass(frozen=True)
class ItemEncoding:
    """scale * own content + what the nearest trained items say.

    Own content, kind "sum": the tables' vectors added up. "unit": each scaled to length one, side by side, and scaled
    again. "beside": each scaled to length one, side by side. near: of trained items, added up and, with unit_near,
    scaled to length one; without tables, they are all there is.
    """

    kind: Kind
    tables: Mapping[str, TableMap]
    scale: float = 1.0
    near: tuple[Neighbourhood, ...] = ()
    unit_near: bool = False

    def vectors(self, rows: Mapping[str, Dense]) -> np.ndarray:
        """[N, D] float32; a row depends on its own content alone. rows: every table's, in one order."""
        near_ND = sum(part.vectors(rows) for part in self.near)
        own_ND = self.scale * self._own(rows) if self.tables else 0.0
        return (own_ND + (unit(near_ND) if self.unit_near else near_ND)).astype(np.float32)

    def _own(self, rows: Mapping[str, Dense]) -> np.ndarray:
        parts = []
        for name, table in self.tables.items():
            found = rows[name]
            filled_NF = np.where(found.present_E[:, None], found.values_EF, table.mean_F)
            part_ND = (filled_NF - table.mean_F) @ table.map_FD
            parts.append(np.where(found.present_E[:, None], part_ND, table.missing_D))
        if self.kind == "sum":
            return np.sum(parts, axis=0)
        beside_ND = np.concatenate([unit(part_ND) for part_ND in parts], axis=1)
        return unit(beside_ND) if self.kind == "unit" else beside_ND

    def arrays(self) -> dict[str, np.ndarray]:
        found = {
            f"{name}.{part}": getattr(table, attribute)
            for name, table in self.tables.items()
            for part, attribute in (("mean", "mean_F"), ("map", "map_FD"), ("missing", "missing_D"))
        }
        for number, part in enumerate(self.near):
            found |= {f"{_NEAR}{number}.{name}": value for name, value in part.arrays().items()}
        if self.near:
            found[_FINISH] = np.array([self.scale, self.unit_near])
        return {name: np.ascontiguousarray(value, np.float32) for name, value in found.items()}

    def facts(self) -> dict[str, Any]:
        """What is not an array, as JSON values."""
        return {"kind": self.kind, "tables": list(self.tables)}

    @classmethod
    def of(cls, facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> "ItemEncoding":
        """From what `facts` and `arrays` gave."""
        parts = ("mean", "map", "missing")
        own = {name: TableMap(*(arrays[f"{name}.{part}"] for part in parts)) for name in facts["tables"]}
        near: list[Neighbourhood] = []
        while found := _below(arrays, f"{_NEAR}{len(near)}."):
            near.append(Neighbourhood.of(found))
        scale, unit_near = arrays[_FINISH].tolist() if near else (1.0, False)
        return cls(facts["kind"], own, scale, tuple(near), bool(unit_near))

    def cut(self, width: int) -> "ItemEncoding":
        """That of a nested model's narrower width."""
        tables = {
            name: TableMap(table.mean_F, table.map_FD[:, :width], table.missing_D[:width])
            for name, table in self.tables.items()
        }
        return replace(self, tables=tables, near=tuple(part.cut(width) for part in self.near))


def _below(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def unit(rows_ND: np.ndarray) -> np.ndarray:
    """Rows of length one; zeros stay."""
    return rows_ND / np.maximum(np.linalg.norm(rows_ND, axis=1, keepdims=True), 1e-12)

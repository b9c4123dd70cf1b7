"""Vectors of items from their content through one or several small networks. NumPy only."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from recsys.item_encoding import TableMap, unit
from recsys.schema import Dense

SLOPE = 0.01
"""Of the leaky rectifier."""


@dataclass(frozen=True)
class LayeredItems:
    """Tables side by side, each row of length one, go through experts of two layers that a softmax weighs.

    x = [unit((row - mean) @ map), or missing]
    y = sum over experts k of softmax(G x + g)_k (B_k leaky(A_k x + a_k) + b_k), of length one where "unit" is 1

    weights: inner.weight [K, H, F], inner.bias [K, H], outer.weight [K, D, H], outer.bias [K, D], unit [1]; gate.weight
    [K, F], gate.bias [K] where K is above 1. As `recsys.item_encoding.ItemEncoding` has it.
    """

    maps: Mapping[str, TableMap]
    weights: Mapping[str, np.ndarray]
    kind: ClassVar[str] = "layers"

    @property
    def tables(self) -> list[str]:
        return list(self.maps)

    def inputs(self, rows: Mapping[str, Dense]) -> np.ndarray:
        """[N, F]; a table that is not given is missing everywhere."""
        count, parts = len(next(iter(rows.values())).present_E), []
        for name, table in self.maps.items():
            if name not in rows:
                parts.append(np.broadcast_to(table.missing_D, (count, len(table.missing_D))))
                continue
            there_N1 = rows[name].present_E[:, None]
            filled_NF = np.where(there_N1, rows[name].values_EF, table.mean_F).astype(np.float64)
            parts.append(np.where(there_N1, unit((filled_NF - table.mean_F) @ table.map_FD), table.missing_D))
        return np.concatenate(parts, axis=1)

    def vectors(self, rows: Mapping[str, Dense]) -> np.ndarray:
        """[N, D] float32; a row depends on its own content alone."""
        return layered(self.inputs(rows), self.weights).astype(np.float32)

    def facts(self) -> dict[str, Any]:
        """What is not an array, as JSON values."""
        return {"kind": self.kind, "tables": self.tables}

    def arrays(self) -> dict[str, np.ndarray]:
        found = dict(self.weights)
        for name, table in self.maps.items():
            found |= {
                f"{name}.mean": table.mean_F,
                f"{name}.map": table.map_FD,
                f"{name}.missing": table.missing_D,
            }
        return {name: np.ascontiguousarray(value, np.float32) for name, value in found.items()}

    @classmethod
    def of(cls, facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> "LayeredItems":
        """From what `facts` and `arrays` gave."""
        tables = facts["tables"]
        parts = ("mean", "map", "missing")
        maps = {name: TableMap(*(arrays[f"{name}.{part}"] for part in parts)) for name in tables}
        own = {f"{name}.{part}" for name in tables for part in parts}
        return cls(maps, {name: value for name, value in arrays.items() if name not in own})

    def cut(self, width: int) -> "LayeredItems":
        """There is one width."""
        return self


def layered(inputs_NF: np.ndarray, weights: Mapping[str, np.ndarray]) -> np.ndarray:
    """[N, D] of inputs that are there already."""
    hidden_KNH = inputs_NF @ weights["inner.weight"].transpose(0, 2, 1) + weights["inner.bias"][:, None]
    hidden_KNH = np.where(hidden_KNH > 0, hidden_KNH, SLOPE * hidden_KNH)
    out_KND = hidden_KNH @ weights["outer.weight"].transpose(0, 2, 1) + weights["outer.bias"][:, None]
    if "gate.weight" in weights:
        logits_NK = inputs_NF @ weights["gate.weight"].T + weights["gate.bias"]
        powers_NK = np.exp(logits_NK - logits_NK.max(axis=1, keepdims=True))
        share_NK = powers_NK / powers_NK.sum(axis=1, keepdims=True)
        out_ND = np.einsum("nk,knd->nd", share_NK, out_KND)
    else:
        out_ND = out_KND[0]
    return unit(out_ND) if weights["unit"][0] else out_ND

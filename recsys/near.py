"""What the nearest trained items say about an item that no model has seen. NumPy only.

Part of `recsys.item_encoding`: a new item has no interactions, but it has content, and trained items whose content is
like it have vectors.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from recsys.nearest import nearest
from recsys.schema import Dense


@dataclass(frozen=True)
class Keys:
    """Where items lie by one table: a row x at (x - mean_F) @ map_FP, the stored items at keys_NP (zeros: a stored item
    without this content, nobody's neighbour). weight: of this table among those that an item has neighbours by."""

    mean_F: np.ndarray
    map_FP: np.ndarray
    keys_NP: np.ndarray
    weight: float = 1.0


@dataclass(frozen=True)
class Neighbourhood:
    """share * the mean over tables of the mean of values_ND over the k stored items nearest by cosine.

    weighted: the inner mean weighs by cosine, negative ones as zero. pooled: all tables' neighbours stand in one mean,
    each weighted by its table's weight too, rather than table by table. An item without a neighbour has zeros.
    """

    tables: Mapping[str, Keys]
    values_ND: np.ndarray
    k: int
    weighted: bool
    pooled: bool = False
    share: float = 1.0

    def vectors(self, rows: Mapping[str, Dense]) -> np.ndarray:
        """[N, D] float64. rows: every table's, in one order."""
        total_ND, weight_N1 = 0.0, 0.0
        for name, keys in self.tables.items():
            sum_ND, sum_N1 = self._sums(keys, rows[name])
            if not self.pooled:
                sum_ND, sum_N1 = sum_ND / np.where(sum_N1 > 0, sum_N1, 1), (sum_N1 > 0).astype(np.float64)
            total_ND, weight_N1 = total_ND + keys.weight * sum_ND, weight_N1 + keys.weight * sum_N1
        return self.share * total_ND / np.where(weight_N1 > 0, weight_N1, 1)

    def _sums(self, keys: Keys, found: Dense) -> tuple[np.ndarray, np.ndarray]:
        """(weighted sum of the neighbours' values [N, D], sum of their weights [N, 1])."""
        filled_NF = np.where(
            found.present_E[:, None], found.values_EF, keys.mean_F
        )  # absent: at zero, no direction
        places_NK, cosine_NK = nearest((filled_NF - keys.mean_F) @ keys.map_FP, keys.keys_NP, self.k)
        weight_NK = np.maximum(cosine_NK, 0) if self.weighted else np.ones_like(cosine_NK)
        weight_NK = np.where(places_NK >= 0, weight_NK, 0).astype(np.float64)
        return np.einsum("nk,nkd->nd", weight_NK, self.values_ND[places_NK]), weight_NK.sum(
            axis=1, keepdims=True
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything, so that `of` gives it back."""
        found = {
            "settings": np.array([self.k, self.weighted, self.pooled, self.share]),
            "values": self.values_ND,
        }
        for name, keys in self.tables.items():
            found |= {f"{name}.mean": keys.mean_F, f"{name}.map": keys.map_FP, f"{name}.keys": keys.keys_NP}
            found[f"{name}.weight"] = np.array([keys.weight])
        return found

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> "Neighbourhood":
        k, weighted, pooled, share = arrays["settings"].tolist()
        names = [name.removesuffix(".keys") for name in arrays if name.endswith(".keys")]
        tables = {
            name: Keys(
                *(arrays[f"{name}.{part}"] for part in ("mean", "map", "keys")),
                arrays[f"{name}.weight"].item(),
            )
            for name in sorted(names)
        }
        return cls(tables, arrays["values"], int(k), bool(weighted), bool(pooled), share)

    def cut(self, width: int) -> "Neighbourhood":
        return replace(self, values_ND=self.values_ND[:, :width])

"""The graph around items: what resembles an item, what goes with it, which values it has. NumPy only.

Rows are items of the catalogue; only items that the fitted rows hold have any. All others enter as new items do: by
their own content, at the moment they are asked for.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

ITEM = "item"


@dataclass(frozen=True)
class Relation:
    """Edges from items to nodes of one kind, in CSR form; an item's own in order of falling weight.

    kind: "item", or the name of a field whose values the nodes are. size: nodes of that kind; a value's index is its
    code. weight_E: above 0.
    """

    kind: str
    size: int
    indptr_I1: np.ndarray
    indices_E: np.ndarray
    weight_E: np.ndarray

    @classmethod
    def of_edges(
        cls,
        kind: str,
        size: int,
        num_items: int,
        source_E: np.ndarray,
        target_E: np.ndarray,
        weight_E: np.ndarray,
    ) -> Self:
        """From edges in any order, each once; among equal weights the lower target comes first."""
        order = np.lexsort((target_E, -weight_E, source_E))
        indptr_I1 = np.searchsorted(source_E[order], np.arange(num_items + 1))
        return cls(
            kind, size, indptr_I1, target_E[order].astype(np.int64), weight_E[order].astype(np.float32)
        )

    def __len__(self) -> int:
        """Number of edges."""
        return len(self.indices_E)

    @property
    def source_E(self) -> np.ndarray:
        return np.repeat(np.arange(len(self.indptr_I1) - 1), np.diff(self.indptr_I1))

    def strongest(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(nodes [I, count], weights [I, count]) of every item in order of weight; -1 and 0 where it has fewer."""
        place_E = np.arange(len(self)) - self.indptr_I1[self.source_E]
        kept_E = place_E < count
        cells = self.source_E[kept_E], place_E[kept_E]
        nodes_IN = np.full((len(self.indptr_I1) - 1, count), -1, np.int64)
        weights_IN = np.zeros(nodes_IN.shape, np.float32)
        nodes_IN[cells], weights_IN[cells] = self.indices_E[kept_E], self.weight_E[kept_E]
        return nodes_IN, weights_IN


@dataclass(frozen=True)
class ItemGraph:
    """relations: by name, e.g. "knn.text", "co_occurrence", "values.metadata.genre", "pairs". made_of: JSON values that
    say what it was made of; fingerprints of feature tables stand under "features"."""

    num_items: int
    relations: Mapping[str, Relation]
    made_of: Mapping[str, Any]

    def arrays(self) -> dict[str, np.ndarray]:
        parts = ("indptr_I1", "indices_E", "weight_E")
        return {
            f"{name}.{part}": getattr(relation, part)
            for name, relation in self.relations.items()
            for part in parts
        }

    def facts(self) -> dict[str, Any]:
        """What is not an array, as JSON values."""
        relations = {
            name: {"kind": relation.kind, "size": relation.size, "edges": len(relation)}
            for name, relation in self.relations.items()
        }
        return {"num_items": self.num_items, "relations": relations, "made_of": dict(self.made_of)}

    @classmethod
    def of(cls, facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Self:
        """From what `facts` and `arrays` gave."""
        parts = ("indptr_I1", "indices_E", "weight_E")
        relations = {
            name: Relation(about["kind"], about["size"], *(arrays[f"{name}.{part}"] for part in parts))
            for name, about in facts["relations"].items()
        }
        return cls(facts["num_items"], relations, facts["made_of"])

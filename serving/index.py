"""An approximate index of item vectors, for catalogues that are too large to score whole at every question.

Inverted lists of 4-bit product codes (Faiss, fast scan) pick a pool, and the model's own scores rank it, so that only
membership of the pool is approximate. How often the pool holds what belongs in the list is measured where the index is
built, and an index below `REQUIRED` is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from recsys.errors import ModelError
from recsys.schema import Form

EXACT_UP_TO = 200_000
"""Items that are scored one and all: no index is needed."""
REQUIRED, DEPTH = 0.98, 200
"""Mean recall at DEPTH of what exact scoring finds, at least."""
FILE, FACTS = "index.faiss", "index.json"
_PROBED_SHARES, _POOLS = (0.03, 0.06, 0.12, 0.25, 0.5), (10, 20, 40)
"""Shares of the lists that may be looked into, and sizes of the pool in DEPTHs."""
_CODE_COST = 1 / 32
"""Of scanning an item's code, in terms of scoring it exactly."""


@dataclass(frozen=True)
class Facts:
    """What was found at the build. recall: mean over the questions asked, at `depth`; probes: lists looked into; pool:
    items that are scored exactly."""

    items: int
    lists: int
    probes: int
    pool: int
    depth: int
    recall: float
    questions: int


def build(faiss: ModuleType, form: Form, queries_QD: np.ndarray, seed: int = 0) -> tuple[Any, Facts]:
    """The index over a form's vectors and biases, with the cheapest settings that reach `REQUIRED`.

    queries_QD: vectors of real questions, times the form's scale. Raises ModelError where no settings reach it.
    """
    rows_ID = _widened(form)
    size, width = rows_ID.shape
    lists = max(1, int(size**0.5))
    quantiser = faiss.IndexFlatIP(width)
    index = faiss.IndexIVFPQFastScan(quantiser, width, lists, width // 2, 4, faiss.METRIC_INNER_PRODUCT)
    index.cp.max_points_per_centroid, index.cp.niter, index.cp.seed = 64, 10, seed
    index.cp.min_points_per_centroid = 1
    sample = np.random.default_rng(seed).permutation(size)[: max(64 * lists, 4096)]
    index.train(rows_ID[sample])
    index.add(rows_ID)
    asked_QD = _asked(queries_QD, width)
    depth = min(DEPTH, size)
    exact_QK = _best(asked_QD @ rows_ID.T, depth)
    settings = [(max(1, round(share * lists)), pool * depth) for share in _PROBED_SHARES for pool in _POOLS]
    reached = 0.0
    for probes, pool in sorted(settings, key=lambda one: one[0] * size / lists * _CODE_COST + one[1]):
        found_QP = index.search(asked_QD, min(pool, size), params=faiss.SearchParametersIVF(nprobe=probes))[1]
        recall = _recall(found_QP, exact_QK)
        reached = max(reached, recall)
        if recall >= REQUIRED:
            return index, Facts(size, lists, probes, min(pool, size), depth, recall, len(asked_QD))
    raise ModelError(
        f"an index finds {reached:.3f} of the best {depth} items", expected=f"at least {REQUIRED}",
        fix='score every item: bundle.index = "none"',
    )  # fmt: skip


class Index:
    """An index as it is asked. The file is mapped: processes share it."""

    def __init__(self, faiss: ModuleType, folder: Path, facts: Mapping[str, Any]):
        self._faiss, self.facts = faiss, Facts(**facts)
        faiss.omp_set_num_threads(1)
        self._index = faiss.read_index(str(folder / FILE), faiss.IO_FLAG_MMAP)

    def pool(self, query_D: np.ndarray, allowed_I: np.ndarray) -> np.ndarray:
        """Items, ascending, among which the best allowed ones are. query_D: times the form's scale."""
        params = {"nprobe": self.facts.probes}
        if not allowed_I.all():
            params["sel"] = self._faiss.IDSelectorBitmap(np.packbits(allowed_I, bitorder="little"))
        asked_1D = _asked(query_D[None], self._index.d)
        found = self._index.search(
            asked_1D, self.facts.pool, params=self._faiss.SearchParametersIVF(**params)
        )[1][0]
        return np.sort(found[found >= 0])


def _widened(form: Form) -> np.ndarray:
    """[I, even] item vectors, the bias as one more column, and zeros up to an even number."""
    size, width = form.item_vectors_ID.shape
    rows_ID = np.zeros((size, width + 2 - width % 2), np.float32)
    rows_ID[:, :width] = form.item_vectors_ID
    rows_ID[:, width] = form.item_bias_I
    return rows_ID


def _asked(queries_QD: np.ndarray, width: int) -> np.ndarray:
    """Queries for `_widened` rows."""
    asked_QD = np.zeros((len(queries_QD), width), np.float32)
    asked_QD[:, : queries_QD.shape[1]] = queries_QD
    asked_QD[:, queries_QD.shape[1]] = 1
    return asked_QD


def _best(scores_QI: np.ndarray, depth: int) -> np.ndarray:
    return np.argpartition(-scores_QI, depth - 1, axis=1)[:, :depth]


def _recall(found_QP: np.ndarray, exact_QK: np.ndarray) -> float:
    """Mean share of an exact list that its pool holds."""
    held = [np.isin(exact_K, found_P).mean() for exact_K, found_P in zip(exact_QK, found_QP, strict=True)]
    return float(np.mean(held))

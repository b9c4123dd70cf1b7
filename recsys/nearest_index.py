"""Nearest rows by cosine through an index, for more rows than all can be compared with all. Needs the extra `ann`."""

import numpy as np

from recsys.errors import require
from recsys.nearest import nearest

REQUIRED = 0.98
"""Share of the exact neighbours that is found, at least."""
_ASKED = 500
_TRAINED_ON = 64
"""Rows a list that the lists are learnt from."""


def nearest_by_index(
    rows_NF: np.ndarray, k: int, *, seed: int = 0, block: int = 16_384
) -> tuple[np.ndarray, np.ndarray]:
    """As `nearest(rows, rows, k)` with no row its own neighbour, but for neighbours that are overlooked.

    Inverted lists (Faiss), one for every sqrt(N) rows, as many of them looked into as it takes to find `REQUIRED` of
    what the exact search finds for 500 rows. Places without a neighbour, also of rows of length zero: -1, -inf.
    Raises MissingExtraError without Faiss.
    """
    faiss = require("faiss", "ann", purpose="looking for neighbours among this many items")
    lengths_N = np.linalg.norm(rows_NF, axis=1)
    there = np.flatnonzero(lengths_N > 0)
    unit_MF = np.ascontiguousarray(rows_NF[there] / lengths_N[there, None], np.float32)
    rng = np.random.default_rng(seed)
    lists = max(1, int(len(there) ** 0.5))
    quantiser = faiss.IndexFlatIP(unit_MF.shape[1])
    index = faiss.IndexIVFFlat(quantiser, unit_MF.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.min_points_per_centroid, index.cp.seed = 1, seed
    index.train(unit_MF[rng.permutation(len(there))[: _TRAINED_ON * lists]])
    index.add(unit_MF)
    index.nprobe = _probes(index, unit_MF, k, lists, rng)
    places_NK, cosine_NK = (
        np.full((len(rows_NF), k), -1, np.int64),
        np.full((len(rows_NF), k), -np.inf, np.float32),
    )
    for start in range(0, len(there), block):
        here = np.arange(start, min(start + block, len(there)))
        found_BK, likeness_BK = _searched(index, unit_MF, here, k)
        places_NK[there[here]] = np.where(found_BK >= 0, there[found_BK], -1)
        cosine_NK[there[here]] = likeness_BK
    return places_NK, cosine_NK


def _searched(index, unit_MF: np.ndarray, here: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(places [B, k], cosines [B, k]), a row itself left out; absent: -1, -inf."""
    likeness_BK, found_BK = index.search(unit_MF[here], k + 1)
    likeness_BK[(found_BK == here[:, None]) | (found_BK < 0)] = -np.inf
    order_BK = np.argsort(-likeness_BK, axis=1, kind="stable")[:, :k]
    likeness_BK = np.take_along_axis(likeness_BK, order_BK, axis=1)
    found_BK = np.take_along_axis(found_BK, order_BK, axis=1)
    return np.where(np.isneginf(likeness_BK), -1, found_BK), likeness_BK


def _probes(index, unit_MF: np.ndarray, k: int, lists: int, rng: np.random.Generator) -> int:
    """Lists to look into; all of them find everything."""
    asked = np.sort(rng.permutation(len(unit_MF))[:_ASKED])
    exact_QK, _ = nearest(unit_MF[asked], unit_MF, k, own_Q=asked)
    probes = 1
    while probes < lists:
        index.nprobe = probes
        found_QK, _ = _searched(index, unit_MF, asked, k)
        held = [
            np.isin(one[one >= 0], found).mean()
            for one, found in zip(exact_QK, found_QK, strict=True)
            if one.max() >= 0
        ]
        if np.mean(held) >= REQUIRED:
            return probes
        probes *= 2
    return lists

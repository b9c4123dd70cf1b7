"""Rows of one table that are the same thing: byte-equal content, and vectors next to each other. NumPy only."""

from dataclasses import dataclass

import numpy as np

from recsys.features.table import FeatureTable, Table
from recsys.progress import track

_BLOCK = 2048


@dataclass(frozen=True)
class Groups:
    """Rows that belong together. pairs: how many pairs of rows are alike; rows: the groups, the largest first."""

    pairs: int
    rows: list[np.ndarray]

    @classmethod
    def of(cls, label_E: np.ndarray, pairs: int) -> "Groups":
        """label_E: equal for rows of one group; a group of one is none."""
        order = np.argsort(label_E, kind="stable")
        found = np.split(order, np.flatnonzero(np.diff(label_E[order])) + 1)
        return cls(
            pairs, sorted((rows for rows in found if len(rows) > 1), key=lambda rows: (-len(rows), rows[0]))
        )


def equal_content(table: Table) -> Groups:
    """Present rows whose content hashes are equal: the same file, or the same text."""
    present = np.flatnonzero(table.present_E)
    _, label, counts = np.unique(
        np.array(table.hashes_E, dtype=object)[present].astype(str), return_inverse=True, return_counts=True
    )
    groups = Groups.of(label, int((counts * (counts - 1) // 2).sum()))
    return Groups(groups.pairs, [present[rows] for rows in groups.rows])


def near_equal(
    table: FeatureTable, threshold: float, *, block: int = _BLOCK, progress: bool = True
) -> Groups:
    """Different contents with a cosine of at least `threshold`; of equal contents the first row stands for all.

    Exact: every pair is compared, a block of `block` x `block` at a time. Groups are connected: a row belongs to one
    where it is near to any of its rows. Rows of zero norm are near to nothing.
    """
    hashes = np.array(table.hashes_E, dtype=object)[table.present_E].astype(str)
    rows = np.flatnonzero(table.present_E)[np.sort(np.unique(hashes, return_index=True)[1])]
    unit_EF, nonzero = unit_rows(table.values_EF[rows])
    rows, unit_EF = rows[nonzero], unit_EF[nonzero]
    starts = range(0, len(rows), block)
    label_E, pairs = np.arange(len(rows)), 0
    steps = [(a, b) for a in starts for b in starts if b >= a]
    for a, b in track(steps, "comparing", enabled=progress, total=len(steps)):
        cosine_AB = unit_EF[a : a + block] @ unit_EF[b : b + block].T
        left, right = np.nonzero(np.triu(cosine_AB, 1) >= threshold if a == b else cosine_AB >= threshold)
        pairs += len(left)
        _join(label_E, left + a, right + b)
    groups = Groups.of(label_E, pairs)
    return Groups(pairs, [rows[inside] for inside in groups.rows])


def unit_rows(values_EF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rows of length one, which of them are not zero)."""
    norm_E = np.linalg.norm(values_EF, axis=1)
    return values_EF / np.where(norm_E > 0, norm_E, 1)[:, None], norm_E > 0


def _join(label_E: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
    """Give both ends of every pair one label, the smaller of the two, until nothing changes. label_E: in place."""
    while True:
        apart = label_E[left] != label_E[right]
        if not apart.any():
            return
        left, right = left[apart], right[apart]
        small = np.minimum(label_E[left], label_E[right])
        large = np.maximum(label_E[left], label_E[right])
        target = np.arange(len(label_E))
        np.minimum.at(target, large, small)
        while (shorter := target[target] != target).any():  # a label may lead to one that leads on
            target[shorter] = target[target][shorter]
        label_E[:] = target[label_E]

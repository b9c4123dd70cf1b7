"""Breakdowns of an evaluation: by history length, popularity of the target, cold or warm pool, missing modality."""

from collections.abc import Mapping

import numpy as np

from recsys.protocol import Protocol
from recsys.schema import Dense
from recsys.splits import EvalQueries

_HISTORY = {"0": (0, 0), "1-4": (1, 4), "5-19": (5, 19), "20-up": (20, np.inf)}
_THIRDS = ("head", "mid", "tail")
_COUNTS = {"0": (0, 0), "1-2": (1, 2), "3-5": (3, 5), "6-10": (6, 10), "11-up": (11, np.inf)}
_IN_ORDER = [
    *(f"history.{label}" for label in _HISTORY),
    *(f"popularity.{label}" for label in _THIRDS),
    *(f"count.{label}" for label in _COUNTS),
]


def reading_order(label: str) -> tuple[int, str]:
    """Sort key that puts history lengths and popularity in their own order, other slices after them by name."""
    return (_IN_ORDER.index(label) if label in _IN_ORDER else len(_IN_ORDER), label)


def query_slices(asked: EvalQueries, protocol: Protocol) -> dict[str, np.ndarray]:
    """history.0 | 1-4 | 5-19 | 20-up: queries by the length of their input history."""
    if "history" not in protocol.slices:
        return {}
    lengths_Q = asked.queries.history.lengths
    return {
        f"history.{label}": (lengths_Q >= low) & (lengths_Q <= high)
        for label, (low, high) in _HISTORY.items()
    }


def target_slices(
    items_T: np.ndarray,
    lengths_T: np.ndarray,
    counts_I: np.ndarray,
    tables: Mapping[str, Dense],
    protocol: Protocol,
) -> dict[str, np.ndarray]:
    """Targets by popularity, training count or missing content; all items stay candidates. lengths_T: of the histories
    of their queries.

    popularity.head | mid | tail: the most popular items that hold a third of all fitted interactions, the next
    third, and the rest (items never seen among them). count.0 | 1-2 | 3-5 | 6-10 | 11-up: rows of the target in the fit
    parts. cold.both: targets without such a row, of queries without a history. missing.NAME: items absent from that
    table.
    """
    inside_T = items_T >= 0
    found: dict[str, np.ndarray] = {}
    if "popularity" in protocol.slices:
        order = np.argsort(-counts_I, kind="stable")
        before = np.concatenate([[0], np.cumsum(counts_I[order])[:-1]])
        third_I = np.empty(len(counts_I), np.int64)
        third_I[order] = np.minimum(3 * before // max(counts_I.sum(), 1), 2)
        third_I[counts_I == 0] = 2
        for number, label in enumerate(_THIRDS):
            found[f"popularity.{label}"] = inside_T & (third_I[items_T] == number)
    if "count" in protocol.slices:
        for label, (low, high) in _COUNTS.items():
            found[f"count.{label}"] = inside_T & (counts_I[items_T] >= low) & (counts_I[items_T] <= high)
    if "both" in protocol.slices:
        found["cold.both"] = inside_T & (counts_I[items_T] == 0) & (lengths_T == 0)
    if "missing" in protocol.slices:
        for name, table in tables.items():
            found[f"missing.{name}"] = inside_T & ~table.present_E[items_T]
    return found


def pools(counts_I: np.ndarray, protocol: Protocol) -> dict[str, np.ndarray]:
    """pool.cold | warm: only items without, or with, an interaction in the fit parts are candidates and targets."""
    if "pool" not in protocol.slices or (counts_I > 0).all():
        return {}
    return {"pool.cold": counts_I == 0, "pool.warm": counts_I > 0}

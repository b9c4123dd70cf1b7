"""Looking at a feature table: how much of it is there, how its vectors are, what is like what. NumPy only."""

import re
from dataclasses import dataclass

import numpy as np
import polars as pl

from recsys.errors import FeatureError
from recsys.features.duplicates import unit_rows
from recsys.features.table import FeatureTable, Table

_BLOCK_ROWS = 65_536


@dataclass(frozen=True)
class Norms:
    """Lengths of the present vectors. zero_rows: rows of length 0; constant: columns with one value all over."""

    least: float
    median: float
    greatest: float
    zero_rows: np.ndarray
    constant: np.ndarray


def norms(table: FeatureTable) -> Norms | None:
    """None where no row is present."""
    rows = np.flatnonzero(table.present_E)
    if not len(rows):
        return None
    values_EF = table.values_EF[rows]
    norm_E = np.linalg.norm(values_EF, axis=1)
    return Norms(
        float(norm_E.min()),
        float(np.median(norm_E)),
        float(norm_E.max()),
        rows[norm_E == 0],
        np.flatnonzero(np.ptp(values_EF, axis=0) == 0) if len(rows) > 1 else np.zeros(0, np.int64),
    )


def neighbours(table: FeatureTable, item: int | str, k: int) -> list[tuple[int | str, float]]:
    """The k present rows nearest to the item's by cosine, itself left out: (id, cosine), the nearest first.

    Ties go to the row that comes first. Raises FeatureError for an id that is not there or has no vector.
    """
    row = row_of(table, item)
    if not table.present_E[row]:
        raise FeatureError(
            f"{table.entity} {item!r} has no {table.manifest.get('modality', 'vector')}",
            where=table.name,
            expected="one with a present row",
        )
    (target_F,), _ = unit_rows(table.values_EF[[row]])
    cosine_E = np.full(len(table.ids), -np.inf, np.float32)
    for start in range(0, len(cosine_E), _BLOCK_ROWS):  # unit rows are a copy: not of the whole table at once
        unit_EF, _ = unit_rows(table.values_EF[start : start + _BLOCK_ROWS])
        cosine_E[start : start + _BLOCK_ROWS] = unit_EF @ target_F
    cosine_E[~table.present_E] = -np.inf
    cosine_E[row] = -np.inf
    order = np.argsort(-cosine_E, kind="stable")[: min(k, int(table.present_E.sum()) - 1)]
    return [(table.ids[int(place)], float(cosine_E[place])) for place in order]


def row_of(table: Table, item: int | str) -> int:
    try:
        found = table.ids.index_of(item)
    except pl.exceptions.InvalidOperationError:  # a number beyond the type of the ids
        found = None
    if found is None:
        raise FeatureError(f"no {table.entity} {item!r}", where=table.name, expected="an id of the table")
    return found


def parse_id(table: Table, text: str) -> int | str:
    """An id from the command line, typed as the table's ids are."""
    if not table.ids.dtype.is_integer():
        return text
    if not re.fullmatch(r"-?[0-9]{1,19}", text):  # int() would also take " 4_2 "
        raise FeatureError(f"{table.entity} id {text!r}", where=table.name, expected="an integer")
    return int(text)

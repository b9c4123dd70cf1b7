"""Typed attributes of items or users as models see them: categories, sets of categories, numbers. NumPy only.

Each field has a presence mask of its own. Code 0 means "present, but never seen in training": a state, not a
missing value. Rows stand in catalogue order; there are no ids.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from recsys.schema import Dense, Ragged


@dataclass(frozen=True)
class Categorical:
    """One value a row. codes_E: int64, 0 = unseen, 1.. = place in the vocabulary + 1; absent rows hold 0 as well
    and are told apart by present_E. size: number of codes, 0 included."""

    codes_E: np.ndarray
    present_E: np.ndarray
    size: int

    def take(self, rows: np.ndarray) -> "Categorical":
        return Categorical(self.codes_E[rows], self.present_E[rows], self.size)


@dataclass(frozen=True)
class MultiValued:
    """A set of values a row, e.g. genres. codes: distinct, ascending; all unseen values of a row make one 0."""

    codes: Ragged
    present_E: np.ndarray
    size: int

    def take(self, rows: np.ndarray) -> "MultiValued":
        return MultiValued(self.codes.take(rows), self.present_E[rows], self.size)


@dataclass(frozen=True)
class Numeric:
    """A number a row, already scaled. values_E: float32, NaN in absent rows."""

    values_E: np.ndarray
    present_E: np.ndarray

    def take(self, rows: np.ndarray) -> "Numeric":
        return Numeric(self.values_E[rows], self.present_E[rows])


Field = Categorical | MultiValued | Numeric


@dataclass(frozen=True)
class Fields:
    """All typed fields of an entity by name."""

    fields: Mapping[str, Field]

    @property
    def present_E(self) -> np.ndarray:
        """Rows with at least one field."""
        return np.any([field.present_E for field in self.fields.values()], axis=0)

    def take(self, rows: np.ndarray) -> "Fields":
        """These rows, by index."""
        return Fields({name: field.take(rows) for name, field in self.fields.items()})

    def dense(self) -> Dense:
        """One block of columns a field, for models that take vectors; rows without any field are NaN.

        Categories: presence, then a column a code (a set's have unit length together). Numbers: presence, value.
        """
        blocks = []
        for field in self.fields.values():
            blocks += [field.present_E[:, None].astype(np.float32), _columns(field)]
        present_E = self.present_E
        values_EF = np.concatenate(blocks, axis=1)
        values_EF[~present_E] = np.nan
        return Dense(values_EF, present_E)


def as_vectors(table: Dense | Fields) -> Dense:
    """The table for what takes vectors only."""
    return table.dense() if isinstance(table, Fields) else table


def node_list(
    field: Categorical | MultiValued, max_degree: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """(rows, codes): the edges between rows and the values they have, for graph models; unseen values make none.

    A value that more than `max_degree` rows have keeps that many of its edges, drawn at random, so that no genre
    becomes a hub that everything hangs on.
    """
    if isinstance(field, MultiValued):
        rows, codes = field.codes.flat()
    else:
        rows = np.flatnonzero(field.present_E)
        codes = field.codes_E[rows]
    order = np.random.default_rng(seed).permutation(len(rows))
    order = order[np.argsort(codes[order], kind="stable")]
    place = np.arange(len(order)) - np.searchsorted(codes[order], codes[order], side="left")
    kept = np.sort(order[(place < max_degree) & (codes[order] > 0)])
    return rows[kept], codes[kept]


def _columns(field: Field) -> np.ndarray:
    if isinstance(field, Numeric):
        return np.where(field.present_E, field.values_E, 0)[:, None].astype(np.float32)
    out_EV = np.zeros((len(field.present_E), field.size), np.float32)
    if isinstance(field, Categorical):
        out_EV[field.present_E, field.codes_E[field.present_E]] = 1
    else:
        rows, codes = field.codes.flat()
        out_EV[rows, codes] = 1 / np.sqrt(field.codes.lengths[rows])
    return out_EV

"""Names, types and small array containers that every other module speaks. NumPy only.

Shape suffixes of array names, used throughout the package:
    B batch   Q queries   U users   I items   E entities   L sequence   D width   F feature width
    M modalities   K cut-off   C candidates   N neighbours   T targets
An index is dense from 0; -1 stands for "unknown" or padding and is never a row.
Times are whole seconds since 1970-01-01 UTC unless a Dataset has an `order` column instead.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from recsys.errors import ModelError

if TYPE_CHECKING:
    from recsys.item_encoding import ItemEncoding
    from recsys.neighbour_encoding import NeighbourEncoding

SCHEMA_VERSION = 1

# Columns of the Dataset's tables. Free columns are allowed in items and users.
USER, ITEM, TIME, WEIGHT, EVENT, ORDER, TIME_HI = (
    "user_id",
    "item_id",
    "timestamp",
    "weight",
    "event",
    "order",
    "timestamp_hi",
)
TITLE, TEXT, IMAGE, CATEGORY = "title", "text", "image_path", "category"
OTHER, RANK, KIND = "other_id", "rank", "kind"


@dataclass(frozen=True)
class Ragged:
    """Rows of unequal length as views into one flat array: row q is `values[starts[q]:ends[q]]`.

    Rows may overlap, so that a million histories of one log cost two integers each.
    """

    values: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, rows) -> "Ragged":
        """From a sequence of integer sequences."""
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        ends = np.cumsum(lengths)
        flat = [np.asarray(row, dtype=np.int64) for row in rows if len(row)]
        return cls(np.concatenate(flat) if flat else np.zeros(0, np.int64), ends - lengths, ends)

    @classmethod
    def from_lengths(cls, values: np.ndarray, lengths: np.ndarray) -> "Ragged":
        ends = np.cumsum(lengths, dtype=np.int64)
        return cls(values, ends - lengths, ends)

    @classmethod
    def empty(cls, rows: int) -> "Ragged":
        zeros = np.zeros(rows, np.int64)
        return cls(np.zeros(0, np.int64), zeros, zeros)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, row: int) -> np.ndarray:
        return self.values[self.starts[row] : self.ends[row]]

    @property
    def lengths(self) -> np.ndarray:
        return self.ends - self.starts

    def take(self, rows: np.ndarray | slice) -> "Ragged":
        return Ragged(self.values, self.starts[rows], self.ends[rows])

    def tail(self, length: int) -> "Ragged":
        """The last `length` entries of every row."""
        return Ragged(self.values, np.maximum(self.starts, self.ends - length), self.ends)

    def flat(self) -> tuple[np.ndarray, np.ndarray]:
        """(row number, value) of every entry, row by row."""
        lengths = self.lengths
        rows = np.repeat(np.arange(len(self)), lengths)
        first = np.cumsum(lengths) - lengths
        within = np.arange(int(lengths.sum())) - first[rows]
        return rows, self.values[self.starts[rows] + within]

    def padded(self, length: int | None = None) -> np.ndarray:
        """[rows, L] with the last L entries of every row, right-padded with -1 (L = longest row by default)."""
        short = self if length is None else self.tail(length)
        lengths = short.lengths
        width = int(length if length is not None else lengths.max(initial=0))
        out_QL = np.full((len(self), width), -1, dtype=np.int64)
        rows, values = short.flat()
        out_QL[rows, np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)] = values
        return out_QL


@dataclass(frozen=True)
class Queries:
    """What a model ranks for. The only input of `score`, offline and served.

    user_Q: user index, -1 = unknown. history: item indices in time order, rows may be empty.
    at_Q: time of the query in UTC seconds (position in the order where data has no time).
    user_fields / context_fields: name -> array of Q values, for models that declare their use. times: of the history's
    events in UTC seconds, where they are known; for the ranker, no model reads them.
    """

    user_Q: np.ndarray
    history: Ragged
    at_Q: np.ndarray
    user_fields: Mapping[str, np.ndarray] = field(default_factory=dict)
    context_fields: Mapping[str, np.ndarray] = field(default_factory=dict)
    times: Ragged | None = None

    def __post_init__(self):
        if not len(self.user_Q) == len(self.history) == len(self.at_Q):
            raise ValueError("user_Q, history and at_Q must have one entry a query")

    @classmethod
    def of(cls, histories, users=None, at=0) -> "Queries":
        """From plain lists: `Queries.of([[3, 1], []])`."""
        count = len(histories)
        user_Q = np.full(count, -1, np.int64) if users is None else np.asarray(users, np.int64)
        return cls(user_Q, Ragged.of(histories), np.broadcast_to(np.asarray(at, np.int64), count))

    def __len__(self) -> int:
        return len(self.user_Q)

    def take(self, rows: np.ndarray | slice) -> "Queries":
        return Queries(
            self.user_Q[rows],
            self.history.take(rows),
            self.at_Q[rows],
            {name: values[rows] for name, values in self.user_fields.items()},
            {name: values[rows] for name, values in self.context_fields.items()},
            None if self.times is None else self.times.take(rows),
        )


@dataclass(frozen=True)
class Log:
    """Interactions as index arrays, sorted by user, then time, then the source's order.

    user_N, item_N: int64 indices; time_N: UTC seconds; weight_N: float32; indptr_U1: user u's rows are
    `indptr_U1[u]:indptr_U1[u + 1]`.
    """

    user_N: np.ndarray
    item_N: np.ndarray
    time_N: np.ndarray
    weight_N: np.ndarray
    indptr_U1: np.ndarray
    num_items: int

    def __len__(self) -> int:
        return len(self.user_N)

    @property
    def num_users(self) -> int:
        return len(self.indptr_U1) - 1

    @property
    def sequences(self) -> Ragged:
        """Item sequence of every user, in time order."""
        return Ragged(self.item_N, self.indptr_U1[:-1], self.indptr_U1[1:])

    def item_counts(self) -> np.ndarray:
        return np.bincount(self.item_N, minlength=self.num_items)

    def take(self, keep_N: np.ndarray) -> "Log":
        """The rows selected by a boolean mask; user and item index spaces stay as they are."""
        user_N = self.user_N[keep_N]
        indptr = np.searchsorted(user_N, np.arange(self.num_users + 1))
        return Log(
            user_N, self.item_N[keep_N], self.time_N[keep_N], self.weight_N[keep_N], indptr, self.num_items
        )


@dataclass(frozen=True)
class Dense:
    """One modality of the items or users as a model sees it: rows in catalogue order, no ids.

    values_EF: float32, NaN in absent rows; present_E: bool.
    """

    values_EF: np.ndarray
    present_E: np.ndarray

    @property
    def width(self) -> int:
        return self.values_EF.shape[1]

    def take(self, rows: np.ndarray) -> "Dense":
        """These rows, by index or mask."""
        return Dense(self.values_EF[rows], self.present_E[rows])


@dataclass(frozen=True)
class Form:
    """A model as a torch-free program plus arrays: what a bundle stores and serving runs.

    program: one of `recsys.serving.forms.PROGRAMS`. arrays: named weights. item_vectors_ID: float32 rows of
    the catalogue where scoring is a dot product; `widths` are its nested prefixes, ascending, the last
    being D. item_bias_I is added to every width's scores. meta: JSON values the program needs. encoding: how the
    vectors of items come from content (`recsys.item_encoding`, `recsys.neighbour_encoding`), where the model is
    inductive.
    """

    program: str
    arrays: Mapping[str, np.ndarray]
    meta: Mapping[str, object] = field(default_factory=dict)
    item_vectors_ID: np.ndarray | None = None
    item_bias_I: np.ndarray | None = None
    widths: tuple[int, ...] = ()
    encoding: "ItemEncoding | NeighbourEncoding | None" = None


def among(values: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """np.isin by a sorted search: several times as quick where one side is short."""
    if not len(keys):
        return np.zeros(values.shape, bool)
    keys = np.sort(keys)
    return keys[np.minimum(np.searchsorted(keys, values), len(keys) - 1)] == values


def pick(scores_QI: np.ndarray, candidates: np.ndarray | None) -> np.ndarray:
    """The candidates' columns of full scores: [C] or [Q, C], candidate -1 gives -inf; all columns for None."""
    if candidates is None:
        return scores_QI
    candidates = np.broadcast_to(candidates, (len(scores_QI), np.shape(candidates)[-1]))
    chosen_QC = np.take_along_axis(scores_QI, np.maximum(candidates, 0), axis=1)
    return np.where(candidates < 0, -np.inf, chosen_QC).astype(np.float32)


def legal_width(width: int | None, widths: tuple[int, ...]) -> int | None:
    """The width itself, the full one for None (None where there are no widths). Raises ModelError for another."""
    if width is None:
        return widths[-1] if widths else None
    if width not in widths:
        legal = f"one of: {', '.join(map(str, widths))}" if widths else "none given: this model has one width"
        raise ModelError(f"width {width}", expected=legal)
    return width

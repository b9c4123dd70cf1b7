"""Splits and scorers written down by hand, without files."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from recsys.schema import Queries, pick
from recsys.splits import Split, SplitConfig, make_log

Lists = Sequence[Sequence[int]]


def split_of(train: Lists, valid: Lists, test: Lists, items: int, *, name: str = "hand", **config) -> Split:
    """User u did train[u], then valid[u], then test[u]; item -1 lies outside the catalogue.

    Item ids are "i0", "i1", ...; times count up from 0, all users together.
    """
    user, item, part = [], [], []
    for row, parts in enumerate(zip(train, valid, test, strict=True)):
        for code, found in enumerate(parts):
            user += [row] * len(found)
            item += found
            part += [code] * len(found)
    item_N = np.array(item, np.int64)
    outside_N = item_N < 0  # each an item of its own
    item_N[outside_N] = -1 - np.arange(outside_N.sum())
    log = make_log(
        np.array(user, np.int64),
        item_N,
        np.arange(len(user)),
        np.ones(len(user), np.float32),
        len(train),
        items,
    )
    return Split(
        SplitConfig(method="user_ratio", **config),
        name,
        pl.Series("user_id", np.arange(len(train))),
        pl.Series("item_id", [f"i{number}" for number in range(items)]),
        log,
        np.array(part, np.int8),
        {},
    )


@dataclass
class Table:
    """A scorer that looks a user's scores up: scores_UI; `by_width` for one with nested widths."""

    scores_UI: np.ndarray
    by_width: dict[int, np.ndarray] | None = None

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(self.by_width or ())

    def score(
        self, queries: Queries, candidates: np.ndarray | None = None, width: int | None = None
    ) -> np.ndarray:
        scores_UI = self.scores_UI if width is None else self.by_width[width]
        return pick(scores_UI[queries.user_Q].astype(np.float32), candidates)

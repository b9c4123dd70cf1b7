"""What the ranker is told of a candidate, as of the time of the query. The same function offline and in service.

NaN stands for what is not known; trees take it as it is. NumPy only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from recsys.popularity import COLUMNS, DAY, Snapshot
from recsys.schema import Ragged

JUDGED = ("judged.place", "judged.users")
"""What a prompted model thought of an item: its mean place, 0 = best, 1 = last, and log(1 + users it was asked for)."""
RECENT = 10
"""Newest history items that a candidate is compared with."""
_REST = 7
"""Columns after the counts that are there in every case."""
AGREED = 20
"""A generator is for a candidate where it has fewer than so many better ones."""


@dataclass(frozen=True)
class Items:
    """What is known of items apart from counts.

    content: table -> [I, D], rows of length one, zeros where an item lacks it. present: table -> [I]. categories: codes
    of every item's categories. judged: [I, 2] what a prompted model thought of them (see `JUDGED`); None = nothing.
    """

    content: Mapping[str, np.ndarray]
    present: Mapping[str, np.ndarray]
    categories: Ragged
    num_categories: int
    judged: np.ndarray | None = None

    def take(self, items: np.ndarray) -> "Items":
        return Items(
            {name: rows_ID[items] for name, rows_ID in self.content.items()},
            {name: mask_I[items] for name, mask_I in self.present.items()},
            self.categories.take(items),
            self.num_categories,
            None if self.judged is None else self.judged[items],
        )

    def joined(self, other: "Items") -> "Items":
        """These, then the others."""
        codes = [part.categories.flat()[1] for part in (self, other)]
        lengths = np.concatenate([self.categories.lengths, other.categories.lengths])
        return Items(
            {name: np.concatenate([rows, other.content[name]]) for name, rows in self.content.items()},
            {name: np.concatenate([mask, other.present[name]]) for name, mask in self.present.items()},
            Ragged.from_lengths(np.concatenate(codes), lengths),
            max(self.num_categories, other.num_categories),
            None if self.judged is None else np.concatenate([self.judged, _unjudged(len(other))]),
        )

    def __len__(self) -> int:
        return len(self.categories)


def _unjudged(count: int) -> np.ndarray:
    return np.tile(np.array([np.nan, 0], np.float32), (count, 1))


@dataclass(frozen=True)
class Asked:
    """Who asks: item indices oldest first, their times in UTC seconds (None where they are not known), and when."""

    history: np.ndarray
    times: np.ndarray | None
    at: int


def feature_names(generators: Sequence[str], tables: Sequence[str], *, judged: bool = False) -> list[str]:
    """Of the columns of `ranking_features`, in order. judged: for items of which that is known."""
    return [
        *(f"{name}.{what}" for name in generators for what in ("z", "rank")),
        "agree",
        "best_rank",
        *(f"{name}.{what}" for name in tables for what in ("last", "mean", "max", "missing")),
        *COLUMNS,
        "category_affinity",
        "repeat",
        "user_events",
        "user_days_since",
        "user_category_entropy",
        "hour",
        "weekday",
        *(JUDGED if judged else ()),
    ]


@dataclass(frozen=True)
class UserSide:
    """What a history alone says, whatever the candidates are.

    seen: its items, ascending. recent: table -> [R, D] content of those of its newest items that have any, oldest
    first. codes, shares: its categories, and the share that each has in it, an item with several counting in parts.
    entropy: of those shares, NaN without any.
    """

    seen: np.ndarray
    recent: Mapping[str, np.ndarray]
    codes: np.ndarray
    shares: np.ndarray
    entropy: float

    @classmethod
    def of(cls, history: np.ndarray, items: Items) -> "UserSide":
        newest = history[-RECENT:]
        recent = {
            name: rows_ID[newest[items.present[name][newest]]] for name, rows_ID in items.content.items()
        }
        categories = items.categories.take(history)
        rows, codes = categories.flat()
        weights_K = np.bincount(codes, 1 / categories.lengths[rows], items.num_categories)
        held = np.flatnonzero(weights_K)
        shares = weights_K[held] / weights_K.sum() if len(held) else np.zeros(0)
        entropy = float(-(shares * np.log(shares)).sum()) if len(held) else np.nan
        return cls(np.sort(history), recent, held, shares, entropy)


def ranking_features(
    asked: Asked,
    candidates: np.ndarray,
    scores_GC: np.ndarray,
    snapshot: Snapshot,
    items: Items,
    new: Items | None = None,
    user: UserSide | None = None,
) -> np.ndarray:
    """[C, F] float32, columns as `feature_names` has them.

    candidates: item indices [C]; those from len(items) on are rows of `new`, items that nobody has taken yet.
    scores_GC: each generator's scores of them, NaN where it cannot say. snapshot: of the day of the query. user:
    `UserSide.of(asked.history, items)`, where it is known already.
    """
    user = UserSide.of(asked.history, items) if user is None else user
    if new is not None and len(new):
        known, fresh = candidates[candidates < len(items)], candidates[candidates >= len(items)] - len(items)
        here = items.take(known).joined(new.take(fresh))
        order = np.argsort(np.argsort(candidates >= len(items), kind="stable"), kind="stable")
        here = here.take(order)
    else:
        here = items.take(candidates)
    voices = 2 * len(scores_GC) + 2
    tables = voices + 4 * len(here.content)
    counts = tables + len(COLUMNS)
    judged = 0 if here.judged is None else len(JUDGED)
    features_CF = np.empty((len(candidates), counts + _REST + judged), np.float32)
    _agreement(scores_GC, features_CF[:, :voices])
    _likeness(user.recent, here, features_CF[:, voices:tables])
    _counts(snapshot, candidates, features_CF[:, tables:counts])
    shares_K = np.zeros(items.num_categories)
    shares_K[user.codes] = user.shares
    features_CF[:, counts] = _affinity(shares_K, here.categories)
    features_CF[:, counts + 1] = _within(user.seen, candidates)
    since = np.nan
    if asked.times is not None and len(asked.times):
        since = max(asked.at - int(asked.times[-1]), 0) / DAY
    hour, weekday = (
        asked.at % DAY // 3600,
        (asked.at // DAY + 3) % 7,
    )  # 1970-01-01 was a Thursday; Monday is 0
    about_user = np.log1p(len(asked.history)), since, user.entropy, hour, weekday
    features_CF[:, counts + 2 : counts + _REST] = about_user
    if here.judged is not None:
        features_CF[:, counts + _REST :] = here.judged
    return features_CF


def _agreement(scores_GC: np.ndarray, out_CF: np.ndarray) -> None:
    """By generator: the score in standard deviations of these candidates, and log(1 + number of better ones); then how
    many generators are for it, and its best rank."""
    scores_GC = scores_GC.astype(np.float64)
    generators, count = scores_GC.shape
    untold_GC = np.isnan(scores_GC)
    untold = bool(untold_GC.any())
    told_G1, filled_GC = count, scores_GC
    if untold:
        told_G1 = np.maximum(count - untold_GC.sum(axis=1, keepdims=True), 1)
        filled_GC = np.where(untold_GC, 0, scores_GC)
    apart_GC = scores_GC - filled_GC.sum(axis=1, keepdims=True) / told_G1
    squares_GC = apart_GC * apart_GC
    if untold:
        squares_GC[untold_GC] = 0
    spread_G1 = np.sqrt(squares_GC.sum(axis=1, keepdims=True) / told_G1)
    z_GC = np.divide(apart_GC, spread_G1, out=np.zeros_like(apart_GC), where=spread_G1 > 0)

    # the best first, NaN last: a candidate's rank is where those that score the same begin
    falling_GC = -scores_GC
    order_GC = np.argsort(falling_GC, axis=1) + count * np.arange(generators)[:, None]  # into the flat array
    sorted_GC = falling_GC.ravel()[order_GC]
    places_GC = np.zeros((generators, count), np.int64)
    places_GC[:, 1:] = (sorted_GC[:, 1:] != sorted_GC[:, :-1]) * np.arange(1, count)
    ranks_GC = np.empty((generators, count), np.int64)
    ranks_GC.ravel()[order_GC] = np.maximum.accumulate(places_GC, axis=1)
    log_GC = np.log1p(np.arange(count))[ranks_GC]
    for_GC = ranks_GC < AGREED
    if untold:
        z_GC[untold_GC] = log_GC[untold_GC] = np.nan
        for_GC &= ~untold_GC
    out_CF[:, 0:-2:2], out_CF[:, 1:-2:2] = z_GC.T, log_GC.T
    out_CF[:, -2], out_CF[:, -1] = for_GC.sum(axis=0), np.fmin.reduce(log_GC, axis=0)


def _likeness(recent: Mapping[str, np.ndarray], here: Items, out_CF: np.ndarray) -> None:
    """By table: cosine with the newest history item that has it, mean and maximum over the recent ones, and whether the
    candidate lacks it."""
    for start, (name, rows_CD) in zip(range(0, out_CF.shape[1], 4), here.content.items(), strict=True):
        lacking_C, recent_RD = ~here.present[name], recent[name]
        out_C4 = out_CF[:, start : start + 4]
        if len(recent_RD):
            cosine_RC = recent_RD @ rows_CD.T
            out_C4[:, 0], out_C4[:, 1], out_C4[:, 2] = (
                cosine_RC[-1],
                cosine_RC.sum(axis=0) / len(cosine_RC),
                cosine_RC.max(axis=0),
            )
            if lacking_C.any():
                out_C4[lacking_C] = np.nan
        else:
            out_C4[:] = np.nan
        out_C4[:, 3] = lacking_C


def _counts(snapshot: Snapshot, candidates: np.ndarray, out_CF: np.ndarray) -> None:
    """The columns of the snapshot; an item beyond it has had no event."""
    known = len(snapshot.values_IF)
    beyond = candidates >= known
    if not beyond.any():
        out_CF[:] = snapshot.values_IF[candidates]
        return
    out_CF[:] = snapshot.values_IF[np.minimum(candidates, known - 1)]
    out_CF[beyond] = 0
    out_CF[beyond, COLUMNS.index("age_days")] = np.nan
    out_CF[beyond, COLUMNS.index("cold")] = 1


def _affinity(shares_K: np.ndarray, categories: Ragged) -> np.ndarray:
    """[C] mean share of the candidate's categories; NaN without categories on either side."""
    lengths = categories.lengths
    if not shares_K.any():
        return np.full(len(lengths), np.nan)
    rows, codes = categories.flat()
    if len(codes) and codes.max() >= len(shares_K):
        rows, codes = rows[codes < len(shares_K)], codes[codes < len(shares_K)]
    sums_C = np.bincount(rows, shares_K[codes], len(lengths))
    return np.where(lengths > 0, sums_C / np.maximum(lengths, 1), np.nan)


def _within(ascending: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """[C] whether a candidate is one of them."""
    if not len(ascending):
        return np.zeros(len(candidates), bool)
    return ascending[np.minimum(np.searchsorted(ascending, candidates), len(ascending) - 1)] == candidates

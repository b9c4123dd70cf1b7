"""What the ranker is told of a candidate, as of the time of the query. The same function offline and in service.

NaN stands for what is not known; trees take it as it is. NumPy only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from recsys.popularity import COLUMNS, DAY, Snapshot
from recsys.schema import Ragged, among

RECENT = 10
"""Newest history items that a candidate is compared with."""
AGREED = 20
"""A generator is for a candidate where it has fewer than so many better ones."""


@dataclass(frozen=True)
class Items:
    """What is known of items apart from counts.

    content: table -> [I, D], rows of length one, zeros where an item lacks it. present: table -> [I]. categories: codes
    of every item's categories.
    """

    content: Mapping[str, np.ndarray]
    present: Mapping[str, np.ndarray]
    categories: Ragged
    num_categories: int

    def take(self, items: np.ndarray) -> "Items":
        return Items(
            {name: rows_ID[items] for name, rows_ID in self.content.items()},
            {name: mask_I[items] for name, mask_I in self.present.items()},
            self.categories.take(items),
            self.num_categories,
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
        )

    def __len__(self) -> int:
        return len(self.categories)


@dataclass(frozen=True)
class Asked:
    """Who asks: item indices oldest first, their times in UTC seconds (None where they are not known), and when."""

    history: np.ndarray
    times: np.ndarray | None
    at: int


def feature_names(generators: Sequence[str], tables: Sequence[str]) -> list[str]:
    """Of the columns of `ranking_features`, in order."""
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
    ]


def ranking_features(
    asked: Asked,
    candidates: np.ndarray,
    scores_GC: np.ndarray,
    snapshot: Snapshot,
    items: Items,
    new: Items | None = None,
) -> np.ndarray:
    """[C, F] float32, columns as `feature_names` has them.

    candidates: item indices [C]; those from len(items) on are rows of `new`, items that nobody has taken yet.
    scores_GC: each generator's scores of them, NaN where it cannot say. snapshot: of the day of the query.
    """
    if new is not None and len(new):
        known, fresh = candidates[candidates < len(items)], candidates[candidates >= len(items)] - len(items)
        here = items.take(known).joined(new.take(fresh))
        order = np.argsort(np.argsort(candidates >= len(items), kind="stable"), kind="stable")
        here = here.take(order)
    else:
        here = items.take(candidates)
    count = len(candidates)
    columns = _agreement(scores_GC)
    columns += _likeness(items.take(asked.history[-RECENT:]), here)
    columns += list(_counts(snapshot, candidates).T)
    shares_K = _shares(items, asked.history)
    columns.append(_affinity(shares_K, here.categories))
    columns.append(among(candidates, asked.history).astype(np.float32))
    since = np.nan
    if asked.times is not None and len(asked.times):
        since = max(asked.at - int(asked.times[-1]), 0) / DAY
    mass = shares_K[shares_K > 0]
    entropy = float(-(mass * np.log(mass)).sum()) if len(mass) else np.nan
    hour, weekday = (
        asked.at % DAY // 3600,
        (asked.at // DAY + 3) % 7,
    )  # 1970-01-01 was a Thursday; Monday is 0
    for value in (np.log1p(len(asked.history)), since, entropy, hour, weekday):
        columns.append(np.full(count, value, np.float32))
    return np.stack(columns, axis=1).astype(np.float32, copy=False)


def _agreement(scores_GC: np.ndarray) -> list[np.ndarray]:
    """By generator: the score in standard deviations of these candidates, and log(1 + number of better ones); then how
    many generators are for it, and its best rank."""
    scores_GC = scores_GC.astype(np.float64)
    untold_GC = np.isnan(scores_GC)
    if untold_GC.any():
        told_G1 = (~untold_GC).sum(axis=1, keepdims=True)
        zeros_GC = np.where(untold_GC, 0, scores_GC)
        mean_G1 = zeros_GC.sum(axis=1, keepdims=True) / np.maximum(told_G1, 1)
        apart_GC = np.where(untold_GC, 0, scores_GC - mean_G1)
        spread_G1 = np.sqrt((apart_GC**2).sum(axis=1, keepdims=True) / np.maximum(told_G1, 1))
    else:
        told_G1 = np.full((len(scores_GC), 1), scores_GC.shape[1])
        apart_GC = scores_GC - scores_GC.mean(axis=1, keepdims=True)
        spread_G1 = np.sqrt((apart_GC**2).mean(axis=1, keepdims=True))
    z_GC = np.where(spread_G1 > 0, apart_GC / np.where(spread_G1 > 0, spread_G1, 1), 0.0)
    ranks_GC = np.empty_like(scores_GC)
    for row, sorted_C in enumerate(np.sort(scores_GC, axis=1)):  # NaN sorts last
        told = int(told_G1[row, 0])
        ranks_GC[row] = told - np.searchsorted(sorted_C[:told], scores_GC[row], side="right")
    if untold_GC.any():
        z_GC[untold_GC] = ranks_GC[untold_GC] = np.nan
    log_GC = np.log1p(ranks_GC)
    columns = [column_C for pair in zip(z_GC, log_GC, strict=True) for column_C in pair]
    return [*columns, (ranks_GC < AGREED).sum(axis=0), np.fmin.reduce(log_GC, axis=0)]


def _likeness(recent: Items, here: Items) -> list[np.ndarray]:
    """By table: cosine with the newest history item that has it, mean and maximum over the recent ones, and whether the
    candidate lacks it."""
    columns = []
    for name, rows_CD in here.content.items():
        present_C = here.present[name]
        recent_RD = recent.content[name][recent.present[name]]
        if len(recent_RD):
            cosine_CR = rows_CD @ recent_RD.T
            found = [cosine_CR[:, -1], cosine_CR.mean(axis=1), cosine_CR.max(axis=1)]
            columns += [np.where(present_C, values_C, np.nan) for values_C in found]
        else:
            columns += [np.full(len(present_C), np.nan)] * 3
        columns.append(~present_C)
    return columns


def _counts(snapshot: Snapshot, candidates: np.ndarray) -> np.ndarray:
    """[C, columns of the snapshot]; an item beyond it has had no event."""
    known = len(snapshot.values_IF)
    values_CF = snapshot.values_IF[np.minimum(candidates, known - 1)]
    beyond = candidates >= known
    if beyond.any():
        values_CF[beyond] = 0
        values_CF[beyond, COLUMNS.index("age_days")] = np.nan
        values_CF[beyond, COLUMNS.index("cold")] = 1
    return values_CF


def _shares(items: Items, history: np.ndarray) -> np.ndarray:
    """[K] share of each category in the history, an item with several counting in parts."""
    rows, codes = items.categories.take(history).flat()
    if not len(codes):
        return np.zeros(items.num_categories)
    weights = 1 / items.categories.take(history).lengths[rows]
    shares_K = np.bincount(codes, weights, items.num_categories)
    return shares_K / shares_K.sum()


def _affinity(shares_K: np.ndarray, categories: Ragged) -> np.ndarray:
    """[C] mean share of the candidate's categories; NaN without categories on either side."""
    lengths = categories.lengths
    if not shares_K.any():
        return np.full(len(lengths), np.nan)
    rows, codes = categories.flat()
    known = codes < len(shares_K)
    sums_C = np.bincount(rows[known], shares_K[codes[known]], len(lengths))
    return np.where(lengths > 0, sums_C / np.maximum(lengths, 1), np.nan)

"""Lists that were shown, from an exposure log (`recsys serve --exposures`): what a ranker learns from once it is live.

What somebody took of a list soon after it was shown is an answer to it; what nobody looked at is not told from what was
looked at and left, which is what the places of the items are for (see `position_bias` of `RankerConfig`).
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recsys.errors import DataError
from recsys.files import digest, file_sha256
from recsys.schema import Queries, Ragged
from recsys.splits import Split

_FILES = "exposures-*.jsonl"


@dataclass(frozen=True)
class Shown:
    """queries: who saw the list, as they were known then. items, places (from 0), taken: of each list, flat."""

    queries: Queries
    items: Ragged
    places_N: np.ndarray
    taken_N: np.ndarray

    def __len__(self) -> int:
        return len(self.queries)


def fingerprint(folder: Path) -> str:
    """Of all lines of a log. Raises DataError for a folder without any."""
    return digest([file_sha256(path) for path in _files(folder)])


def shown_lists(folder: Path, split: Split, hours: float) -> Shown:
    """The lists that known users saw between the first and the last row of the ranker part, in order of time, without
    items outside the catalogue.

    hours: how long after a list what is taken counts as an answer to it. Raises DataError for a line that cannot be
    read.
    """
    log = split.fit_log(("train", "ranker"))
    first = int(split.fit_log(("ranker",)).time_N.min(initial=np.iinfo(np.int64).max))
    last = int(log.time_N.max(initial=0))
    user_of = {user: row for row, user in enumerate(split.user_ids.to_list())}
    item_of = {item: index for index, item in enumerate(split.item_ids.to_list())}
    found = []
    for at, user, items in _lines(folder):
        if user in user_of and first <= at <= last:
            known = [(item_of[item], place) for place, item in enumerate(items) if item in item_of]
            if known:
                found.append((at, user_of[user], known))
    found.sort(key=lambda one: one[:2])
    users = np.array([user for _, user, _ in found], np.int64)
    at_Q = np.array([at for at, _, _ in found], np.int64)
    starts, ends, taken = log.indptr_U1[users], np.zeros(len(users), np.int64), []
    for row, (at, user, known) in enumerate(found):
        times = log.time_N[log.indptr_U1[user] : log.indptr_U1[user + 1]]
        ends[row] = starts[row] + np.searchsorted(times, at, "left")
        until = starts[row] + np.searchsorted(times, at + 3600 * hours, "right")
        taken.append(np.isin([item for item, _ in known], log.item_N[ends[row] : until]))
    history, times = Ragged(log.item_N, starts, ends), Ragged(log.time_N, starts, ends)
    return Shown(
        Queries(users, history, at_Q, times=times),
        Ragged.of([[item for item, _ in known] for _, _, known in found]),
        np.array([place for _, _, known in found for _, place in known], np.int64),
        np.concatenate(taken) if taken else np.zeros(0, bool),
    )


def _files(folder: Path) -> list[Path]:
    files = sorted(folder.glob(_FILES))
    if not files:
        raise DataError(
            "no exposure log", where=folder, expected=_FILES, fix="record one: recsys serve --exposures"
        )
    return files


def _lines(folder: Path) -> Iterator[tuple[int, object, list]]:
    """(time, user, items) of every line that was shown to somebody."""
    for path in _files(folder):
        with open(path, encoding="utf-8") as stream:
            for number, text in enumerate(stream, 1):
                try:
                    line = json.loads(text)
                    if line["user"] is not None:
                        yield int(line["time"]), json.loads(line["user"]), line["items"]
                except (ValueError, KeyError, TypeError) as error:
                    raise DataError(
                        f"a line that cannot be read ({error})", where=f"{path}:{number}"
                    ) from None

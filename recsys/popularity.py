"""How often items were taken up to a moment, by windows of whole days: the one place where counts meet a query's time.

A query sees the events of the days before its own (UTC). Nothing of its own day counts: no answer can stand in its own
question, and what was counted for a day holds until the next. NumPy only.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from recsys.schema import Log

DAY = 86_400
"""Seconds."""
WINDOWS = (1, 7, 30, 90, 180)
"""Days."""
COLUMNS = (*(f"popular_{days}d" for days in WINDOWS), "popular_ever", "trend", "age_days", "cold")
"""Of a `Snapshot`: log(1 + count) by window and ever; trend = the last 7 days less the last 30 of that, per day, as
logarithms; days since the item's first event (NaN before it); 1 for an item that has had none."""
_KEPT_DAYS = 4


@dataclass(frozen=True)
class Snapshot:
    """What was known of the items when a day began: values_IF, float32, columns as COLUMNS."""

    day: int
    values_IF: np.ndarray


class Popularity:
    """Counts as of any day, from a log at once or from events as they come.

    The two ways give the same snapshots: `of_log` for training and evaluation, `observe` in service.
    """

    def __init__(self, num_items: int):
        self._days = np.zeros(0, np.int64)
        self._items = np.zeros(0, np.int64)
        self._fresh: list[tuple[int, int]] = []
        self._snapshots: OrderedDict[int, Snapshot] = OrderedDict()
        self.num_items = num_items

    @classmethod
    def of_log(cls, log: Log) -> "Popularity":
        """Of all rows of a log; `as_of` looks at those before a day only."""
        found = cls(log.num_items)
        found._keep(log.time_N // DAY, log.item_N)
        return found

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Popularity":
        """From what `arrays` gave."""
        found = cls(int(arrays["num_items"][0]))
        times = arrays["count"].astype(np.int64)
        found._keep(
            np.repeat(arrays["day"].astype(np.int64), times),
            np.repeat(arrays["item"].astype(np.int64), times),
        )
        return found

    def arrays(self) -> dict[str, np.ndarray]:
        """day [R], item [R], count [R], num_items [1]: how often each item was taken on each day."""
        self._settle()
        cells, counts = np.unique(self._days * self.num_items + self._items, return_counts=True)
        return {
            "day": (cells // self.num_items).astype(np.int32),
            "item": (cells % self.num_items).astype(np.int32),
            "count": counts.astype(np.int32),
            "num_items": np.array([self.num_items]),
        }

    def observe(self, item: int, time: int) -> None:
        """Count one more event; one of an earlier day than those asked for so far counts in them too."""
        day = time // DAY
        self._fresh.append((day, item))
        for asked in [asked for asked in self._snapshots if asked > day]:
            del self._snapshots[asked]

    def grow(self, num_items: int) -> None:
        """Make room for items added since."""
        self.num_items = num_items
        self._snapshots.clear()

    def as_of(self, time: int) -> Snapshot:
        """What was known when the day of `time` (UTC seconds) began."""
        day = int(time) // DAY
        if day not in self._snapshots:
            self._snapshots[day] = self._made(day)
            if len(self._snapshots) > _KEPT_DAYS:
                self._snapshots.popitem(last=False)
        self._snapshots.move_to_end(day)
        return self._snapshots[day]

    def _made(self, day: int) -> Snapshot:
        self._settle()
        until = np.searchsorted(self._days, day)
        columns = []
        for window in WINDOWS:
            start = np.searchsorted(self._days, day - window)
            columns.append(np.bincount(self._items[start:until], minlength=self.num_items))
        ever = np.bincount(self._items[:until], minlength=self.num_items)
        first = np.full(self.num_items, np.iinfo(np.int64).max)
        np.minimum.at(first, self._items[:until], self._days[:until])
        week, month = columns[WINDOWS.index(7)] / 7, columns[WINDOWS.index(30)] / 30
        values = [np.log1p(column) for column in (*columns, ever)]
        values += [np.log1p(week) - np.log1p(month), np.where(ever > 0, day - first, np.nan), ever == 0]
        return Snapshot(day, np.stack(values, axis=1).astype(np.float32))

    def _keep(self, days: np.ndarray, items: np.ndarray) -> None:
        order = np.argsort(days, kind="stable")
        self._days, self._items = days[order], items[order]

    def _settle(self) -> None:
        """Put the events observed since among the others, by day."""
        if self._fresh:
            days, items = np.array(self._fresh, np.int64).T
            self._fresh = []
            self._keep(np.concatenate([self._days, days]), np.concatenate([self._items, items]))

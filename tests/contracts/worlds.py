"""Planted data as models see it: a split and aligned tables, made once."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import planted
from hash_text import HashText, HashTextConfig

from recsys.features.extract import extract
from recsys.models.base import FitContext
from recsys.schema import Dense, Log
from recsys.splits import Split, SplitConfig, make_split

KINDS = ("co_occurrence", "order", "content", "hidden")


@dataclass(frozen=True, eq=False)
class World:
    """One planted Dataset, cut and encoded. tables: (entity, name) -> rows in catalogue order."""

    split: Split
    tables: Mapping[tuple[str, str], Dense]

    def context(self, *, seed: int = 0, log: Log | None = None, tables=None) -> FitContext:
        """What fitting sees; `log` and `tables` take the place of the world's own."""
        return FitContext(
            self.split.fit_log() if log is None else log,
            self.tables if tables is None else tables,
            seed=seed,
        )


@cache
def world(kind: str) -> World:
    """co_occurrence, order, content (cold items at the end), hidden (content, a fifth of the texts absent)."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        if kind == "co_occurrence":
            dataset, method = planted.co_occurrence(path / "data"), "leave_last_out"
        elif kind == "order":
            # 7 has order 40 modulo 41: the chain is one long cycle, so a target is seldom in its own history
            dataset, method = planted.order(path / "data", items=41), "leave_last_out"
        else:
            dataset, method = planted.content(path / "data"), "global_time"
        split = make_split(dataset, SplitConfig(method=method, catalogue="listed"))
        extractor = HashText(HashTextConfig(hide=0.2 if kind == "hidden" else 0.0))
        table, _ = extract(dataset, extractor, "text", path / "store", progress=False)
        return World(split, {("item", "text"): table.align(split.item_ids)})

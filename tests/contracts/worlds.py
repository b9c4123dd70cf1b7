"""Planted data as models see it: a split and aligned tables, made once."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import planted
from hash_text import HashText, HashTextConfig

from recsys.features.extract import extract
from recsys.fields import Categorical, Fields, MultiValued
from recsys.graph_config import CoOccurrenceConfig, GraphConfig, NearestConfig, ValuesConfig
from recsys.item_graph import ItemGraph
from recsys.models.base import FitContext
from recsys.models.graph.build import build_graph
from recsys.schema import Dense, Log, Ragged
from recsys.splits import Split, SplitConfig, make_split

KINDS = ("co_occurrence", "attributes", "order", "content", "hidden")


@dataclass(frozen=True, eq=False)
class World:
    """One planted Dataset, cut and encoded. tables: (entity, name) -> rows in catalogue order."""

    split: Split
    tables: Mapping[tuple[str, str], Dense | Fields]

    def context(self, *, seed: int = 0, log: Log | None = None, tables=None) -> FitContext:
        """What fitting sees; `log` and `tables` take the place of the world's own."""
        log = self.split.fit_log() if log is None else log
        tables = self.tables if tables is None else tables
        return FitContext(log, tables, seed=seed, graph=graph_of(log, tables))


def graph_of(log: Log, tables: Mapping[tuple[str, str], Dense | Fields]) -> ItemGraph:
    """All relations that planted data has."""
    about_items = {name: table for (entity, name), table in tables.items() if entity == "item"}
    config = GraphConfig(
        knn=NearestConfig(neighbours=5, mutual=False),
        co_occurrence=CoOccurrenceConfig(neighbours=5),
        values=ValuesConfig(tables=("about",)) if "about" in about_items else None,
    )
    return build_graph(config, log, about_items)


@cache
def world(kind: str) -> World:
    """co_occurrence, attributes (the same: users' fields name their group), order, content (cold items at the end),
    hidden (content, a fifth of the texts absent)."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        if kind in ("co_occurrence", "attributes"):
            dataset, method = planted.co_occurrence(path / "data"), "leave_last_out"
        elif kind == "order":
            # 7 has order 40 modulo 41: the chain is one long cycle, so a target is seldom in its own history
            dataset, method = planted.order(path / "data", items=41), "leave_last_out"
        else:
            dataset, method = planted.content(path / "data"), "global_time"
        split = make_split(dataset, SplitConfig(method=method, catalogue="listed"))
        extractor = HashText(HashTextConfig(hide=0.2 if kind == "hidden" else 0.0))
        table, _ = extract(dataset, extractor, "text", path / "store", progress=False)
        text = table.align(split.item_ids)
        about = _about(kind, split)
        return World(split, {("item", "text"): text, **about})


def _about(kind: str, split: Split) -> dict[tuple[str, str], Fields]:
    """Typed fields that name the planted group of users and items; where there are no groups, they say nothing. In the
    hidden world a fifth of the users tell nothing."""
    rng = np.random.default_rng(6)
    users_U, items_I = split.user_ids.to_numpy(), split.item_ids.to_numpy()
    size = {"co_occurrence": 10, "attributes": 10, "order": 41}.get(kind, 12)
    present_U = rng.random(len(users_U)) >= (0.2 if kind == "hidden" else 0.0)
    group_U = np.where(present_U, users_U % 4 + 1, 0)
    one = Categorical(items_I // size + 1, np.ones(len(items_I), bool), 5)
    many = MultiValued(Ragged.from_lengths(items_I // size + 1, np.ones(len(items_I), int)), one.present_E, 5)
    return {
        ("user", "about"): Fields({"group": Categorical(group_U, present_U, 5)}),
        ("item", "about"): Fields({"group": one, "groups": many}),
    }

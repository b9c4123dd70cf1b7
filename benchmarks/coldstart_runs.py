"""Fits and evaluations behind benchmarks/coldstart.py, kept on disk: each is made once."""

import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recsys.config import parse
from recsys.evaluate import Evaluation, evaluate, validation_metric
from recsys.fields import Fields
from recsys.files import digest
from recsys.fitting import aligned_tables, tables_of
from recsys.models.base import FitContext, Model
from recsys.pipeline import plan
from recsys.protocol import Protocol
from recsys.recipe import Recipe, load_recipe, merge, model_tables
from recsys.registry import MODELS, load_class
from recsys.schema import Dense, Queries, Ragged
from recsys.splits import Split
from recsys.stats import bootstrap_intervals, holm, paired_test
from recsys.train import fit
from recsys.train_config import TrainConfig

SLICES = ("pool", "count")
Tables = Mapping[tuple[str, str], Dense | Fields]


@dataclass(frozen=True)
class Place:
    """A split of a recipe's data, with its feature tables."""

    recipe: Recipe
    split: Split
    tables: Tables
    root: Path

    @classmethod
    def of(cls, name: str, root: Path, *assignments: str) -> "Place":
        """Data, split and features are made where they are not there yet."""
        recipe = load_recipe(name, ["track.enabled=false", *assignments])
        line = plan(recipe, root)
        ready = [box for box in line.boxes if box in ("data", "split") or box.startswith("features.")]
        line.run(started=lambda box: None, finished=lambda box, cached: None, until=ready[-1])
        split = Split.load(line.boxes["split"].folder)
        boxes = {box.partition(".")[2]: line.boxes[box] for box in ready if box.startswith("features.")}
        return cls(recipe, split, aligned_tables(split, boxes), root)

    def job(self, name: str, changes: Mapping[str, Any]) -> tuple[str, Mapping[str, Any], TrainConfig]:
        """(kind, settings, loop) of a model of the recipe with changes; those of the loop under "train"."""
        changes = dict(changes)
        kind, settings, train = model_tables(self.recipe)[name]
        loop = merge(train.model_dump(), changes.pop("train", {}))
        return kind, merge(dict(settings), changes), parse(TrainConfig, loop, where=name)


def fitted(
    place: Place, name: str, seed: int, changes: Mapping[str, Any], tables: Tables | None = None
) -> Model:
    kind, settings, train = place.job(name, changes)
    model_class = load_class(kind, MODELS, Model)
    model = model_class(parse(model_class.Config, settings, where=name))
    tables = place.tables if tables is None else tables
    read = {key: table for key, table in tables.items() if key[1] in tables_of(model.config)}
    ctx = FitContext(place.split.fit_log(), read, seed, validate=lambda one: validated(place, one, train))
    fit(model, ctx, train)
    return model


def validated(place: Place, model: Model, train: TrainConfig) -> float:
    monitor = train.monitor
    harmonic = monitor.pools == "harmonic"
    return validation_metric(model, place.split, "valid", monitor.metric, monitor.mask, harmonic=harmonic)


def judged(
    place: Place,
    name: str,
    seed: int = 0,
    changes: Mapping[str, Any] | None = None,
    *,
    part: str = "test",
    control: str = "",
) -> Evaluation:
    """The evaluation of one fit on a part. control: what is done to the content of items before (see `CONTROLS`)."""
    changes = changes or {}
    kind, settings, train = place.job(name, changes)
    looped = load_class(kind, MODELS, Model).looped
    content = {"/".join(key): table_digest(table) for key, table in place.tables.items()}
    key = [
        place.split.id,
        kind,
        settings,
        train.model_dump(mode="json") if looped else None,
        seed if looped else None,
        part,
        control,
        content,
    ]
    folder = place.root / "coldstart" / f"{name}-{digest(key)[:16]}"
    if not (folder / "evaluation.json").exists():
        tables = CONTROLS[control](place.tables) if control else None
        model = fitted(place, name, seed, changes, tables)
        protocol = Protocol(ks=(10, 20), slices=SLICES, bootstrap=0)
        evaluate(model, place.split, part, protocol, name=name, progress=False).save(folder)
    return Evaluation.load(folder)


@dataclass(frozen=True)
class Job:
    """What `judged` is asked for."""

    place: Place
    name: str
    seed: int
    changes: Mapping[str, Any] | None
    part: str
    control: str

    def __call__(self) -> tuple[str, float]:
        """(name, CPU seconds it took)."""
        started = time.process_time()
        judged(self.place, self.name, self.seed, self.changes, part=self.part, control=self.control)
        return self.name, time.process_time() - started


def prepare(jobs: Sequence[Job], workers: int) -> None:
    """Make what is not there yet, several at once, each on one thread."""
    spent: dict[str, float] = {}
    with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        # recipes name what is quick first; long fits begun last would leave cores idle
        for done in as_completed([pool.submit(job) for job in reversed(jobs)]):
            name, seconds = done.result()
            spent[name] = spent.get(name, 0) + seconds
    for name, seconds in spent.items():
        print(f"    {name}: {seconds:.0f} CPU s", file=sys.stderr, flush=True)


def table_digest(table: Dense | Fields) -> str:
    values_EF = (table.dense() if isinstance(table, Fields) else table).values_EF
    return digest([values_EF.shape, float(np.nansum(values_EF, dtype=np.float64))])


# Several evaluations of a model: one a partition, each of several seeds.


@dataclass(frozen=True)
class Column:
    """Values of a metric of all queries of all partitions, the mean over seeds of each."""

    values_Q: np.ndarray
    users_Q: np.ndarray

    @classmethod
    def of(cls, found: Sequence[Sequence[Evaluation]], key: str) -> "Column":
        values = [np.mean([one.per_query[key].to_numpy() for one in seeds], axis=0) for seeds in found]
        return cls(
            np.concatenate(values), np.concatenate([seeds[0].per_query["user"].to_numpy() for seeds in found])
        )

    @property
    def mean(self) -> float:
        return float(np.nanmean(self.values_Q))

    def shown(self) -> str:
        low, high = bootstrap_intervals(self.values_Q[:, None], self.users_Q, 1000, 0)[:, 0]
        return f"{self.mean:.4f} [{low:.4f}, {high:.4f}]"


def against(own: Column, rivals: Mapping[str, Column]) -> list[str]:
    """Lines of paired tests of one model against each of the others, best first, with Holm's correction."""
    order = sorted(rivals, key=lambda name: -rivals[name].mean)
    tests = []
    for name in order:
        there_Q = np.isfinite(own.values_Q) & np.isfinite(rivals[name].values_Q)
        tests.append(paired_test(own.values_Q[there_Q], rivals[name].values_Q[there_Q], own.users_Q[there_Q]))
    adjusted = holm([test["p"] for test in tests])
    return [
        f"{name}: {test['difference']:+.4f} [{test['low']:+.4f}, {test['high']:+.4f}], p = {p:.4f}"
        for name, test, p in zip(order, tests, adjusted, strict=True)
    ]


# What is done to content, and to histories


def _shuffled(tables: Tables) -> Tables:
    """All rows of an item's content stay together, and go to another item."""
    found = dict(tables)
    for key, table in tables.items():
        if key[0] == "item":
            size = len(table.present_E)
            found[key] = table.take(np.random.default_rng(0).permutation(size))
    return found


def _constant(tables: Tables) -> Tables:
    """Every item has the content of the first."""
    return {
        key: table.take(np.zeros(len(table.present_E), np.int64)) if key[0] == "item" else table
        for key, table in tables.items()
    }


CONTROLS = {"shuffled": _shuffled, "constant": _constant}


@dataclass(frozen=True)
class FirstShots:
    """A model that is shown the first k events of every history and no more."""

    model: Model
    shots: int

    @property
    def widths(self) -> tuple[int, ...]:
        return self.model.widths

    def score(
        self, queries: Queries, candidates: np.ndarray | None = None, width: int | None = None
    ) -> np.ndarray:
        history = queries.history
        ends = np.minimum(history.ends, history.starts + self.shots)
        short = Ragged(history.values, history.starts, ends)
        asked = Queries(queries.user_Q, short, queries.at_Q, queries.user_fields, queries.context_fields)
        return self.model.score(asked, candidates, width)

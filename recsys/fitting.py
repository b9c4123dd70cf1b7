"""Fitting the models of a run: one box per model and seed, and the choice among them on validation."""

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from recsys.boxes import Box
from recsys.config import Config, parse
from recsys.errors import ConfigError, nearest
from recsys.evaluate import validation_metric
from recsys.features.field_table import load_table
from recsys.fields import Fields
from recsys.files import new_folder, write_json
from recsys.graphs import load_graph
from recsys.models.base import FitContext, Model
from recsys.registry import MODELS, load_class
from recsys.schema import Dense
from recsys.splits import Split
from recsys.train import Progress, fit
from recsys.train_config import MonitorConfig, TrainConfig

logger = logging.getLogger("recsys")

VERSION = 2
"""Of what the folder of a fit holds."""


@dataclass(frozen=True)
class Job:
    """One model to fit: registered name, its config, the loop's settings, seed, and where it runs."""

    name: str
    kind: str
    config: Config
    train: TrainConfig
    seed: int
    device: str

    def settings(self) -> dict[str, Any]:
        """What the fitted model depends on; a closed-form model takes nothing from the loop but its parts
        and the validation metric it is compared by."""
        model_class = load_class(self.kind, MODELS, Model)
        loop = self.train.model_dump(mode="json", exclude={"checkpoint_steps"})  # changes no result
        if not model_class.looped:
            loop = {key: loop[key] for key in ("fit_parts", "monitor")}
        seed = self.seed if model_class.looped else None
        return {
            "model": self.kind,
            "config": self.config.model_dump(mode="json"),
            "train": loop,
            "seed": seed,
        }


@dataclass(frozen=True)
class Fit:
    """A job and the box its model lies in."""

    job: Job
    box: Box

    def facts(self) -> dict[str, Any]:
        return json.loads((self.box.folder / "fit.json").read_text())

    def model(self) -> Model:
        return load_fitted(self.box.folder)


def load_fitted(folder: Path) -> Model:
    """The model in the folder of a fit."""
    facts = json.loads((folder / "fit.json").read_text())
    model_class = load_class(facts["model"], MODELS, Model)
    config = parse(model_class.Config, facts["config"], where=folder)
    return model_class.from_state(config, load_file(folder / "state.safetensors"))


def model_config(
    model_class: type[Model], settings: Mapping[str, Any], name: str, tables: set[str]
) -> Config:
    """The validated config of a model; raises ConfigError where it names a table the recipe lacks."""
    config = parse(model_class.Config, settings, where=f"models.{name}")
    for table in tables_of(config):
        if table not in tables:
            fix = nearest(table, tables) if tables else f"add [features.{table}]"
            raise ConfigError(f"models.{name}.tables names {table!r}, which [features] lacks", fix=fix)
    return config


def tables_of(config: Config) -> tuple[str, ...]:
    """Feature tables a model reads: its config's field `tables`, by convention."""
    return tuple(getattr(config, "tables", ()))


def graph_box(parts: tuple[str, ...]) -> str:
    """Name of the box of the graph around items that these parts make."""
    return f"graph.{'_'.join(parts)}"


def context(
    split: Split,
    job: Job,
    tables: Mapping[str, Box],
    folder: Path | None = None,
    *,
    graph: Box | None = None,
    validates: bool = True,
) -> FitContext:
    """What fitting may see: the rows of its parts, the aligned tables, the graph around items, a validation metric."""
    monitor = job.train.monitor

    def validate(model: Model) -> float:
        return validation_metric(
            model,
            split,
            "valid",
            monitor.metric,
            monitor.mask,
            monitor.width,
            monitor.queries,
            window=monitor.window,
            harmonic=monitor.pools == "harmonic",
            fit_parts=job.train.fit_parts,
        )

    log = split.fit_log(job.train.fit_parts)
    known = aligned_tables(split, tables)
    around = None if graph is None else load_graph(graph.folder, split, tables)
    return FitContext(log, known, job.seed, job.device, folder, validate if validates else None, around)


def aligned_tables(split: Split, tables: Mapping[str, Box]) -> dict[tuple[str, str], Dense | Fields]:
    """(entity, name) -> rows in the split's order of items or users.

    Raises FeatureError for a table fitted under another split.
    """
    aligned = {}
    for name, box in tables.items():
        table = load_table(box.folder)
        table.check_split(split.id)
        ids = split.item_ids if table.entity == "item" else split.user_ids
        aligned[table.entity, name] = table.align(ids)
    return aligned


def make_fit(
    box: Box, job: Job, split_box: Box, tables: Mapping[str, Box], selected: Box | None, graph: Box | None
) -> None:
    """Fit and keep the state. `selected`: the earlier fit that fixes the number of epochs of this one."""
    split = Split.load(split_box.folder)
    validates = "valid" not in job.train.fit_parts
    train = job.train
    if selected is not None:
        epochs = json.loads((selected.folder / "fit.json").read_text())["progress"]["best_epoch"] + 1
        train = train.model_copy(update={"epochs": max(epochs, 1)})
    ctx = context(split, job, tables, box.scratch, graph=graph, validates=validates)
    model = load_class(job.kind, MODELS, Model)(job.config)
    started = time.monotonic()
    progress = fit(model, ctx, train, lambda metrics, epoch: logger.info("%s", _epoch_line(metrics, epoch)))
    facts = {
        "name": job.name,
        "model": job.kind,
        "config": job.config.model_dump(mode="json"),
        "seed": job.seed,
        "seconds": time.monotonic() - started,
        "progress": {"best_epoch": progress.best_epoch, "history": progress.history},
        "valid": _measure(ctx, model, progress) if validates else None,
        "monitor": job.train.monitor.model_dump(mode="json"),
    }
    with new_folder(box.folder) as folder:
        state = {name: np.ascontiguousarray(value) for name, value in model.state().items()}
        save_file(state, folder / "state.safetensors")
        write_json(folder / "fit.json", facts)


def _epoch_line(metrics: Mapping[str, float], epoch: int) -> str:
    valid = f", validation {metrics['valid']:.4f}" if "valid" in metrics else ""
    return f"    epoch {epoch + 1}: loss {metrics['loss']:.4f}{valid} ({metrics['seconds']:.1f} s)"


def _measure(ctx: FitContext, model: Model, progress: Progress) -> float:
    """The validation metric of the kept state."""
    return progress.best_metric if progress.best_metric is not None else ctx.validate(model)


def make_selection(box: Box, fits: list[Fit], monitor: MonitorConfig) -> None:
    """The model with the best validation metric, mean over its seeds; test data is not in reach.

    monitor: the recipe's. A model that is watched by another one has a figure of another kind and is not chosen, unless
    all have.
    """
    scores: dict[str, list[float]] = {}
    for one in fits:
        value = one.facts()["valid"]
        if value is not None:
            scores.setdefault(one.job.name, []).append(value)
    names = list(dict.fromkeys(one.job.name for one in fits))
    if scores:
        means = {name: float(np.mean(values)) for name, values in scores.items()}
        alike = {one.job.name for one in fits if _same_figure(one.job.train.monitor, monitor)} & means.keys()
        chosen = max(alike or means, key=lambda name: means[name])
    elif len(names) == 1:
        means, chosen = {}, names[0]  # fitted on the validation part as well: there is nothing to choose
    else:
        raise ConfigError(
            "several models were fitted on the validation part, so none can be selected",
            where="train.fit_parts",
            fix='fit on ["train"] and set select.refit = ["train", "valid"]',
        )
    with new_folder(box.folder) as folder:
        write_json(folder / "selected.json", {"model": chosen, "valid": means, "seeds": scores})


def _same_figure(one: MonitorConfig, other: MonitorConfig) -> bool:
    """How many queries it is taken over is no matter."""
    return one.model_copy(update={"queries": other.queries}) == other


def selected_fit(fits: list[Fit], select: Box) -> Fit:
    """The chosen model's fit of the first seed: what is shipped."""
    name = json.loads((select.folder / "selected.json").read_text())["model"]
    return next(one for one in fits if one.job.name == name)

"""Search for settings: Optuna proposes, validation judges; the test part is taken away before the first trial."""

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from recsys.boxes import Box
from recsys.config import parse
from recsys.errors import ConfigError, TrainingError, nearest, require
from recsys.files import digest, locked
from recsys.fitting import Job, context, graph_box, model_config, tables_of
from recsys.models.base import Model
from recsys.pipeline import plan
from recsys.recipe import Recipe, merge, model_tables
from recsys.registry import MODELS, load_class
from recsys.spaces import Range, Space, space_of
from recsys.splits import Split
from recsys.tracking import Tracking
from recsys.train import fit
from recsys.train_config import TrainConfig

logger = logging.getLogger("recsys")


@dataclass(frozen=True)
class Tuned:
    """What a model's search came to. trials: how many of each state, over all sessions; seconds: spent in them."""

    model: str
    best: float
    settings: Mapping[str, Any]
    trials: Mapping[str, int]
    seconds: float


def tune(
    recipe: Recipe,
    root: Path,
    trials: int,
    *,
    models: tuple[str, ...] = (),
    device: str = "cpu",
    told: Mapping[str, Callable] | None = None,
) -> list[Tuned]:
    """As many trials for every model (or those named), best validation metric first.

    The first trial is the recipe as it stands, with no settings of its own. Trials stand in `root`/tune/NAME.db and
    count: a second call does what is missing. Each is a run of MLflow under one of the recipe. Raises ConfigError for a
    model that is not there or has no search space.
    """
    tables = model_tables(recipe)
    for name in models:
        if name not in tables:
            raise ConfigError(f"no model {name!r} in {recipe.name}", fix=nearest(name, tables))
    for name in recipe.tune:
        if name not in tables:
            raise ConfigError(f"tune.{name}: no such model in {recipe.name}", fix=nearest(name, tables))
    spaces = {
        name: space_of(kind, recipe.tune.get(name), name)
        for name, (kind, _, _) in tables.items()
        if not models or name in models
    }
    line = plan(recipe, root, device=device)
    with locked(root):
        fitted = {graph_box(train.fit_parts) for _, _, train in tables.values()}
        ready = [
            name
            for name in line.boxes
            if name in ("data", "split") or name.startswith("features.") or name in fitted
        ]
        callbacks = {"started": lambda box: None, "finished": lambda box, cached: None} | dict(told or {})
        line.run(**callbacks, until=ready[-1])
        split = without_test(Split.load(line.boxes["split"].folder))
        features = {name: line.boxes[f"features.{name}"] for name in recipe.features}
        graphs = {name: line.boxes[name] for name in fitted if name in line.boxes}
        search = _Search(recipe, root, split, features, graphs, device)
        return sorted(
            (search.run(name, space, trials) for name, space in spaces.items()), key=lambda one: -one.best
        )


def without_test(split: Split) -> Split:
    """The split without the rows of its test part: nothing of them is left to look at. It keeps its id."""
    kept = split.part_N != split.config.parts.index("test")
    return replace(split, log=split.log.take(kept), part_N=split.part_N[kept])


class _Search:
    """What all trials of a recipe share."""

    def __init__(
        self,
        recipe: Recipe,
        root: Path,
        split: Split,
        features: Mapping[str, Box],
        graphs: Mapping[str, Box],
        device: str,
    ):
        self.recipe, self.split, self.features, self.graphs = recipe, split, features, graphs
        self.device = device
        self.optuna = require("optuna", "tune", purpose="recsys tune")
        self.optuna.logging.set_verbosity(self.optuna.logging.WARNING)
        self.folder = root / "tune"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.tables = model_tables(recipe)
        # another data set, table, split or seed is another search; so are a model's own other settings (see run)
        rest = recipe.model_dump(mode="json", include={"data", "features", "seeds"})
        if recipe.graph is not None:
            rest["graph"] = recipe.graph.model_dump(mode="json")
        self.key = digest(rest | {"split": split.id})
        self.tracking = self.parent = None
        if recipe.track.enabled:
            self.tracking = Tracking(recipe.track.uri, root, recipe.track.experiment)
            name = f"{recipe.name}-tune"
            self.parent = self.tracking.ensure_run(
                digest([self.key, "tune"]), name, {"recipe": recipe.model_dump(mode="json")}
            )

    def run(self, name: str, space: Space, trials: int) -> Tuned:
        """The missing trials of one model."""
        optuna, seed = self.optuna, self.recipe.seeds[0]
        storage = f"sqlite:///{(self.folder / f'{self.recipe.name}.db').resolve()}"
        shown = {
            key: value.model_dump() if isinstance(value, Range) else value for key, value in space.items()
        }
        kind, base, train = self.tables[name]
        own = [kind, base, train.model_dump(mode="json"), shown]
        study = optuna.create_study(
            storage=storage,
            study_name=f"{name}-{digest([self.key, own])[:12]}",
            sampler=optuna.samplers.TPESampler(seed=seed),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=3),
            direction="maximize",
            load_if_exists=True,
        )
        done = [trial for trial in study.trials if trial.state.is_finished()]
        missing = max(trials - len(done), 0)
        # the recipe as it stands is a trial too, so that no search ends below what it began with
        as_it_stands = int(missing > 0 and not any(one.user_attrs.get("settings") == "{}" for one in done))
        for searched, count in (({}, as_it_stands), (space, missing - as_it_stands)):
            study.optimize(
                lambda trial, searched=searched: self._trial(trial, name, searched),
                n_trials=count,
                catch=(TrainingError,),
            )
        finished = [trial for trial in study.trials if trial.state.is_finished()]
        states = {
            state: sum(t.state.name.lower() == state for t in finished)
            for state in ("complete", "pruned", "fail")
        }
        if not states["complete"]:
            raise TrainingError(f"none of the {len(finished)} trials came to an end", where=name)
        seconds = sum(t.duration.total_seconds() for t in finished if t.duration is not None)
        return Tuned(
            name, study.best_value, json.loads(study.best_trial.user_attrs["settings"]), states, seconds
        )

    def _trial(self, trial: Any, name: str, space: Space) -> float:
        settings = {key: _suggest(trial, key, where) for key, where in space.items()}
        trial.set_user_attr("settings", json.dumps(settings))
        job = self._job(name, settings)
        model = load_class(job.kind, MODELS, Model)(job.config)
        used = {table: self.features[table] for table in tables_of(job.config)}
        graph = self.graphs[graph_box(job.train.fit_parts)] if model.uses_graph else None
        ctx = context(self.split, job, used, graph=graph)
        started, seen, state = time.monotonic(), [], "failed"

        def log(metrics: Mapping[str, float], epoch: int) -> None:
            seen.append(metrics["valid"])
            trial.report(metrics["valid"], epoch)
            if trial.should_prune():
                raise self.optuna.TrialPruned

        try:
            progress = fit(model, ctx, job.train, log)
            seen.append(ctx.validate(model) if progress.best_metric is None else progress.best_metric)
            state = "complete"
        except self.optuna.TrialPruned:
            state = "pruned"
            raise
        finally:
            best, seconds = max(seen, default=float("nan")), time.monotonic() - started
            logger.info(
                "    %s trial %d: %.4f (%s, %.1f s) %s", name, trial.number, best, state, seconds, settings
            )
            self._track(trial, name, settings, best, state, seconds)
        return best

    def _job(self, name: str, settings: Mapping[str, Any]) -> Job:
        kind, base, train = self.tables[name]
        own, loop = dict(base), train.model_dump()
        for key, value in settings.items():
            if key.startswith("train."):
                loop = merge(loop, nested(key.removeprefix("train."), value))
            else:
                own = merge(own, nested(key, value))
        config = model_config(load_class(kind, MODELS, Model), own, name, set(self.features))
        return Job(
            name,
            kind,
            config,
            parse(TrainConfig, loop, where=f"tune.{name}"),
            self.recipe.seeds[0],
            self.device,
        )

    def _track(
        self, trial: Any, name: str, settings: Mapping[str, Any], value: float, state: str, seconds: float
    ) -> None:
        if self.tracking is None:
            return
        key = digest([trial.study.study_name, trial.number])
        run_id = self.tracking.ensure_run(
            key, f"{name}-trial-{trial.number}", {"model": name} | settings, parent=self.parent
        )
        metrics = {"seconds": seconds} | ({"valid": value} if np.isfinite(value) else {})
        self.tracking.log_metrics(run_id, metrics)
        self.tracking.tag(run_id, {"recsys.trial": state})
        self.tracking.finish(run_id)


def _suggest(trial: Any, key: str, where: Range | list) -> Any:
    if isinstance(where, Range):
        whole = isinstance(where.low, int) and isinstance(where.high, int)
        ask = trial.suggest_int if whole else trial.suggest_float
        return ask(key, where.low, where.high, log=where.log)
    place = trial.suggest_categorical(key, [json.dumps(value) for value in where])
    return json.loads(place)


def nested(key: str, value: Any) -> dict[str, Any]:
    """ "a.b" and a value to {"a": {"b": value}}."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value

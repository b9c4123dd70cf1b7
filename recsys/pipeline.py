"""The line a run walks: source, split, features, fits, selection, bundle, test, report, MLflow."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from recsys import bundle as bundles
from recsys import fitting, graphs, impressions, judgements, ranking, splits, steps
from recsys.boxes import Box, Line, sweep
from recsys.errors import ConfigError
from recsys.features import table as feature_tables
from recsys.features.base import FittedExtractor, TableMaker
from recsys.features.extract import make_extractor
from recsys.features.makers import ordered
from recsys.files import locked
from recsys.models.base import Model
from recsys.recipe import RANKER, Recipe, model_tables
from recsys.registry import MODELS, load_class
from recsys.sources import open_source


@dataclass(frozen=True)
class RunResult:
    """Where a run's results lie, and which boxes it made (none where nothing had changed)."""

    recipe: Recipe
    boxes: Mapping[str, Box]
    made: tuple[str, ...]

    @property
    def bundle(self) -> Path:
        return self.boxes["bundle"].folder

    @property
    def report(self) -> Path:
        return self.boxes["report"].folder

    @property
    def selected(self) -> str:
        return json.loads((self.boxes["select"].folder / "selected.json").read_text())["model"]


def plan(recipe: Recipe, root: Path, *, device: str = "cpu") -> Line:
    """All boxes of the recipe with their keys; nothing is made. Raises ConfigError for a wrong setting."""
    line = Line(root)
    source = open_source(recipe.data)
    data = line.add("data", lambda box: steps.make_data(box, source), source.identity(), {})
    split = line.add(
        "split",
        lambda box: steps.make_split(box, recipe.split, data),
        recipe.split.model_dump(mode="json"),
        {"data": data},
        version=splits.VERSION,
    )
    tables = _features(line, recipe, data, split)
    around = _Graphs(line, recipe, data, split, tables)
    fits = _fits(line, recipe, split, tables, around, device)
    monitor = recipe.train.monitor
    select = line.add(
        "select",
        lambda box: fitting.make_selection(box, fits, monitor),
        {"monitor": monitor.model_dump(mode="json")},
        {fit.box.name: fit.box for fit in fits},
    )
    final = (
        [_refit(line, fit, recipe.select.refit, split, tables, around) for fit in fits]
        if recipe.select.refit
        else fits
    )
    models = {fit.box.name: fit.box for fit in final}
    ranker = _ranker(line, recipe, fits, data, split, tables)
    second = {} if ranker is None else {RANKER: ranker}
    mlflow_run = line.add(
        "mlflow",
        lambda box: steps.make_mlflow_run(box, recipe, final, select, data, split, tables),
        recipe.track.model_dump(mode="json") | {"name": recipe.name},
        {"select": select} | models,
    )
    bundle = line.add(
        "bundle",
        lambda box: steps.make_bundle(
            box, recipe, fitting.selected_fit(final, select), data, split, tables, steps.run_id_of(mlflow_run),
            steps.SecondStage(ranker, ranking.generators(recipe.ranker, final)) if ranker else None,
        ),
        recipe.bundle.model_dump(mode="json"),
        {"select": select} | models | second,
        version=bundles.FORMAT_VERSION,
    )  # fmt: skip
    tests = {fit.box.name: _test(line, recipe, fit, split, tables) for fit in final}
    if ranker is not None:
        tests[RANKER] = _test_ranker(line, recipe, ranker, final, split, tables)
    report = line.add(
        "report",
        lambda box: steps.make_report(box, recipe, fits, final, tests, select, bundle, data, split),
        {"name": recipe.name},
        {"select": select, "bundle": bundle} | tests,
        version=2,
    )
    line.add(
        "track",
        lambda box: steps.make_tracking(box, recipe, mlflow_run, report, bundle),
        {},
        {"mlflow": mlflow_run, "report": report},
    )
    return line


def _features(line: Line, recipe: Recipe, data: Box, split: Box) -> dict[str, Box]:
    """A box per table, each after the tables that it stands on."""
    tables = {
        name: make_extractor(table, where=f"features.{name}") for name, table in recipe.features.items()
    }
    made: dict[str, Box] = {}
    for name, maker in ordered(tables).items():
        made[name] = _table(line, name, maker, data, split, made)
    return {name: made[name] for name in recipe.features}


def _table(line: Line, name: str, maker: TableMaker, data: Box, split: Box, made: Mapping[str, Box]) -> Box:
    settings = dict(maker.identity()) | maker.config.model_dump(
        mode="json", include={"entity", "hide", "hide_seed"}
    )
    upstream = {"data": data}
    if isinstance(maker, FittedExtractor):
        sources = {other: made[other] for other in maker.sources}
        upstream |= {"split": split} | sources

        def make(box: Box) -> None:
            steps.make_fitted_features(box, maker, name, data, split, sources)
    else:

        def make(box: Box) -> None:
            steps.make_features(box, maker, name, data)

    return line.add(f"features.{name}", make, settings, upstream, version=feature_tables.VERSION)


@dataclass(frozen=True)
class _Graphs:
    """The graph around items, a box for every choice of parts that a model is fitted on."""

    line: Line
    recipe: Recipe
    data: Box
    split: Box
    tables: Mapping[str, Box]

    def of(self, job: fitting.Job) -> dict[str, Box]:
        """The graph for a job; nothing where its model reads none. Raises ConfigError where the recipe has none."""
        if not load_class(job.kind, MODELS, Model).uses_graph:
            return {}
        config, parts = self.recipe.graph, job.train.fit_parts
        if config is None:
            raise ConfigError(f"models.{job.name} reads the graph around items", fix="add [graph]")
        name = fitting.graph_box(parts)
        if name not in self.line.boxes:
            used = {table: self.tables[table] for table in config.tables}
            self.line.add(
                name,
                lambda box: graphs.make_graph(box, config, parts, self.data, self.split, used),
                config.model_dump(mode="json") | {"parts": parts},
                {"data": self.data, "split": self.split} | used,
                version=graphs.VERSION,
            )
        return {"graph": self.line.boxes[name]}


def _fits(
    line: Line, recipe: Recipe, split: Box, tables: Mapping[str, Box], around: _Graphs, device: str
) -> list[fitting.Fit]:
    """One fit per model and seed; a closed-form model does not depend on the seed and is fitted once."""
    jobs = []
    for name, (kind, settings, train) in model_tables(recipe).items():
        model_class = load_class(kind, MODELS, Model)
        config = fitting.model_config(model_class, settings, name, set(tables))
        seeds = recipe.seeds if model_class.looped else (0,)
        jobs += [fitting.Job(name, kind, config, train, seed, device) for seed in seeds]
    read = [around.of(job) for job in jobs]  # all before the first fit: a search needs them and no fit
    return [
        _fit(line, f"fit.{job.name}.seed{job.seed}", job, split, tables, graph)
        for job, graph in zip(jobs, read, strict=True)
    ]


def _fit(
    line: Line,
    box_name: str,
    job: fitting.Job,
    split: Box,
    tables: Mapping[str, Box],
    extra: Mapping[str, Box],
) -> fitting.Fit:
    used = {table: tables[table] for table in fitting.tables_of(job.config)}
    box = line.add(
        box_name,
        lambda box: fitting.make_fit(box, job, split, used, extra.get("selected"), extra.get("graph")),
        job.settings(),
        {"split": split} | used | extra,
        version=f"{fitting.VERSION}.{load_class(job.kind, MODELS, Model).version}",
    )
    return fitting.Fit(job, box)


def _refit(
    line: Line,
    fit: fitting.Fit,
    parts: tuple[str, ...],
    split: Box,
    tables: Mapping[str, Box],
    around: _Graphs,
) -> fitting.Fit:
    """The same model on more rows, its number of epochs taken from the fit that selection looked at."""
    train = fit.job.train.model_copy(update={"fit_parts": parts})
    job = replace(fit.job, train=train)
    extra = {"selected": fit.box} | around.of(job)
    return _fit(line, f"re{fit.box.name}", job, split, tables, extra)


def _test(line: Line, recipe: Recipe, fit: fitting.Fit, split: Box, tables: Mapping[str, Box]) -> Box:
    return line.add(
        f"test.{fit.job.name}.seed{fit.job.seed}",
        lambda box: steps.make_test(box, recipe.evaluate, fit, split, tables),
        recipe.evaluate.model_dump(mode="json") | {"fit_parts": fit.job.train.fit_parts},
        {"fit": fit.box, "split": split} | tables,
        version=2,
    )


def _ranker(
    line: Line, recipe: Recipe, fits: list[fitting.Fit], data: Box, split: Box, tables: Mapping[str, Box]
) -> Box | None:
    """The second stage, learnt over the fits that selection looked at; None where the recipe has none."""
    config = recipe.ranker
    if config is None:
        return None
    chosen = ranking.generators(config, fits)
    used = {name: tables[name] for name in config.tables}
    read = {
        "impressions": None if config.impressions is None else impressions.fingerprint(config.impressions),
        "judgements": None if config.judgements is None else judgements.fingerprint(config.judgements),
    }
    return line.add(
        RANKER,
        lambda box: ranking.make_ranker(box, config, chosen, data, split, used),
        config.model_dump(mode="json", exclude=set(read)) | read,
        {"data": data, "split": split} | used | {fit.box.name: fit.box for fit in chosen},
        version=ranking.VERSION,
    )


def _test_ranker(
    line: Line, recipe: Recipe, ranker: Box, final: list[fitting.Fit], split: Box, tables: Mapping[str, Box]
) -> Box:
    chosen = ranking.generators(recipe.ranker, final)
    return line.add(
        f"test.{RANKER}",
        lambda box: steps.make_ranker_test(box, recipe.evaluate, ranker, chosen, split, tables),
        recipe.evaluate.model_dump(mode="json") | {"fit_parts": chosen[0].job.train.fit_parts},
        {RANKER: ranker, "split": split} | {fit.box.name: fit.box for fit in chosen} | tables,
    )


def run(
    recipe: Recipe,
    root: str | Path = "runs",
    *,
    device: str = "cpu",
    started: Callable[[Box], None] = lambda box: None,
    finished: Callable[[Box, bool], None] = lambda box, cached: None,
) -> RunResult:
    """Walk the line, making what is missing; results lie under `root`, which is locked meanwhile.

    started(box), finished(box, cached) are told of each box. Raises LockedError, ConfigError, DataError, ...
    """
    result = _walk(recipe, Path(root), device, started, finished, None)
    _point_to(Path(root) / recipe.name, result)
    return result


def train(
    recipe: Recipe,
    root: str | Path = "runs",
    *,
    device: str = "cpu",
    started: Callable[[Box], None] = lambda box: None,
    finished: Callable[[Box, bool], None] = lambda box, cached: None,
) -> dict[str, list[float]]:
    """The line up to the selection: validation metric of every model, one value a seed. Test data is not looked at;
    a later `run` of the recipe goes on from here."""
    result = _walk(recipe, Path(root), device, started, finished, "select")
    return json.loads((result.boxes["select"].folder / "selected.json").read_text())["seeds"]


def _walk(
    recipe: Recipe,
    root: Path,
    device: str,
    started: Callable[[Box], None],
    finished: Callable[[Box, bool], None],
    until: str | None,
) -> RunResult:
    line = plan(recipe, root, device=device)  # first: a wrong setting leaves no trace
    with locked(root):
        sweep(root)
        made = line.run(started, finished, until=until)
    return RunResult(recipe, line.boxes, tuple(box.name for box in made))


def _point_to(folder: Path, result: RunResult) -> None:
    """runs/NAME/bundle and runs/NAME/report lead to the latest boxes."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, target in {"bundle": result.bundle, "report": result.report}.items():
        link, beside = folder / name, folder / f".{name}.new"
        beside.unlink(missing_ok=True)
        beside.symlink_to(os.path.relpath(target, folder), target_is_directory=True)
        os.replace(beside, link)

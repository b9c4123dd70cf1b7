"""What each box of a run does, given the boxes it stands on."""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from recsys import schema, splits
from recsys.boxes import Box
from recsys.bundle import Bundle, BundleContent, user_histories, write_bundle
from recsys.config import Config, parse
from recsys.dataset import Dataset
from recsys.errors import ConfigError, ModelError, nearest
from recsys.evaluate import Evaluation, evaluate, validation_metric
from recsys.features.base import Extractor
from recsys.features.extract import extract
from recsys.features.table import FeatureTable
from recsys.files import new_folder, write_json
from recsys.ledger import write_look
from recsys.models.base import FitContext, Model
from recsys.protocol import Protocol
from recsys.recipe import Recipe
from recsys.registry import MODELS, load_class
from recsys.report import Report
from recsys.sources.base import Source
from recsys.splits import Split
from recsys.tracking import REPORT_TAG, Tracking
from recsys.train import Progress, fit
from recsys.train_config import TrainConfig


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
        loop = self.train.model_dump(mode="json")
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
        model_class = load_class(self.job.kind, MODELS, Model)
        return model_class.from_state(self.job.config, load_file(self.box.folder / "state.safetensors"))


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


def make_data(box: Box, source: Source) -> None:
    source.prepare(box.folder)


def make_split(box: Box, config: splits.SplitConfig, data: Box) -> None:
    splits.make_split(Dataset.open(data.folder), config).save(box.folder)


def make_features(box: Box, extractor: Extractor, name: str, data: Box) -> None:
    table, summary = extract(Dataset.open(data.folder), extractor, name, box.root / "feature-store")
    table.save(box.folder)
    write_json(box.folder / "summary.json", vars(summary))


def context(
    split: Split, job: Job, tables: Mapping[str, Box], folder: Path | None = None, *, validates: bool = True
) -> FitContext:
    """What fitting may see: the rows of its parts, the aligned tables, a validation metric."""
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
        )

    aligned = {
        ("item", name): FeatureTable.load(box.folder).align(split.item_ids) for name, box in tables.items()
    }
    log = split.fit_log(job.train.fit_parts)
    return FitContext(log, aligned, job.seed, job.device, folder, validate if validates else None)


def make_fit(box: Box, job: Job, split_box: Box, tables: Mapping[str, Box], selected: Box | None) -> None:
    """Fit and keep the state. `selected`: the earlier fit that fixes the number of epochs of this one."""
    split = Split.load(split_box.folder)
    validates = "valid" not in job.train.fit_parts
    train = job.train
    if selected is not None:
        epochs = json.loads((selected.folder / "fit.json").read_text())["progress"]["best_epoch"] + 1
        train = train.model_copy(update={"epochs": max(epochs, 1)})
    ctx = context(split, job, tables, box.scratch, validates=validates)
    model = load_class(job.kind, MODELS, Model)(job.config)
    started = time.monotonic()
    progress = fit(model, ctx, train)
    facts = {
        "name": job.name,
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


def _measure(ctx: FitContext, model: Model, progress: Progress) -> float:
    """The validation metric of the kept state."""
    return progress.best_metric if progress.best_metric is not None else ctx.validate(model)


def make_selection(box: Box, fits: list[Fit]) -> None:
    """The model with the best validation metric, mean over its seeds; test data is not in reach."""
    scores: dict[str, list[float]] = {}
    for one in fits:
        value = one.facts()["valid"]
        if value is not None:
            scores.setdefault(one.job.name, []).append(value)
    names = list(dict.fromkeys(one.job.name for one in fits))
    if scores:
        means = {name: float(np.mean(values)) for name, values in scores.items()}
        chosen = max(means, key=lambda name: means[name])
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


def selected_fit(fits: list[Fit], select: Box) -> Fit:
    """The chosen model's fit of the first seed: what is shipped."""
    name = json.loads((select.folder / "selected.json").read_text())["model"]
    return next(one for one in fits if one.job.name == name)


def make_test(box: Box, protocol: Protocol, one: Fit, split_box: Box, tables: Mapping[str, Box]) -> None:
    """The test part, once per (model, split, protocol)."""
    split = Split.load(split_box.folder)
    aligned = {name: FeatureTable.load(table.folder).align(split.item_ids) for name, table in tables.items()}
    result = evaluate(
        one.model(),
        split,
        "test",
        protocol,
        fit_parts=one.job.train.fit_parts,
        tables=aligned,
        name=one.job.name,
    )
    result.save(box.folder)


def make_mlflow_run(
    box: Box,
    recipe: Recipe,
    fits: list[Fit],
    select: Box,
    data: Box,
    split_box: Box,
    tables: Mapping[str, Box],
) -> None:
    """Open the MLflow run: resolved recipe, fingerprints, and every fit's metrics epoch by epoch."""
    run_id = None
    if recipe.track.enabled:
        tracking = Tracking(recipe.track.uri, box.root, recipe.track.experiment)
        params = {
            "recipe": recipe.model_dump(mode="json"),
            "fingerprints": fingerprints(data, split_box, tables),
        }
        run_id = tracking.ensure_run(box.key, recipe.name, params)
        for one in fits:
            facts = one.facts()
            label = f"{one.job.name}.seed{one.job.seed}"
            for epoch, metrics in enumerate(facts["progress"]["history"]):
                tracking.log_metrics(
                    run_id, {f"fit/{label}/{name}": value for name, value in metrics.items()}, epoch
                )
            summary = {"seconds": facts["seconds"], "valid": facts["valid"]}
            known = {name: value for name, value in summary.items() if value is not None}
            tracking.log_metrics(
                run_id, {f"fit/{label}/final_{name}": value for name, value in known.items()}
            )
        tracking.log_folder(run_id, select.folder, "selection")
    with new_folder(box.folder) as folder:
        write_json(folder / "run.json", {"run_id": run_id})


def run_id_of(box: Box) -> str | None:
    return json.loads((box.folder / "run.json").read_text())["run_id"]


def fingerprints(data: Box, split: Box, tables: Mapping[str, Box]) -> dict[str, Any]:
    """What the results rest on: dataset, split and feature tables by hash."""
    return {
        "dataset": Dataset.open(data.folder).fingerprint,
        "split": Split.load(split.folder).id,
        "features": {name: FeatureTable.load(box.folder).fingerprint for name, box in tables.items()},
    }


def make_bundle(
    box: Box,
    recipe: Recipe,
    one: Fit,
    data: Box,
    split_box: Box,
    tables: Mapping[str, Box],
    run_id: str | None,
) -> None:
    """Freeze the selected model, and check that its torch-free form scores what the model scores."""
    dataset, split, model = Dataset.open(data.folder), Split.load(split_box.folder), one.model()
    columns = [name for name in recipe.bundle.columns if name in dataset.items.columns]
    shown = dataset.items.select(schema.ITEM, *columns)
    items = split.item_ids.to_frame(schema.ITEM).join(
        shown, on=schema.ITEM, how="left", maintain_order="left"
    )
    flags = ("uses_history", "uses_user_fields", "uses_context", "scores_cold_items", "scores_cold_users")
    known = [part for part in split.config.parts if part != "test"]
    history = split.fit_log(known)
    content = BundleContent(
        model=one.job.kind,
        form=model.serving_form(),
        items=items,
        item_counts_I=split.fit_log(one.job.train.fit_parts).item_counts(),
        users=user_histories(history, split.user_ids, recipe.bundle.histories),
        id_type=dataset.id_type,
        split_id=split.id,
        last_event=int(history.time_N.max()),
        recipe=recipe.model_dump(mode="json"),
        fingerprints=fingerprints(data, split_box, tables),
        flags={name: bool(getattr(model, name)) for name in flags},
        source=dataset.manifest["source"],
        licence=dataset.manifest["licence"],
        licence_text=dataset.licence_text,
        mlflow_run_id=run_id,
        reports={"fit": one.facts()},
    )
    bundle = write_bundle(box.scratch / "bundle", content)
    asked = split.queries("valid").take(slice(0, 64)).queries
    for width in model.widths or (None,):
        apart = np.abs(bundle.scorer().score(asked, None, width) - model.score(asked, None, width)).max()
        scale = max(np.abs(model.score(asked, None, width)).max(), 1.0)
        if apart > 1e-5 * scale:
            raise ModelError(
                f"serving form and model differ by {apart:.2g} at width {width}", where=one.job.name
            )
    box.folder.parent.mkdir(parents=True, exist_ok=True)
    os.replace(box.scratch / "bundle", box.folder)


def make_report(
    box: Box, recipe: Recipe, tests: Mapping[str, Box], select: Box, bundle: Box, data: Box, split_box: Box
) -> None:
    """Table, JSON and one HTML page over all tests, and a line in the ledger of looks at the test part."""
    chosen = json.loads((select.folder / "selected.json").read_text())
    manifest = Bundle.open(bundle.folder).manifest
    split, dataset = Split.load(split_box.folder), Dataset.open(data.folder)
    look = write_look(
        box.root / "ledger.jsonl",
        {
            "report": box.key,
            "split": split.id,
            "protocol": recipe.evaluate.id,
            "bundle": manifest["bundle_id"],
        },
    )
    facts = {
        "recipe": recipe.name,
        "selected": chosen["model"],
        "valid": chosen["valid"],
        "seeds": list(recipe.seeds),
        "look": look,
        "split": {"id": split.id, "method": split.config.method} | split.facts,
        "bundle_id": manifest["bundle_id"],
        "data": {"source": dataset.manifest["source"], "licence": dataset.manifest["licence"]},
        "protocol": recipe.evaluate.model_dump(mode="json"),
    }
    report = Report.of([Evaluation.load(test.folder) for test in tests.values()], facts)
    with new_folder(box.folder) as folder:
        report.save(folder)


def make_tracking(box: Box, recipe: Recipe, mlflow_run: Box, report_box: Box, bundle: Box) -> None:
    """Final metrics with intervals, report and bundle to MLflow, and the bundle into the registry.

    The first report lands on the run itself; a later one (another protocol, say) on a child of it.
    """
    run_id = run_id_of(mlflow_run)
    logged: dict[str, Any] = {"run_id": run_id}
    if run_id is not None:
        tracking = Tracking(recipe.track.uri, box.root, recipe.track.experiment)
        report = Report.load(report_box.folder)
        earlier = tracking.tags(run_id).get(REPORT_TAG)
        target = run_id
        if earlier is not None and earlier != report_box.key:
            target = tracking.ensure_run(
                report_box.key, f"{recipe.name}-evaluation", report.facts, parent=run_id
            )
        tracking.log_metrics(target, report.metrics())
        tracking.log_folder(target, report_box.folder, "report")
        name = recipe.track.registered_name or recipe.name
        manifest = Bundle.open(bundle.folder).manifest
        version = tracking.register(run_id, bundle.folder, name, manifest["bundle_id"])
        tracking.tag(target, {REPORT_TAG: report_box.key, "recsys.bundle": manifest["bundle_id"]})
        tracking.finish(target)
        logged |= {"logged_to": target, "model": name, "version": version, "uri": tracking.uri}
    with new_folder(box.folder) as folder:
        write_json(folder / "track.json", logged)

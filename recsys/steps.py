"""What each box of a run does beside fitting, given the boxes it stands on."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recsys import schema, splits
from recsys.boxes import Box
from recsys.bundle import Bundle
from recsys.bundle_writing import BundleContent, user_histories, write_bundle
from recsys.content_facts import content_facts
from recsys.dataset import Dataset
from recsys.errors import ConfigError, ModelError, nearest
from recsys.evaluate import Evaluation, evaluate
from recsys.features.base import Extractor, FittedExtractor
from recsys.features.extract import extract
from recsys.features.field_table import load_table
from recsys.fields import as_vectors
from recsys.files import new_folder, write_json
from recsys.fitting import Fit, aligned_tables
from recsys.ledger import write_look
from recsys.plots import draw
from recsys.popularity import Popularity
from recsys.protocol import Protocol
from recsys.ranking import load_ranker
from recsys.recipe import RANKER, Recipe
from recsys.report import Report
from recsys.schema import Dense, Form
from recsys.sources.base import Source
from recsys.splits import Split
from recsys.thumbnails import thumbnails
from recsys.tracking import REPORT_TAG, Tracking


@dataclass(frozen=True)
class SecondStage:
    """Where the ranker lies, and the fits of its generators."""

    box: Box
    fits: Sequence[Fit]

    def forms(self, chosen: Fit, form: Form) -> dict[str, tuple[str, Form]]:
        """name -> (registered model, form); `form` itself for the chosen model."""
        return {
            one.job.name: (one.job.kind, form if one.job == chosen.job else one.model().serving_form())
            for one in self.fits
        }


def make_data(box: Box, source: Source) -> None:
    source.prepare(box.folder)


def make_split(box: Box, config: splits.SplitConfig, data: Box) -> None:
    splits.make_split(Dataset.open(data.folder), config).save(box.folder)


def make_features(box: Box, extractor: Extractor, name: str, data: Box) -> None:
    table, summary = extract(Dataset.open(data.folder), extractor, name, box.root / "feature-store")
    table.save(box.folder)
    write_json(box.folder / "summary.json", vars(summary))


def make_fitted_features(
    box: Box, maker: FittedExtractor, name: str, data: Box, split: Box, sources: Mapping[str, Box]
) -> None:
    tables = {source: load_table(made.folder) for source, made in sources.items()}
    table = maker.table(name, Dataset.open(data.folder), Split.load(split.folder), tables)
    table.save(box.folder)


def make_test(box: Box, protocol: Protocol, one: Fit, split_box: Box, tables: Mapping[str, Box]) -> None:
    """The test part, once per (model, split, protocol)."""
    split = Split.load(split_box.folder)
    result = evaluate(
        one.model(),
        split,
        "test",
        protocol,
        fit_parts=one.job.train.fit_parts,
        tables=_item_vectors(split, tables),
        name=one.job.name,
    )
    result.save(box.folder)


def make_ranker_test(
    box: Box,
    protocol: Protocol,
    ranker_box: Box,
    chosen: Sequence[Fit],
    split_box: Box,
    tables: Mapping[str, Box],
) -> None:
    """The test part for the second stage over its generators, shipped or not."""
    split = Split.load(split_box.folder)
    models = {one.job.name: one.model() for one in chosen}
    popularity = Popularity.of_log(split.fit_log(split.config.parts))
    result = evaluate(
        load_ranker(ranker_box.folder).scorer(models, popularity),
        split,
        "test",
        protocol,
        fit_parts=chosen[0].job.train.fit_parts,
        tables=_item_vectors(split, tables),
        name=RANKER,
    )
    result.save(box.folder)


def _item_vectors(split: Split, tables: Mapping[str, Box]) -> dict[str, Dense]:
    """Item tables by name, for slices by missing modality and for the diversity of lists."""
    aligned = aligned_tables(split, tables)
    return {name: as_vectors(table) for (entity, name), table in aligned.items() if entity == "item"}


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
        "features": {name: load_table(box.folder).fingerprint for name, box in tables.items()},
    }


def make_bundle(
    box: Box,
    recipe: Recipe,
    one: Fit,
    data: Box,
    split_box: Box,
    tables: Mapping[str, Box],
    run_id: str | None,
    second: SecondStage | None,
) -> None:
    """Freeze the selected model, and check that its torch-free form scores what the model scores. The second stage goes
    with it where it was found to be worth it."""
    dataset, split, model = Dataset.open(data.folder), Split.load(split_box.folder), one.model()
    unknown = [name for name in recipe.bundle.columns if name not in dataset.items.columns]
    if unknown:
        raise ConfigError(
            f"bundle.columns names {unknown[0]!r}", fix=nearest(unknown[0], dataset.items.columns)
        )
    shown = dataset.items.select(schema.ITEM, *recipe.bundle.columns)
    items = split.item_ids.to_frame(schema.ITEM).join(
        shown, on=schema.ITEM, how="left", maintain_order="left"
    )
    flags = ("uses_history", "uses_user_fields", "uses_context", "scores_cold_items", "scores_cold_users")
    known = [part for part in split.config.parts if part != "test"]
    history = split.fit_log(known)
    ranker = None if second is None else load_ranker(second.box.folder)
    shipped = ranker is not None and ranker.facts["shipped"]
    form = model.serving_form()
    facts, encoders = content_facts(recipe.features, tables, split)
    made_by = recipe.model_dump(mode="json")
    made_by["features"] |= {name: one["settings"] for name, one in facts.items()}  # names no folder of a run
    content = BundleContent(
        model=one.job.kind,
        form=form,
        items=items,
        item_counts_I=split.fit_log(one.job.train.fit_parts).item_counts(),
        users=user_histories(history, split.user_ids, recipe.bundle.histories),
        states=recipe.bundle.states,
        index=recipe.bundle.index,
        id_type=dataset.id_type,
        split_id=split.id,
        last_event=int(history.time_N.max()),
        recipe=made_by,
        fingerprints=fingerprints(data, split_box, tables),
        flags={name: bool(getattr(model, name)) for name in flags},
        source=dataset.manifest["source"],
        licence=dataset.manifest["licence"],
        licence_text=dataset.licence_text,
        mlflow_run_id=run_id,
        reports={"fit": one.facts()} | ({} if ranker is None else {"ranker": dict(ranker.facts)}),
        popularity=Popularity.of_log(history) if dataset.has_time else None,
        content=facts,
        encoders=encoders,
        thumbnails=thumbnails(dataset, split.item_ids, recipe.bundle.thumbnails),
        ranker=ranker if shipped else None,
        generators=second.forms(one, form) if shipped else {},
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
    box: Box,
    recipe: Recipe,
    fits: Sequence[Fit],
    final: Sequence[Fit],
    tests: Mapping[str, Box],
    select: Box,
    bundle: Box,
    data: Box,
    split_box: Box,
) -> None:
    """JSON, pictures and one HTML page over all tests, and a line in the ledger of looks at the test part.

    fits: those that selection looked at, for their learning curves; final: those that were tested (`tests`, by box).
    """
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
        "boxes": {
            "split": split_box.folder.name,
            "bundle": bundle.folder.name,
            "models": [
                {
                    "name": one.job.name,
                    "kind": one.job.kind,
                    "seed": one.job.seed,
                    "fit": one.box.folder.name,
                    "test": tests[one.box.name].folder.name,
                }
                for one in final
            ],
        },
    }
    report = Report.of([Evaluation.load(test.folder) for test in tests.values()], facts)
    with new_folder(box.folder) as folder:
        report.save(folder)
        draw(report, [one.facts() for one in fits], folder)
    write_json(bundle.folder / "reports" / "test.json", {"models": report.models, "facts": report.facts})


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

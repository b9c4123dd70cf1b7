"""MLflow: what a run leaves there, the registry, and the bundle opened from it in every way MLflow offers."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from recsys.bundle import Bundle
from recsys.errors import RecsysError
from recsys.pipeline import RunResult, run
from recsys.recipe import load_recipe
from recsys.report import Report
from recsys.schema import Queries
from recsys.tracking import (
    KEY_TAG,
    Tracking,
    fetch_bundle,
    flatten,
    new_database,
    promote,
    tracking_uri,
)

LEGAL = re.compile(r"[/\w.\- :]+")


@pytest.fixture(scope="module")
def tracking(tracked, tracked_root) -> Tracking:
    return Tracking(None, tracked_root, "recsys")


@pytest.fixture(scope="module")
def logged(tracked, tracking):
    """The MLflow run as it was after the first walk."""
    return tracking.client.get_run(track_json(tracked)["run_id"])


def track_json(result: RunResult) -> dict:
    return json.loads((result.boxes["track"].folder / "track.json").read_text())


def artefacts(tracking: Tracking, run_id: str, path: str | None = None) -> set[str]:
    found = set()
    for entry in tracking.client.list_artifacts(run_id, path):
        found |= artefacts(tracking, run_id, entry.path) if entry.is_dir else {entry.path}
    return found


def aliases(tracking: Tracking, name: str) -> dict[str, str]:
    found = tracking.client.get_registered_model(name).aliases
    return {alias: str(number) for alias, number in found.items()}


def count_runs(tracking: Tracking) -> int:
    return len(tracking.client.search_runs([tracking.experiment_id]))


# What a run leaves


def test_parameters_are_the_resolved_recipe(tracked, logged):
    params = logged.data.params
    assert params["recipe.models.ease.regularisation"] == "5.0"
    assert params["recipe.train.lr"] == "0.01"
    assert params["recipe.split.method"] == "leave_last_out"
    assert params["recipe.evaluate.mask"] == "history"  # a default, resolved
    bundle = Bundle.open(tracked.bundle)
    assert params["fingerprints.split"] == bundle.manifest["split_id"]
    assert params["fingerprints.features.words"] == bundle.manifest["fingerprints"]["features"]["words"]
    expected = flatten(
        {
            "recipe": tracked.recipe.model_dump(mode="json"),
            "fingerprints": bundle.manifest["fingerprints"],
        }
    )
    assert params == {name: value[:6000] for name, value in expected.items()}


def test_final_metrics_are_those_of_the_report(tracked, logged):
    report = Report.load(tracked.report)
    metrics = logged.data.metrics
    chosen = report.models[tracked.selected]["values"]
    entry = chosen["test/ndcg_at_5"]
    assert metrics["test/ndcg_at_5"] == entry["value"]
    assert (metrics["test/ndcg_at_5/low"], metrics["test/ndcg_at_5/high"]) == (entry["low"], entry["high"])
    assert entry["low"] < entry["high"]
    for name, model in report.models.items():
        for key, value in model["values"].items():
            assert metrics[f"test/model.{name}/{key.split('/', 1)[1]}"] == value["value"]
    assert "test/model.fmrlrec/ndcg_at_5/width.4" in metrics
    assert all(LEGAL.fullmatch(name) and np.isfinite(value) for name, value in metrics.items())


def test_metrics_epoch_by_epoch(tracked, tracking, logged):
    for seed in (0, 1):
        facts = json.loads((tracked.boxes[f"fit.fmrlrec.seed{seed}"].folder / "fit.json").read_text())
        for name in ("loss", "valid"):
            history = tracking.client.get_metric_history(logged.info.run_id, f"fit/fmrlrec.seed{seed}/{name}")
            assert [(metric.step, metric.value) for metric in history] == [
                (epoch, values[name]) for epoch, values in enumerate(facts["progress"]["history"])
            ]
        assert logged.data.metrics[f"fit/fmrlrec.seed{seed}/final_valid"] == facts["valid"]
    assert "fit/ease.seed0/final_valid" in logged.data.metrics


def test_artefacts(tracked, tracking, logged):
    found = artefacts(tracking, logged.info.run_id)
    for name in ("report.html", "report.json", "training.png", "metrics.png", "widths.png"):
        assert f"report/{name}" in found
    assert "selection/selected.json" in found
    assert any(path.endswith("/items.bin") for path in found)
    assert logged.info.status == "FINISHED"
    assert logged.data.tags["recsys.bundle"] == Bundle.open(tracked.bundle).id


def test_pictures_are_the_same_bytes_each_time(tracked, tmp_path):
    from recsys.plots import draw

    names = [name for name in tracked.boxes if name.startswith("fit.")]
    fits = [json.loads((tracked.boxes[name].folder / "fit.json").read_text()) for name in names]
    written = draw(Report.load(tracked.report), fits, tmp_path)
    assert {path.name for path in written} == {"training.png", "metrics.png", "widths.png"}
    for path in written:
        assert path.read_bytes() == (tracked.report / path.name).read_bytes()


def test_no_picture_of_nothing(tracked, tmp_path):
    from dataclasses import replace

    from recsys.plots import draw

    report = Report.load(tracked.report)
    names = [name for name in tracked.boxes if name.startswith(("fit.ease", "fit.popularity"))]
    fits = [json.loads((tracked.boxes[name].folder / "fit.json").read_text()) for name in names]
    closed = {name: report.models[name] for name in ("ease", "popularity")}
    written = draw(replace(report, models=closed), fits, tmp_path)
    assert [path.name for path in written] == ["metrics.png"]


# The registry


def test_first_version_is_candidate_and_champion(tracked, tracking):
    assert aliases(tracking, "tiny") == {"candidate": "1", "champion": "1"}
    assert track_json(tracked)["version"] == "1"


def test_the_same_bundle_again_is_no_new_version(tracked, tracking, logged):
    bundle = Bundle.open(tracked.bundle)
    assert tracking.register(logged.info.run_id, tracked.bundle, "tiny", bundle.id) == "1"
    assert len(tracking.client.search_model_versions("name = 'tiny'")) == 1


def test_a_registration_cut_short_is_completed(tracked, tracking, logged):
    """Killed between the version and its aliases."""
    bundle = Bundle.open(tracked.bundle)
    tracking.register(logged.info.run_id, tracked.bundle, "cut short", bundle.id)
    for alias in ("candidate", "champion"):
        tracking.client.delete_registered_model_alias("cut short", alias)
    assert tracking.register(logged.info.run_id, tracked.bundle, "cut short", bundle.id) == "1"
    assert aliases(tracking, "cut short") == {"candidate": "1", "champion": "1"}


def test_fetched_bundle_scores_the_same(tracked, tracked_root):
    asked = Queries.of([[3, 1, 4], []])
    expected = Bundle.open(tracked.bundle).scorer().score(asked)
    for uri in ("models:/tiny@champion", "models:/tiny@candidate", "models:/tiny/1"):
        fetched = Bundle.open(fetch_bundle(uri, tracked_root))
        assert fetched.id == Bundle.open(tracked.bundle).id
        np.testing.assert_array_equal(fetched.scorer().score(asked), expected)


def test_fetching_leaves_no_trace_in_the_environment(tracked, tracked_root, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    fetch_bundle("models:/tiny@champion", tracked_root)
    assert tracking_uri(None, tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"


@pytest.mark.parametrize(
    "uri",
    [
        "models:/tiny@absent",
        "models:/tiny/99",
        "models:/absent@champion",
        "models:/tiny",
        "models:/tiny@a@b",
        "models:/",
        "runs:/absent/model",
    ],
)
def test_models_that_are_not_there(tracked, tracked_root, uri):
    with pytest.raises(RecsysError) as error:
        fetch_bundle(uri, tracked_root)
    assert "\n" not in str(error.value) and uri in str(error.value)


def test_a_model_without_a_bundle(tracking, logged, tracked_root, tmp_path):
    (tmp_path / "note.txt").write_text("not a bundle")
    tracking.log_folder(logged.info.run_id, tmp_path, "note")
    with pytest.raises(RecsysError, match="holds no bundle"):
        fetch_bundle(f"runs:/{logged.info.run_id}/note", tracked_root)


def test_nothing_logged_is_pickled(tracked_root, tracked):
    files = [path for path in (tracked_root / "mlartifacts").rglob("*") if path.is_file()]
    assert len(files) > 15
    for path in files:
        assert (
            path.suffix not in (".pkl", ".pickle", ".joblib", ".pt", ".pth", ".bin")
            or path.name == "items.bin"
        )
        head = path.read_bytes()[:2]
        assert head not in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK"), path


# One run, not two


def test_a_resumed_run_is_the_same_run(tracked, tracking, tracked_root, tiny_recipe, logged):
    """What a kill may leave undone is done again, in the run that is there."""
    before, params = count_runs(tracking), dict(logged.data.params)
    for name in ("mlflow", "track"):
        shutil.rmtree(tracked.boxes[name].folder)
    again = run(load_recipe(str(tiny_recipe)), tracked_root)
    assert set(again.made) == {"mlflow", "track"}
    assert track_json(again)["run_id"] == logged.info.run_id and count_runs(tracking) == before
    renewed = tracking.client.get_run(logged.info.run_id)
    assert renewed.data.params == params
    history = tracking.client.get_metric_history(logged.info.run_id, "fit/fmrlrec.seed0/loss")
    assert [metric.step for metric in history] == list(range(10))


def test_a_run_killed_before_its_parameters_gets_them(tracking):
    """As if killed after creation, then after a part of the parameters."""
    tags = {KEY_TAG: "half"}
    made = tracking.client.create_run(tracking.experiment_id, tags=tags).info.run_id
    values = {"table": {str(number): number for number in range(250)}}
    tracking.client.log_param(made, "table.7", "7")
    assert tracking.ensure_run("half", "half", values) == made
    assert tracking.ensure_run("half", "half", values) == made
    params = tracking.client.get_run(made).data.params
    assert params == {f"table.{number}": str(number) for number in range(250)}


def test_a_database_is_whole_or_absent(tmp_path, monkeypatch):
    """MLflow cannot open a database whose making was cut short, so it is made beside and renamed."""
    import mlflow

    class Cut(Exception):
        pass

    def client(tracking_uri, registry_uri):
        Path(tracking_uri.removeprefix("sqlite:///")).write_bytes(b"half of it")
        raise Cut

    monkeypatch.setattr(mlflow, "MlflowClient", client)
    with pytest.raises(Cut):
        new_database(f"sqlite:///{tmp_path}/mlflow.db")
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_cannot_be_used(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlflow.db").write_text("not a database " * 100)
    with pytest.raises(RecsysError, match="MLflow cannot use this store") as error:
        Tracking(None, tmp_path, "recsys")
    assert "\n" not in str(error.value)


# Later versions; these change the registry, so they come last


def test_a_second_version_moves_the_candidate_alone(tracked, tracking, tracked_root, tiny_recipe):
    later = run(load_recipe(str(tiny_recipe), ["models.fmrlrec.window=6"]), tracked_root)
    assert track_json(later)["version"] == "2"
    assert track_json(later)["run_id"] != track_json(tracked)["run_id"]
    assert aliases(tracking, "tiny") == {"candidate": "2", "champion": "1"}
    assert promote("tiny", tracked_root) == "2"
    assert aliases(tracking, "tiny") == {"candidate": "2", "champion": "2"}
    assert fetch_bundle("models:/tiny@champion", tracked_root).name == later.bundle.name
    assert promote("tiny", tracked_root) == "2"  # again is no mistake
    for wrong in (("absent", "candidate"), ("tiny", "absent")):
        with pytest.raises(RecsysError, match="recsys run registers one"):
            promote(wrong[0], tracked_root, alias=wrong[1])


def test_another_protocol_is_a_child_of_the_same_run(tracked, tracking, tracked_root, tiny_recipe):
    before, versions = count_runs(tracking), len(tracking.client.search_model_versions("name = 'tiny'"))
    other = run(load_recipe(str(tiny_recipe), ["evaluate.ks=[3]"]), tracked_root)
    logged = track_json(other)
    assert logged["run_id"] == track_json(tracked)["run_id"] != logged["logged_to"]
    child = tracking.client.get_run(logged["logged_to"])
    assert child.data.tags["mlflow.parentRunId"] == logged["run_id"]
    assert "test/ndcg_at_3" in child.data.metrics
    assert "test/ndcg_at_3" not in tracking.client.get_run(logged["run_id"]).data.metrics
    assert count_runs(tracking) == before + 1
    assert len(tracking.client.search_model_versions("name = 'tiny'")) == versions

"""A recipe from end to end on planted data: what is made, what is not made again, and what it rests on."""

import json
from pathlib import Path

import planted
import polars as pl
import pytest
from hash_text import HashText
from safetensors.numpy import load_file

from recsys.bundle import Bundle
from recsys.config import parse
from recsys.dataset import Dataset
from recsys.errors import ConfigError, LockedError
from recsys.features.table import FeatureTable
from recsys.files import locked
from recsys.ledger import write_look
from recsys.pipeline import RunResult, plan, run, train
from recsys.recipe import Recipe
from recsys.report import Report

TESTS = {"test.popularity.seed0", "test.ease.seed0", "test.fmrlrec.seed0"}


def recipe_of(dataset: Path, **changes) -> Recipe:
    """A tiny recipe; changes: dicts are merged over its tables, other values take their place."""
    values = {
        "name": "tiny",
        "data": {"kind": "dataset", "path": str(dataset)},
        "split": {"method": "global_time", "catalogue": "listed"},
        "features": {"text": {"kind": "hash_text:HashText"}},
        "models": {
            "popularity": {},
            "ease": {"regularisation": 10.0},
            "fmrlrec": {"tables": ["text"], "widths": [4, 8], "blocks": 1, "window": 20},
        },
        "train": {"epochs": 2},
        "evaluate": {"ks": [5], "bootstrap": 20, "widths": "all"},
        "track": {"enabled": False},
    }
    for key, value in changes.items():
        values[key] = values.get(key, {}) | value if isinstance(value, dict) else value
    return parse(Recipe, values, where="test")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return planted.content(tmp_path_factory.mktemp("pipeline") / "data", users=60).path


@pytest.fixture(scope="module")
def walked(dataset, tmp_path_factory) -> RunResult:
    """The recipe with MLflow, once; nothing that a test does may change its boxes."""
    root = tmp_path_factory.mktemp("runs")
    return run(recipe_of(dataset, track={"enabled": True, "uri": None}), root)


def root_of(result: RunResult) -> Path:
    return result.boxes["data"].root


def ledger(root: Path) -> list[dict]:
    path = root / "ledger.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def states(result: RunResult) -> dict[str, dict[str, bytes]]:
    """box -> array -> bytes, of every fit."""
    return {
        name: {key: value.tobytes() for key, value in load_file(box.folder / "state.safetensors").items()}
        for name, box in result.boxes.items()
        if name.startswith("fit.")
    }


def test_everything_is_made_once(walked, dataset):
    assert set(walked.made) == set(walked.boxes)
    assert {name.partition(".")[0] for name in walked.boxes} == {
        "data", "split", "features", "fit", "select", "mlflow", "bundle", "test", "report", "track"
    }  # fmt: skip
    again = run(walked.recipe, root_of(walked))
    assert again.made == () and again.boxes.keys() == walked.boxes.keys()
    assert len(ledger(root_of(walked))) == 1  # looking at what is there is no further look
    assert not list(root_of(walked).glob("scratch/*/*"))


def test_names_lead_to_the_latest_boxes(walked):
    latest = run(walked.recipe, root_of(walked))
    folder = root_of(walked) / "tiny"
    assert (folder / "bundle").resolve() == latest.bundle and (folder / "report").resolve() == latest.report
    assert Bundle.open(folder / "bundle").manifest["recipe"]["name"] == "tiny"


def test_the_report_covers_every_model(walked):
    report = Report.load(walked.report)
    assert set(report.models) == {"popularity", "ease", "fmrlrec"}
    values = report.models["fmrlrec"]["values"]
    assert {"test/ndcg_at_5", "test/ndcg_at_5/width.4", "test/ndcg_at_5/pool.cold"} <= values.keys()
    entry = values["test/ndcg_at_5"]
    assert entry["low"] <= entry["value"] <= entry["high"] and entry["n"] > 0
    assert set(report.facts["valid"]) == set(report.models)
    assert walked.selected == max(report.facts["valid"], key=report.facts["valid"].get)


def test_another_protocol_lands_on_a_child_run(walked):
    root = root_of(walked)
    before = len(ledger(root))
    other = recipe_of(
        Path(walked.recipe.data["path"]),
        evaluate={"ks": [3], "mask": "off"},
        track={"enabled": True, "uri": None},
    )
    result = run(other, root)
    assert set(result.made) == TESTS | {"report", "track"}
    first, second = (
        json.loads((one.boxes["track"].folder / "track.json").read_text()) for one in (walked, result)
    )
    assert first["run_id"] == second["run_id"] == first["logged_to"] != second["logged_to"]
    assert first["version"] == second["version"]  # the same bundle is not registered twice
    from mlflow import MlflowClient

    child = MlflowClient(second["uri"]).get_run(second["logged_to"])
    assert child.data.tags["mlflow.parentRunId"] == first["run_id"]
    assert "test/hr_at_3" in child.data.metrics and "test/hr_at_5" not in child.data.metrics
    # a second look at the same test part is counted, and said
    assert [look["look"] for look in ledger(root)] == list(range(1, before + 2))
    assert Report.load(result.report).facts["look"] == before + 1
    assert Report.load(walked.report).facts["look"] == 1


def test_looks_are_counted_for_each_split(tmp_path):
    """A report that is written again after a kill is the same look; another split starts from one."""
    path = tmp_path / "ledger.jsonl"
    looks = [("a", "s"), ("b", "s"), ("a", "s"), ("a", "t"), ("c", "s"), ("b", "s")]
    counted = [write_look(path, {"report": report, "split": split}) for report, split in looks]
    assert counted == [1, 2, 1, 1, 3, 2]
    assert len(ledger(tmp_path)) == 4


def test_a_locked_folder_is_refused_in_one_line(dataset, tmp_path):
    with locked(tmp_path), pytest.raises(LockedError) as error:
        run(recipe_of(dataset), tmp_path)
    assert "in use by process" in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "boxes").exists()


def test_planning_makes_nothing(dataset, tmp_path):
    line = plan(recipe_of(dataset), tmp_path / "runs")
    assert line.boxes and not any(box.done for box in line.boxes.values())
    assert not (tmp_path / "runs").exists()


def test_training_does_not_look_at_test(dataset, tmp_path):
    valid = train(recipe_of(dataset), tmp_path)
    assert set(valid) == {"popularity", "ease", "fmrlrec"}
    made = {path.name.rpartition("-")[0] for path in (tmp_path / "boxes").iterdir()}
    fits = {"fit.popularity.seed0", "fit.ease.seed0", "fit.fmrlrec.seed0"}
    assert made == {"data", "split", "features.text", "select"} | fits
    assert ledger(tmp_path) == []
    result = run(recipe_of(dataset), tmp_path)
    assert not made & set(result.made)
    assert len(ledger(tmp_path)) == 1


def test_a_run_that_broke_off_goes_on(dataset, tmp_path, monkeypatch):
    def broken(self, contents):
        raise OSError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(HashText, "encode", broken)
        with pytest.raises(OSError, match="disk is gone"):
            run(recipe_of(dataset), tmp_path)
    assert {path.name.rpartition("-")[0] for path in (tmp_path / "boxes").iterdir()} == {"data", "split"}
    (tmp_path / "boxes" / ".select-half.written").mkdir()
    result = run(recipe_of(dataset), tmp_path)
    assert set(result.boxes) - set(result.made) == {"data", "split"}
    assert not list((tmp_path / "boxes").glob(".*"))


def test_selection_rests_on_validation_alone(dataset, tmp_path):
    """Other test rows, the same choice from the same validation values and the same fitted bytes."""
    source = Dataset.open(dataset)
    rows = source.interactions.collect()
    cut = rows["timestamp"].sort()[int(0.9 * len(rows))]
    shuffled = rows.with_columns(
        pl.when(pl.col("timestamp") >= cut).then(pl.col("item_id").reverse()).otherwise(pl.col("item_id"))
    )
    assert not shuffled.equals(rows)
    Dataset.from_frames(tmp_path / "other", shuffled, source.items)
    found = []
    for path, root in ((dataset, tmp_path / "one"), (tmp_path / "other", tmp_path / "two")):
        train(recipe_of(path), root)
        line = plan(recipe_of(path), root)
        chosen = json.loads((line.boxes["select"].folder / "selected.json").read_text())
        found.append((chosen, states(RunResult(recipe_of(path), line.boxes, ()))))
    assert found[0] == found[1]


def test_hidden_text_is_never_read(dataset, tmp_path):
    """A third of the texts hidden: finite scores, a slice of their own; other bytes there change nothing."""
    recipe = {"features": {"text": {"kind": "hash_text:HashText", "hide": 0.3}}}
    one = run(recipe_of(dataset, **recipe), tmp_path / "one")
    table = FeatureTable.load(one.boxes["features.text"].folder)
    assert table.present_E.sum() == round(0.7 * len(table.ids))
    values = Report.load(one.report).models["fmrlrec"]["values"]
    assert values["test/ndcg_at_5/missing.text"]["n"] > 0
    assert all(0 <= entry["value"] < float("inf") for entry in values.values())
    source = Dataset.open(dataset)
    hidden = table.ids.filter(~pl.Series(table.present_E))
    garbled = pl.when(pl.col("item_id").is_in(hidden.implode())).then(pl.lit("zzz")).otherwise("title")
    Dataset.from_frames(
        tmp_path / "other", source.interactions, source.items.with_columns(garbled.alias("title"))
    )
    two = run(recipe_of(tmp_path / "other", **recipe), tmp_path / "two")
    assert states(two) == states(one)
    assert Report.load(two.report).models["fmrlrec"]["values"] == values


def test_seeds_and_refit(dataset, tmp_path):
    recipe = recipe_of(dataset, seeds=[0, 1], select={"refit": ["train", "valid"]})
    result = run(recipe, tmp_path)
    names = set(result.boxes)
    # one fit a seed of what is looped, one in all of what is closed-form
    assert {"fit.fmrlrec.seed0", "fit.fmrlrec.seed1", "refit.fmrlrec.seed1", "test.fmrlrec.seed1"} <= names
    assert not {"fit.ease.seed1", "refit.ease.seed1", "test.ease.seed1"} & names
    for seed in (0, 1):
        first, last = (
            json.loads((result.boxes[f"{kind}.fmrlrec.seed{seed}"].folder / "fit.json").read_text())
            for kind in ("fit", "refit")
        )
        # what selection fixed is the number of epochs; the second fit has nothing left to look at
        assert len(last["progress"]["history"]) == first["progress"]["best_epoch"] + 1
        assert last["valid"] is None and first["valid"] is not None
    entry = Report.load(result.report).models["fmrlrec"]["values"]["test/ndcg_at_5"]
    assert entry["seeds"]["min"] <= entry["value"] <= entry["seeds"]["max"]
    assert entry["value"] == pytest.approx(entry["seeds"]["mean"])


def test_a_model_cannot_name_a_table_that_is_not_there(dataset, tmp_path):
    with pytest.raises(ConfigError, match=r"models\.fmrlrec\.tables names 'texts'.*did you mean 'text'"):
        plan(recipe_of(dataset, models={"fmrlrec": {"tables": ["texts"]}}), tmp_path)

"""The search for settings: what it may see, what it keeps, and what comes out of it."""

import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import planted
import pytest
from typer.testing import CliRunner

from recsys.cli import app
from recsys.config import parse
from recsys.errors import ConfigError, TrainingError
from recsys.pipeline import train
from recsys.recipe import Recipe, load_recipe
from recsys.registry import MODELS
from recsys.spaces import Range, space_of
from recsys.splits import SplitConfig, make_split
from recsys.tuning import tune, without_test

pytest.importorskip("optuna")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return planted.co_occurrence(tmp_path_factory.mktemp("tune") / "data", users=60).path


def recipe_of(dataset: Path, **changes) -> Recipe:
    values = {
        "name": "tiny",
        "data": {"kind": "dataset", "path": str(dataset)},
        "split": {"method": "leave_last_out"},
        "models": {"ease": {}, "short": {"model": "mf", "widths": [8], "batch_size": 64}},
        "tune": {"short": {"train.lr": {"low": 1e-3, "high": 0.1, "log": True}, "item_bias": [True, False]}},
        "train": {"epochs": 3, "monitor": {"metric": "ndcg_at_5"}},
        "track": {"enabled": False},
    }
    for key, value in changes.items():
        values[key] = values.get(key, {}) | value if isinstance(value, dict) else value
    return parse(Recipe, values, where="test")


def summary(found) -> dict:
    return {one.model: (one.best, dict(one.settings), dict(one.trials)) for one in found}


def test_every_model_gets_as_many_trials_and_the_best_setting_comes_first(dataset, tmp_path):
    found = tune(recipe_of(dataset), tmp_path, 4)
    assert {one.model for one in found} == {"ease", "short"}
    assert all(sum(one.trials.values()) == 4 and one.trials["fail"] == 0 for one in found)
    assert found[0].best >= found[1].best > 0
    by_name = {one.model: one for one in found}
    assert set(by_name["ease"].settings) in ({"regularisation"}, set())
    assert set(by_name["short"].settings) in ({"train.lr", "item_bias"}, set())


def test_the_recipe_as_it_stands_is_the_first_trial(dataset, tmp_path):
    """Where every setting of the space ruins the model, the search ends at the recipe's own."""
    recipe = recipe_of(
        dataset,
        tune={"short": {"train.lr": [1e-7, 1e-6]}},
        train={"lr": 0.03, "epochs": 8, "patience": 8, "monitor": {"metric": "ndcg_at_5"}},
    )
    alone = tune(recipe, tmp_path / "a", 1, models=("short",))
    assert alone[0].settings == {} and sum(alone[0].trials.values()) == 1
    found = tune(recipe, tmp_path / "a", 3, models=("short",))
    assert found[0].settings == {} and found[0].best == alone[0].best
    assert sum(found[0].trials.values()) == 3
    assert train(recipe, tmp_path / "a")["short"] == [pytest.approx(found[0].best)]


def test_a_second_call_does_what_is_missing(dataset, tmp_path):
    recipe = recipe_of(dataset)
    first = tune(recipe, tmp_path, 2, models=("ease",))
    again = tune(recipe, tmp_path, 2, models=("ease",))
    assert summary(again) == summary(first) and again[0].seconds == first[0].seconds
    more = tune(recipe, tmp_path, 5, models=("ease",))
    assert more[0].trials["complete"] == 5 and more[0].best >= first[0].best
    other = tune(
        recipe_of(dataset, train={"epochs": 3, "monitor": {"metric": "hr_at_5"}}),
        tmp_path,
        1,
        models=("ease",),
    )
    assert other[0].trials["complete"] == 1  # another metric is another search


def test_the_test_part_is_out_of_reach(dataset, tmp_path, monkeypatch):
    """Random items in place of every test row change nothing: not a trial, not a value."""
    recipe = recipe_of(dataset)
    before = tune(recipe, tmp_path / "a", 3)
    from recsys import tuning

    def scrambled(folder):
        split = load(folder)
        item_N = split.log.item_N.copy()
        tested = split.part_N == 2
        item_N[tested] = np.random.default_rng(1).integers(split.num_items, size=tested.sum())
        return replace(split, log=replace(split.log, item_N=item_N))

    load = tuning.Split.load
    monkeypatch.setattr(tuning.Split, "load", staticmethod(scrambled))
    assert summary(tune(recipe, tmp_path / "b", 3)) == summary(before)


def test_a_split_without_its_test_part_has_no_test_questions(chain):
    split = make_split(chain, SplitConfig(method="leave_last_out"))
    rest = without_test(split)
    assert len(rest.queries("test")) == 0 and rest.id == split.id
    valid, kept = split.queries("valid"), rest.queries("valid")
    assert kept.targets.flat()[1].tolist() == valid.targets.flat()[1].tolist()
    assert [row.tolist() for row in map(kept.queries.history.__getitem__, range(9))] == [
        row.tolist() for row in map(valid.queries.history.__getitem__, range(9))
    ]


def test_the_winner_is_a_recipe(dataset, tmp_path):
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(
        f"""
name = "tiny"
data = {{ kind = "dataset", path = "{dataset}" }}
split.method = "leave_last_out"
models.ease = {{}}
models.popularity = {{}}
train.monitor.metric = "ndcg_at_5"
track.enabled = false
"""
    )
    command = ["tune", str(recipe), "--models", "ease", "--trials", "3", "--out", str(tmp_path / "runs")]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0, shown.output
    path = tmp_path / "runs" / "tune" / "tiny.toml"
    written = tomllib.loads(path.read_text())
    assert written["models"]["popularity"] == {} and set(written["models"]["ease"]) <= {"regularisation"}
    found = tune(load_recipe(str(recipe)), tmp_path / "runs", 3, models=("ease",))
    assert train(load_recipe(str(path)), tmp_path / "runs")["ease"] == [pytest.approx(found[0].best)]


def test_trials_are_runs_under_one_of_the_recipe(dataset, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    tune(recipe_of(dataset, track={"enabled": True}), tmp_path, 2, models=("short",))
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    (parent,) = (run for run in runs if run not in children)
    assert len(children) == 2 and all(
        child.data.tags["mlflow.parentRunId"] == parent.info.run_id for child in children
    )
    assert all(child.data.metrics["valid"] >= 0 for child in children)
    assert sum("train.lr" in child.data.params for child in children) == 1  # the other: the recipe itself


def test_weak_trials_are_cut_short(dataset, tmp_path):
    """Of many learning rates the ones that teach nothing are stopped before their last epoch."""
    space = {"short": {"train.lr": [1e-7, 0.03]}}
    found = tune(
        recipe_of(
            dataset, tune=space, train={"epochs": 8, "patience": 8, "monitor": {"metric": "ndcg_at_5"}}
        ),
        tmp_path,
        16,
        models=("short",),
    )
    assert found[0].settings == {"train.lr": 0.03} and found[0].trials["pruned"] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tune": {"nobody": {}}}, "tune.nobody: no such model"),
        ({"tune": {"ease": {"regularisation": {"low": 5, "high": 1}}}}, "tune.ease.regularisation"),
        ({"tune": {"ease": {"regularisation": [1.0]}}}, "list of two or more"),
        ({"models": {"ease": {}, "x": {"model": "test_recipe:Unknown"}}}, "no search space|cannot import"),
    ],
)
def test_spaces_that_cannot_be_searched_are_refused(dataset, changes, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        tune(recipe_of(dataset, **changes), tmp_path, 1)
    assert not (tmp_path / "tune").exists()


def test_a_model_that_never_comes_to_an_end_is_named(dataset, tmp_path):
    space = {"short": {"train.lr": [1e30, 1e31]}}
    with pytest.raises(TrainingError, match="short: none of the 2 trials came to an end"):
        tune(recipe_of(dataset, tune=space, train={"lr": 1e30}), tmp_path, 2, models=("short",))


@pytest.mark.parametrize("kind", MODELS)
def test_every_registered_model_has_a_space_of_legal_settings(kind):
    from recsys.models.base import Model
    from recsys.registry import load_class
    from recsys.train_config import TrainConfig

    config = load_class(kind, MODELS, Model).Config
    for key, where in space_of(kind, None, kind).items():
        values = [where.low, where.high] if isinstance(where, Range) else where
        owner, name = (TrainConfig, key.removeprefix("train.")) if key.startswith("train.") else (config, key)
        for value in values:
            parse(owner, {name: value}, where=key)

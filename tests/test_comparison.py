"""Runs side by side: numbers by hand, what may not be compared, and the command from files to page."""

import json
from pathlib import Path

import numpy as np
import planted
import polars as pl
import pytest
from test_report import by_hand
from tiny_run import write_recipe
from typer.testing import CliRunner

from recsys import svg
from recsys.cli import app
from recsys.comparison import Contender, compare, gather
from recsys.comparison_html import cost
from recsys.errors import EvaluationError
from recsys.evaluate import Evaluation
from recsys.pipeline import run
from recsys.recipe import load_recipe
from recsys.stats import average_ranks, critical_difference, paired_test, paired_tests


def judged(name: str, *seeds: list[float], **facts) -> Contender:
    evaluations = [by_hand(name, values) for values in seeds]
    for evaluation in evaluations:
        evaluation.facts.update({"part": "test", "split_id": "abc"} | facts)
    return Contender(name, tuple(evaluations), {"bytes": 2_830_000.0})


def test_best_first_and_every_pair_tested():
    rng = np.random.default_rng(0)
    weak = rng.random(60).round(2)
    strong, even = (weak + 0.2).tolist(), weak[::-1].tolist()
    found = compare([judged("weak", weak.tolist()), judged("strong", strong, strong), judged("even", even)])
    assert next(iter(found.contenders)) == "strong" and found.metric == "test/ndcg_at_5"
    assert found.contenders["strong"]["values"][found.metric]["value"] == pytest.approx(np.mean(strong))
    pairs = {(pair["a"], pair["b"]): pair for pair in found.pairs}
    assert len(pairs) == 3
    clear = pairs["strong", "weak"]
    assert clear["difference"] == pytest.approx(0.2) and clear["low"] == pytest.approx(0.2)
    assert clear["p_holm"] == pytest.approx(3 * clear["p"]) and clear["p_holm"] < 0.01
    (equal,) = (pair for names, pair in pairs.items() if "strong" not in names)
    assert equal["p_holm"] > 0.5 and equal["low"] < 0 < equal["high"]
    assert found.ranks["strong"] == min(found.ranks.values())
    assert sum(found.ranks.values()) == pytest.approx(1 + 2 + 3)


def test_many_pairs_are_tested_as_one_is():
    rng = np.random.default_rng(1)
    a, b, c = rng.random((3, 50))
    users = rng.integers(0, 20, 50)
    together = paired_tests(np.stack([a - b, b - c], axis=1), users, resamples=300)
    assert together[0] == pytest.approx(paired_test(a, b, users, resamples=300))


def test_ranks_share_ties_and_the_critical_difference_is_demsars():
    assert average_ranks(np.array([[0.5, 0.5, 0.1], [0.2, 0.9, 0.4]])).tolist() == [2.25, 1.25, 2.5]
    # Demsar 2006, section 3.2.2: 4 classifiers on 14 data sets, alpha .05 -> q = 2.569, CD = 1.25
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"split_id": "other"}, "'a' and 'b' differ in split_id"),
        ({"part": "valid"}, "differ in part"),
        (
            {"protocol": {"ks": [5, 10], "mask": "off", "window": 50, "repeat_targets": "keep"}},
            "evaluate.mask = history",
        ),
    ],
)
def test_what_differs_is_named(facts, message):
    with pytest.raises(EvaluationError, match=message):
        compare([judged("a", [1, 0]), judged("b", [0, 0], **facts)])


def test_other_questions_and_unknown_metrics_are_refused():
    other = judged("b", [0.0, 0.0])
    other.evaluations[0].per_query = other.evaluations[0].per_query.with_columns(query_id=pl.Series([7, 8]))
    with pytest.raises(EvaluationError, match="answered different questions"):
        compare([judged("a", [1, 0]), other])
    with pytest.raises(EvaluationError, match="one model alone"):
        compare([judged("a", [1, 0])])
    with pytest.raises(EvaluationError, match=r"'ndcg_at_7' was not measured.*ndcg_at_5"):
        compare([judged("a", [1, 0]), judged("b", [0, 0])], "ndcg_at_7")


def test_pictures_hold_every_name_and_join_what_is_not_told_apart():
    drawn = svg.critical_difference({"<one>": 1.0, "two": 1.2, "three": 3.0}, 0.5, "ranks")
    assert all(name in drawn for name in ("&lt;one&gt; 1.000", "two 1.200", "three 3.000"))
    assert drawn.count('stroke-width="4"') == 1  # one bar, over the first two
    entry = {"value": 0.5, "low": None, "high": None}
    assert "0.5000" in svg.intervals([("only", entry)], "values")


def test_costs_are_read_at_a_glance():
    costs = {"bytes": 2_830_000.0, "parameters": 16_128.0, "train_seconds": 1.014, "queries_per_second": None}
    assert [cost(costs, name) for name in costs] == ["2.83M", "16.1k", "1.01", "-"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    """Two runs over one split; both have a popularity."""
    root = tmp_path_factory.mktemp("compared")
    data = planted.order(root / "data").path
    recipe = write_recipe(root / "tiny.toml", data, track=False)
    run(load_recipe(str(recipe)), root / "runs")
    other = load_recipe(str(recipe), ["name=other", "seeds=[0]"])
    kept = {name: other.models[name] for name in ("popularity", "ease")}
    run(other.model_copy(update={"models": kept}), root / "runs")
    return [root / "runs" / "tiny", root / "runs" / "other"]


def test_contenders_of_runs(runs):
    found = {one.label: one for one in gather(runs)}
    assert set(found) == {"tiny/popularity", "tiny/ease", "fmrlrec", "other/popularity", "other/ease"}
    assert len(found["fmrlrec"].evaluations) == 2
    costs = found["tiny/ease"].costs
    assert costs["parameters"] == 40 * 40 + 40 and costs["bytes"] > 4 * costs["parameters"]
    assert costs["queries_per_second"] > 0 and found["fmrlrec"].costs["train_seconds"] > 0
    assert "queries_per_second" not in gather(runs, timing=False)[0].costs


def test_the_command_from_files_to_page(runs, tmp_path):
    out = tmp_path / "out"
    shown = CliRunner().invoke(app, ["compare", *map(str, runs), "--metric", "hr_at_5", "--out", str(out)])
    assert shown.exit_code == 0, shown.output
    assert "tiny/ease" in shown.stdout and "hr@5" in shown.stdout
    stored = json.loads((out / "comparison.json").read_text())
    assert stored["metric"] == "test/hr_at_5" and len(stored["pairs"]) == 10
    page = (out / "comparison.html").read_text()
    assert "<script" not in page and "http" not in page.replace("http-equiv", "")
    assert page.count("<svg") == 2 and "history.5-19" in page


def test_an_evaluation_alone_is_a_contender(runs, tmp_path):
    (first, *_) = gather(runs[:1], timing=False)
    first.evaluations[0].save(tmp_path / "lists")
    labels = [one.label for one in gather([tmp_path / "lists", runs[0]], timing=False)]
    assert labels == ["lists/popularity", "tiny/popularity", "ease", "fmrlrec"]
    assert Evaluation.load(tmp_path / "lists").facts == first.evaluations[0].facts


def test_a_folder_without_a_report_is_named(tmp_path):
    with pytest.raises(EvaluationError, match="no report here"):
        gather([tmp_path])

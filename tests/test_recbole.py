"""RecBole beside us: files that keep the split, lists that come back, and what is said when it cannot be."""

import json
import stat
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import planted
import polars as pl
import pytest
from typer.testing import CliRunner

from recsys.cli import app
from recsys.dataset import Dataset
from recsys.errors import ConfigError, DataError, RecsysError, SplitError
from recsys.evaluate import Evaluation
from recsys.models.base import FitContext
from recsys.models.baselines.popularity import Popularity, PopularityConfig
from recsys.protocol import Protocol
from recsys.rankings import Rankings
from recsys.recbole import environment as environments
from recsys.recbole.atomic import write_benchmark, write_dataset
from recsys.recbole.run import Job, _write_seen, run_recbole
from recsys.sources import open_source
from recsys.splits import SplitConfig, make_split

PROTOCOL = Protocol(ks=(5,), bootstrap=20, slices=())


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """An interpreter that takes RecBole's place."""
    script = tmp_path_factory.mktemp("fake") / "python"
    fake = Path(__file__).with_name("fake_recbole.py")
    script.write_text(f"#!{sys.executable}\n{fake.read_text()}")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return script


def table(path: Path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text().splitlines()]


@pytest.mark.parametrize("method", ["leave_last_out", "global_time"])
def test_benchmark_files_are_the_parts_of_the_split(chain, method, tmp_path):
    split = make_split(chain, SplitConfig(method=method))
    write_benchmark(split, tmp_path / "data", sequential=False)
    found = {part: table(tmp_path / "data" / f"data.{part}.inter") for part in ("train", "valid", "test")}
    log = split.log
    for code, part in enumerate(found):
        assert found[part][0] == ["user_id:token", "item_id:token", "timestamp:float"]
        rows = np.flatnonzero(split.part_N == code)
        expected = [
            [f"u{user}", f"i{item}", str(float(time))]
            for user, item, time in zip(
                *(part[rows] for part in (log.user_N, log.item_N, log.time_N)), strict=True
            )
        ]
        assert found[part][1:] == expected and expected
    assert table(tmp_path / "data" / "data.item")[1:] == [[f"i{item}"] for item in range(split.num_items)]


def test_rows_of_sequence_models_hold_what_came_before(chain_split, tmp_path):
    write_benchmark(chain_split, tmp_path / "data", sequential=True, window=3)
    rows = table(tmp_path / "data" / "data.test.inter")[1:]
    assert len(rows) == chain_split.num_users
    for user, item, before in rows:
        sequence = chain_split.log.sequences[int(user[1:])].tolist()
        assert [f"i{i}" for i in sequence[-4:]] == [*before.split(), item]
    first = [row for row in table(tmp_path / "data" / "data.train.inter")[1:] if row[0] == "u0"]
    assert [len(before.split()) for *_, before in first[:4]] == [1, 2, 3, 3]  # none for the very first event


def test_a_dataset_goes_out_and_comes_back(tmp_path):
    items = pl.DataFrame(
        {
            "item_id": ["0010", "a b"],
            "title": ['Say "yes"\tnow', None],
            "category": [["Toys", "Board games"], None],
        }
    )
    log = pl.DataFrame(
        {"user_id": ["u", "v"], "item_id": ["0010", "a b"], "timestamp": [5, 7], "weight": [1.0, 4.0]}
    )
    dataset = Dataset.from_frames(tmp_path / "given", log, items)
    shown = CliRunner().invoke(app, ["data", "export", str(dataset.path), str(tmp_path / "box")])
    assert shown.exit_code == 0, shown.output
    source = {"kind": "recbole", "root": str(tmp_path / "box"), "title": "title"}
    back = open_source(source).prepare(tmp_path / "back")
    columns = ["user_id", "item_id", "timestamp", "weight"]
    before, after = (one.interactions.select(columns).collect() for one in (dataset, back))
    assert after.equals(before)
    assert back.items["title"][0] == "Say 'yes' now"


def test_an_id_that_the_format_cannot_hold_is_named(tmp_path):
    log = pl.DataFrame({"user_id": ["u"], "item_id": ["a\tb"], "timestamp": [5]})
    dataset = Dataset.from_frames(tmp_path / "given", log)
    with pytest.raises(DataError, match=r"item_id 'a\\tb'"):
        write_dataset(dataset, tmp_path / "box")
    assert not (tmp_path / "box").exists()


@pytest.mark.parametrize("mask", ["history", "off"])
@pytest.mark.parametrize("model", ["Pop", "SeqPop"])
def test_lists_that_come_back_meet_our_metrics(chain, chain_split, python, model, mask, tmp_path):
    """Popularity over there is popularity over here, query by query."""
    protocol = PROTOCOL.model_copy(update={"mask": mask})
    found = run_recbole(Job(model), chain, chain_split, protocol, tmp_path, python=python, track=False)
    ours = Popularity(PopularityConfig())
    ours.fit(FitContext(chain_split.fit_log()))
    # sequence models learn from rows that have something before them, so not from first events
    if model == "SeqPop":
        log = chain_split.fit_log()
        first = np.zeros(len(log), bool)
        first[log.indptr_U1[:-1]] = True
        ours.fit(FitContext(log.take(~first)))
    # ties go by index on both sides, which our evaluation counts against a model: compare the lists themselves
    expected = Rankings.from_scorer(ours, chain_split, "test", 5, protocol).frame
    kept = Rankings.load(found.folder / "lists.parquet").frame
    assert kept.select(expected.columns).equals(
        expected.with_columns(kept["rank"].cast(expected["rank"].dtype))
    )
    assert found.own == {"ndcg@5": 0.25} and found.evaluation.facts["costs"]["parameters"] == 7
    assert found.look == 1 and "epoch 1" in (found.folder / "log.txt").read_text()


def test_results_may_lie_in_a_relative_folder(chain, chain_split, python, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    found = run_recbole(Job("Pop"), chain, chain_split, PROTOCOL, Path("runs"), python=python, track=False)
    assert (tmp_path / found.folder / "lists.parquet").is_file()


def test_the_same_job_is_not_done_again(chain, chain_split, python, tmp_path):
    first = run_recbole(Job("Pop"), chain, chain_split, PROTOCOL, tmp_path, python=python, track=False)
    again = run_recbole(
        Job("Pop"), chain, chain_split, PROTOCOL, tmp_path, python=Path("/absent"), track=False
    )
    assert again.folder == first.folder and again.look == 1
    other = run_recbole(
        Job("Pop", seed=1), chain, chain_split, PROTOCOL, tmp_path, python=python, track=False
    )
    assert other.folder != first.folder and other.look == 2


def test_it_stands_in_mlflow_with_both_kinds_of_metrics(chain, chain_split, python, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    found = run_recbole(Job("Pop"), chain, chain_split, PROTOCOL, tmp_path, python=python)
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    logged = client.get_run(found.run_id)
    assert logged.data.metrics["recbole/ndcg_at_5"] == 0.25
    assert logged.data.metrics["test/ndcg_at_5"] == found.evaluation.value("test/ndcg_at_5")
    assert logged.data.params["recbole.model"] == "Pop" and logged.info.status == "FINISHED"


def test_what_fails_there_leaves_nothing_here(chain, chain_split, python, tmp_path):
    with pytest.raises(RecsysError, match="RecBole failed \\(no such thing\\)"):
        job = Job("Pop", settings={"fail": 1})
        run_recbole(job, chain, chain_split, PROTOCOL, tmp_path, python=python, track=False)
    with pytest.raises(ConfigError, match="RecBole has no model 'Nope'"):
        run_recbole(Job("Nope"), chain, chain_split, PROTOCOL, tmp_path, python=python, track=False)
    assert not list(tmp_path.glob("recbole-*")) and not list(tmp_path.glob(".*rec*"))


def test_wrong_splits_are_refused(chain, tmp_path):
    other = planted.order(tmp_path / "other", users=20)
    split = make_split(other, SplitConfig(method="leave_last_out"))
    with pytest.raises(SplitError, match="another Dataset"):
        run_recbole(Job("Pop"), chain, split, PROTOCOL, tmp_path)
    staged = make_split(other, SplitConfig(method="staged"))
    with pytest.raises(DataError, match="expected train, valid and test"):
        write_benchmark(staged, tmp_path / "staged", sequential=False)


def test_a_python_that_is_too_new_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(environments.sys, "version_info", (3, 13, 0))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RecsysError, match=r"Python 3\.11 or older, this is 3\.13"):
        environments.environment(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_the_command_finds_a_split_by_its_id(chain, chain_split, python, monkeypatch, tmp_path):
    monkeypatch.setattr("recsys.recbole.run.environment", lambda: python)
    chain_split.save(tmp_path / "boxes" / "split-abc")
    command = ["recbole", "Pop", "--data", str(chain.path), "--out", str(tmp_path), "--no-track"]
    rules = ["--protocol", "ks=[5]", "--protocol", "bootstrap=20"]
    shown = CliRunner().invoke(app, [*command, "--split", chain_split.id[:8], *rules])
    assert shown.exit_code == 0, shown.output
    assert "ours, of its lists" in shown.stdout and "0.2500" in shown.stdout
    refused = CliRunner().invoke(app, [*command, "--split", "zzz"])
    assert isinstance(refused.exception, SplitError) and "0 splits match 'zzz'" in str(refused.exception)
    (folder,) = tmp_path.glob("recbole-pop-*")
    assert Evaluation.load(folder).name == "recbole-Pop"


def test_an_item_outside_the_catalogue_hides_no_other(chain, python, tmp_path):
    """A history may name items that are not ranked: they leave the items that are in peace."""
    split = make_split(chain, SplitConfig(method="global_time", catalogue="train"))
    item_N = np.where(
        split.log.item_N == 0, -1, split.log.item_N
    )  # the most popular item's place, by its index
    strange = replace(split, log=replace(split.log, item_N=item_N))
    path = tmp_path / "seen.npz"
    _write_seen(path, strange.queries("test"), strange, PROTOCOL)
    seen = np.load(path)
    assert len(seen["items"]) == seen["starts"][-1] and 0 not in seen["items"] and (seen["items"] > 0).all()


@pytest.mark.recbole
@pytest.mark.parametrize("model", ["BPR", "SASRec"])
def test_recbole_itself(chain, chain_split, model, tmp_path):
    """Its own metrics and ours agree where they mean the same: BPR with the history masked, SASRec with nothing."""
    protocol = PROTOCOL.model_copy(update={"mask": "history" if model == "BPR" else "off"})
    settings = {"epochs": 3, "train_batch_size": 256}
    found = run_recbole(Job(model, settings=settings), chain, chain_split, protocol, tmp_path, track=False)
    for own, ours in {"hit": "hr", "ndcg": "ndcg", "recall": "recall", "mrr": "mrr"}.items():
        assert found.own[f"{own}@5"] == pytest.approx(found.evaluation.value(f"test/{ours}_at_5"), abs=1e-3)
    assert json.loads((found.folder / "recbole.json").read_text())["versions"]["recbole"] == "1.2.1"

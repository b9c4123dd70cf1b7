"""The whole line on planted data: judged as trained models are, repeatable, resumable, replayable."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from chat_stub import Stub, stubbed
from zeroshot_case import RECORD, experiment, headline, oracle, planted, recorded, run

from recsys.candidates import Candidates
from recsys.errors import EvaluationError, RecsysError, SplitError
from recsys.evaluate import evaluate
from recsys.rankings import Rankings, evaluate_rankings
from recsys.zeroshot import floors
from recsys.zeroshot.budget import BudgetError
from recsys.zeroshot.cases import Counts
from recsys.zeroshot.lab import Lab
from recsys.zeroshot.outcome import Outcome


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return planted(tmp_path_factory.mktemp("planted") / "data", pictures=True)


@pytest.fixture(scope="module")
def result(data, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    config = experiment(
        data,
        variants={"letters": {}, "list": {"rank": {"mode": "listwise", "rounds": 2, "combine": "central"}}},
        controls=["no_history", "other_user", "shuffled", "shuffled_images"],
        candidates={"n": 10, "base": "popularity"}, hybrid={"enabled": True, "users": 20}, mmr=[0.5],
        diagnostics={"position": True, "similarity": True, "memory": True, "users": 12},
    )  # fmt: skip
    return run(config, root)


def test_the_order_that_holds_by_construction(data, tmp_path):
    config = experiment(data, users=None)
    knows = run(config, tmp_path / "oracle", oracle(config, tmp_path / "oracle"))
    popular = experiment(data, users=None, client={"kind": "mock", "model": "popularity"})
    follows = run(popular, tmp_path / "popular")
    main = knows.outcome.facts["main"]
    assert headline(knows, main) == 1.0 > headline(knows, "popularity") > headline(knows, "random")
    assert headline(follows, follows.outcome.facts["main"]) == pytest.approx(
        headline(follows, "popularity"), abs=0.03
    )
    assert headline(knows, "bm25") > headline(knows, "random")


def test_everybody_stands_on_the_same_candidates(result):
    contenders = result.outcome.contenders
    kinds = {name: one["kind"] for name, one in contenders.items()}
    assert {"letters", "list"} == {name for name, kind in kinds.items() if kind == "variant"}
    assert {f"letters.{c}" for c in ("no_history", "other_user", "shuffled", "shuffled_images")} == {
        name for name, kind in kinds.items() if kind == "control"
    }
    assert {"popularity", "bm25", "random", "letters.mmr-0.5", "letters.hybrid"} <= set(kinds)
    assert all(one["values"][result.outcome.headline]["n"] == 24 for one in contenders.values())
    assert all("versus" in one for name, one in contenders.items() if name != "letters")
    assert result.outcome.headline == "test/ndcg_at_10/n10"


def test_without_its_own_history_the_model_knows_less(result):
    own = headline(result, "letters")
    assert own > headline(result, "letters.no_history") and own > headline(result, "letters.other_user")
    assert headline(result, "letters.shuffled") == own  # this one does not care for order
    assert headline(result, "letters.shuffled_images") == own  # nor for pictures that it is not shown


def test_what_is_kept(result):
    folder = result.folder
    assert Outcome.load(folder) == result.outcome
    rankings = Rankings.load(folder / "rankings" / "letters.parquet")
    assert rankings.frame["source"].unique().to_list() == ["letters"] and rankings.depth == 10
    users = pl.read_parquet(folder / "per_user.parquet")
    assert users.filter(pl.col("contender") == "letters")["test/ndcg_at_10/n10"].mean() == pytest.approx(
        headline(result, "letters")
    )
    judged = pl.read_parquet(folder / "judgements" / "list.parquet")
    assert (
        len(judged) == 240 and judged["mean_rank"].is_between(1, 10).all() and judged["score"].is_nan().all()
    )
    letters = pl.read_parquet(folder / "judgements" / "letters.parquet")
    of_items = pl.read_parquet(folder / "judgements" / "letters.items.parquet")
    assert letters["score"].is_finite().all()
    whole = of_items.filter(pl.col("fold") == -1)
    assert whole["judged"].sum() == 240 and whole["mean_place"].is_between(0, 1).all()
    item = whole["item_id"][0]
    others = letters.filter((pl.col("item_id") == item) & (pl.col("query_id") % 5 != 2))
    (mean,) = of_items.filter((pl.col("item_id") == item) & (pl.col("fold") == 2))["mean_place"]
    assert mean == pytest.approx((others["mean_rank"].mean() - 1) / 9)
    for page in ("report.html", "gallery.html"):
        text = (folder / page).read_text()
        assert "<script" not in text and "http://" not in text and "https://" not in text
    gallery = (folder / "gallery.html").read_text()
    assert (
        "data:image/jpeg;base64" in gallery and "figure class=truth" in gallery and "Candidates:" in gallery
    )


def test_kept_lists_give_the_kept_figures(result, data):
    lab = Lab.open(experiment(data), result.folder.parent)
    asked = lab.asked("test", 24)
    candidates = Candidates.load(result.folder / "candidates", asked.split)
    assert candidates.frame.equals(asked.candidates.frame)  # seeded: made anew they are the same
    rankings = Rankings.load(result.folder / "rankings" / "list.parquet")
    judged = evaluate_rankings(rankings, asked.split, "test", lab.config.protocol, candidates=candidates)
    assert judged.value(result.outcome.headline) == headline(result, "list")
    foreign = rankings.frame.with_columns(pl.col("item_id").replace(rankings.frame["item_id"][0], 59))
    with pytest.raises(EvaluationError, match=r"not among the candidates|twice"):
        evaluate_rankings(Rankings(foreign), asked.split, "test", lab.config.protocol, candidates=candidates)


def test_popularity_as_lists_scores_as_popularity_evaluated(data, tmp_path):
    lab = Lab.open(experiment(data), tmp_path)
    asked = lab.asked("test", 24)
    lists = floors.rank_scorer(Counts(lab.split), asked)
    _, by_list = lab.evaluated("x", lists, asked)
    direct = evaluate(
        Counts(lab.split), asked.split, "test", lab.config.protocol, candidates=asked.candidates
    )
    # equal counts: lists keep the candidates' random order, a scorer's ties count against it
    assert by_list.value("test/ndcg_at_10/n10") >= direct.value("test/ndcg_at_10/n10")


def test_chance_is_what_random_orders_give_on_average(data, tmp_path):
    config = experiment(
        data,
        split={"method": "random", "cuts": [0.5, 0.6]},
        candidates={"n": 8, "guaranteed": False},
        evaluate={"ks": [4, 8]},
    )
    lab = Lab.open(config, tmp_path)
    asked = lab.asked("test", 24)
    expected = floors.chance(asked, config.protocol)
    rng = np.random.default_rng(0)
    draws = [rng.permuted(asked.lists_QC, axis=1) for _ in range(40)]
    judged = [lab.evaluated("x", lists, asked)[1] for lists in draws]
    for metric in ("ndcg_at_4", "hr_at_4", "recall_at_4", "mrr_at_4", "map_at_4", "ndcg_at_8"):
        key = f"test/{metric}/n8"
        values = [one.value(key) for one in judged]
        spread = np.std(values) / len(values) ** 0.5
        assert abs(np.mean(values) - expected.value(key)) < 4 * spread + 1e-12, metric


@pytest.mark.parametrize("method", ["random", "popularity", "retrieved"])
@pytest.mark.parametrize("guaranteed", [True, False])
def test_candidates(data, tmp_path, method, guaranteed):
    from recsys.zeroshot.cases import drawn, make_candidates
    from recsys.zeroshot.config import CandidatesConfig

    split = drawn(Lab.open(experiment(data), tmp_path).split, "test", 20, 0)
    settings = CandidatesConfig(method=method, n=12, guaranteed=guaranteed, retriever="x", seed=3)
    scorers = {"x": Counts(split)}
    found = make_candidates(settings, split, "test", scorers)
    asked = split.queries("test")
    assert found.frame.equals(make_candidates(settings, split, "test", scorers).frame)
    inside = [set(asked.targets[row]) <= set(found.lists[row]) for row in range(20)]
    assert all(inside) == guaranteed
    for row in range(20):
        assert len(set(found.lists[row])) == 12
        assert not set(found.lists[row]) & set(asked.queries.history[row])
    places = [found.lists[row].tolist().index(asked.targets[row][0]) for row in range(20) if inside[row]]
    assert len(set(places)) > 3 or not guaranteed  # the truth has no place of its own


def test_users_are_drawn_and_nothing_else_changes(data, tmp_path):
    lab = Lab.open(experiment(data), tmp_path)
    few = lab.asked("test", 24).split
    assert len(few.queries("test")) == 24 and len(lab.split.queries("test")) == 60
    assert (few.fit_log().item_N == lab.split.fit_log().item_N).all() and len(few.queries("valid")) == 60
    again = Lab.open(experiment(data), tmp_path).asked("test", 24)
    assert (again.queries.query_id_Q == few.queries("test").query_id_Q).all()


def test_a_bundle_of_another_split_is_refused(data, tmp_path, cases):
    config = experiment(data, bundles={"other": str(cases("popularity").path)})
    with pytest.raises(SplitError, match="not the one"):
        run(config, tmp_path)


def test_a_repeat_asks_nothing_and_a_replay_needs_no_model(data, tmp_path):
    first = run(experiment(data), tmp_path)
    again = run(experiment(data, client={"kind": "mock", "model": "overlap", "cache": "replay"}), tmp_path)
    assert first.outcome.facts["spent"]["paid_requests"] == 24
    assert again.outcome.facts["spent"]["paid_requests"] == 0
    assert again.outcome.contenders == first.outcome.contenders
    assert again.outcome.facts["look"] == first.outcome.facts["look"] == 1
    other = experiment(
        data, client={"kind": "mock", "model": "overlap", "cache": "replay"}, prompt={"length": 3}
    )
    with pytest.raises(RecsysError, match="not recorded"):
        run(other, tmp_path)


def test_the_budget_ends_a_run_and_a_larger_one_goes_on(data, tmp_path):
    # some of the ten may still be on their way when the eleventh is refused
    with pytest.raises(BudgetError, match=r"budget\.requests = 10 is spent after (10|[6-9]) requests"):
        run(experiment(data, budget={"requests": 10}), tmp_path)
    assert not (tmp_path / "planted").exists()
    result = run(experiment(data, budget={"requests": 14}), tmp_path)
    assert result.outcome.facts["spent"]["paid_requests"] == 14
    assert result.outcome.facts["spent"]["requests"] == 24


DRIVER = """
import sys
from pathlib import Path
from zeroshot_case import experiment, run
client = {"kind": "openai", "model": "stub", "base_url": sys.argv[3], "concurrency": 2}
run(experiment(Path(sys.argv[1]), client=client, rank={"mode": "listwise"}), Path(sys.argv[2]))
"""


def test_killed_half_way_and_resumed_no_request_is_paid_twice(data, tmp_path):
    pytest.importorskip("openai", reason="the extra llm is not installed")
    stub = Stub(pause=0.05)
    with stubbed(stub) as url:
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
        command = [sys.executable, "-c", DRIVER, str(data), str(tmp_path), url]
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
        answers = tmp_path / "zeroshot-answers.jsonl"
        while not answers.exists() or answers.read_bytes().count(b"\n") < 8:
            assert process.poll() is None, process.stderr.read().decode()
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kept = answers.read_bytes().count(b"\n")
        assert 8 <= kept < 24
        client = {"kind": "openai", "model": "stub", "base_url": url, "concurrency": 2}
        result = run(experiment(data, client=client, rank={"mode": "listwise"}), tmp_path)
    assert result.outcome.facts["queries"] == 24
    assert result.outcome.facts["spent"]["paid_requests"] == 24 - kept
    # what was under way at the kill was never received: at most one request a thread
    assert sum(stub.answered.values()) <= 24 + 2 and len(stub.answered) == 24


def test_the_best_variant_on_validation_alone_is_tested(data, tmp_path):
    config = experiment(
        data,
        variants={"blind": {"prompt": {"length": 0}}, "seeing": {}},
        choose={"enabled": True, "users": 20},
    )
    result = run(config, tmp_path)
    choice = result.outcome.diagnostics["choice"]
    assert choice["seeing"] > choice["blind"]
    assert {n for n, one in result.outcome.contenders.items() if one["kind"] == "variant"} == {"seeing"}


def test_the_hybrid_is_at_least_the_base_ranker_on_what_it_was_tuned_on(result):
    hybrid = result.outcome.diagnostics["hybrid"]
    assert hybrid["base"] == "popularity" and 0 < hybrid["weight"] <= 1 and 0 < hybrid["asked_share"] <= 1
    assert headline(result, "letters.hybrid") > headline(result, "popularity")


def test_mlflow_gets_figures_costs_and_pages(data, tmp_path, empty_store):
    import shutil

    import mlflow

    store = tmp_path / "mlflow.db"
    shutil.copy(empty_store, store)
    shown = {"domain": "movies", "candidates": "title_image"}
    tracked = experiment(data, traces=2, prompt=shown, track={"enabled": True, "uri": f"sqlite:///{store}"})
    result = run(tracked, tmp_path)
    client = mlflow.MlflowClient(f"sqlite:///{store}")
    stored = client.get_run(result.run_id)
    assert stored.data.metrics["test/model.overlap/ndcg_at_10/n10"] == headline(result, "overlap")
    assert (
        stored.data.metrics["spent/prompt_tokens"] > 0 and "usage/model.overlap/prompt" in stored.data.metrics
    )
    assert stored.data.tags["recsys.prompt_version"] == "1"
    assert stored.data.params["zeroshot.prompt.domain"] == "movies"
    names = {entry.path for entry in client.list_artifacts(result.run_id, "zeroshot")}
    assert {"zeroshot/per_user.parquet", "zeroshot/gallery.html", "zeroshot/prompts.json"} <= names
    again = run(tracked.model_copy(update={"traces": 3}), tmp_path)
    assert again.run_id == result.run_id
    traces = client.search_traces(locations=[stored.info.experiment_id])
    assert len(traces) == 2  # once a run
    (span,) = traces[0].data.spans
    assert "Candidates:" in json.dumps(span.inputs) and traces[0].info.token_usage["input_tokens"] > 0
    assert '"image": "' in json.dumps(span.inputs) and "base64" not in json.dumps(traces[0].to_dict())


def test_the_shipped_record_gives_the_shipped_table(tmp_path):
    """Recorded from SmolLM2-135M on the planted world: no model is needed to repeat it."""
    kept = json.loads(RECORD.with_suffix(".json").read_text())
    result = run(recorded(planted(tmp_path / "data"), cache="replay", cache_file=str(RECORD)), tmp_path)
    found = {
        name: one["values"][result.outcome.headline]["value"]
        for name, one in result.outcome.contenders.items()
    }
    assert found == pytest.approx(kept["ndcg_at_5"])
    assert {name: result.outcome.contenders[name]["faults"] for name in ("letters", "list", "point")} == kept[
        "faults"
    ]
    assert result.outcome.facts["spent"]["paid_requests"] == 0


@pytest.mark.parametrize("method", ["random", "retrieved"])
def test_a_trained_bundle_stands_beside_the_model_on_the_same_candidates(chain, cases, tmp_path, method):
    bundle = cases("ease").path
    config = experiment(
        chain.path,
        split={"method": "leave_last_out", "catalogue": "listed"},
        bundles={"ease": str(bundle)},
        candidates={
            "n": 4,
            "method": method,
            "retriever": "ease",
            "base": "ease",
            "guaranteed": method == "random",
        },
        prompt={"base_order": True},
        client={"kind": "mock", "model": "random"},
        evaluate={"ks": [4, 1], "bootstrap": 50},
    )
    result = run(config, tmp_path)
    lab = Lab.open(config, tmp_path)
    asked = lab.asked("test", 24)
    scorer = cases("ease").bundle.scorer()
    direct = evaluate(scorer, asked.split, "test", config.protocol, candidates=asked.candidates)
    key = result.outcome.headline
    assert result.outcome.contenders["ease"]["kind"] == "bundle"
    assert headline(result, "ease") == pytest.approx(direct.value(key), abs=1e-9)
    recall = result.outcome.facts["candidates"]["recall"]
    assert recall == 1.0 if method == "random" else 0.2 < recall < 1.0
    everybody = result.outcome.contenders.values()
    hits = [one["values"][key.replace("ndcg", "hr")]["value"] for one in everybody]
    assert hits == pytest.approx(
        [recall] * len(hits)
    )  # of four candidates all are ranked: the recall bounds everybody
    case = lab.cases(asked, config.prompt)[0]
    scores = scorer.score(asked.queries.queries.take(np.array([0])), asked.lists_QC[:1])[0]
    assert [scores[place] for place in case.base] == sorted(scores, reverse=True)

"""benchmarks/serve.py: the references compute what we compute, and the table says what is missed."""

import importlib.util
import sys
from pathlib import Path

import pytest

from recsys.serving.engine import Query, RankingEngine

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # its dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def benchmark(monkeypatch):
    """A script of benchmarks/ by name, among those beside it."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    before = dict(sys.modules)
    yield script
    for name in ("serve", "serve_bundle", "reference_server", "reference_fmrlrec"):
        if name not in before:
            sys.modules.pop(name, None)


@pytest.fixture
def planted(benchmark, tmp_path):
    return benchmark("serve_bundle").write(tmp_path / "planted", items=300, users=40, ranker=False)


def test_the_reference_ranks_as_we_do(benchmark, planted):
    reference = benchmark("reference_server")
    ranker, engine = reference.Ranker(planted.path, trees=0), RankingEngine(planted)
    candidates = list(range(1, 300, 2))
    for user in (1, 17, 40):
        theirs = ranker(reference.Body(user_id=user, candidates=candidates)).items
        ours = {line.item_id: line.score for line in engine.rank(Query(user_id=user), candidates).items}
        assert {line.item_id: line.score for line in theirs} == pytest.approx(ours, abs=1e-5)
        assert [line.score for line in theirs] == sorted((line.score for line in theirs), reverse=True)
        theirs = ranker(reference.Body(user_id=user, k=20)).items
        ours = engine.recommend(Query(user_id=user), 20).items
        assert [line.score for line in theirs] == pytest.approx([line.score for line in ours], abs=1e-5)


def test_the_reference_with_trees(benchmark, planted):
    reference = benchmark("reference_server")
    ranker = reference.Ranker(planted.path, trees=3)
    assert ranker.booster.num_trees() == 3
    history, indices = ranker.histories[5], [4, ranker.histories[5][-1]]
    rows = ranker.features(history, indices, [0.5, 0.25])
    assert rows.shape == (2, reference.FEATURES)
    assert rows[:, :2].tolist() == [[0.5, 0], [0.25, 1]] and rows[1, 6] == 1
    answer = ranker(reference.Body(user_id=5, candidates=[1, 2, 3, 4]))
    assert sorted(line.item_id for line in answer.items) == [1, 2, 3, 4]


def test_the_synthetic_bundle(planted):
    lengths = planted.histories.lengths
    assert (len(planted.items), len(lengths)) == (300, 40)
    assert lengths.min() >= 20 and lengths.max() <= 200 and 70 < lengths.mean() < 140
    assert planted.form.item_vectors_ID.shape == (300, 128) and planted.form.meta["blocks"] == 2
    assert planted.users["times"].explode().max() == planted.manifest["last_event"]


def test_the_benchmark_names_what_it_misses(benchmark, tmp_path, capsys):
    serve = benchmark("serve")
    own = dict.fromkeys(serve.TARGETS, 0.5) | {"rank p99 ms": 20.0, serve.SATURATION: 900.0}
    assert serve.missed(own, serve.TARGETS) == ["rank p99 ms: 20.00, target at most 15"]
    serve.print_table({"ours": own, "theirs": {"rank p99 ms": 40.0}}, serve.TARGETS)
    shown = capsys.readouterr().out
    assert "| rank p99 ms | 20.00 | 40.00 (2x) | <= 15 |" in shown
    assert f"| {serve.SATURATION} | 900 | - |  |" in shown
    assert "pip install" in serve.litserve(tmp_path, 0, tmp_path)


def test_trees_of_a_bundle(benchmark, planted):
    serve, reference = benchmark("serve"), benchmark("reference_server")
    assert serve.trees_of(planted) == 0
    reference.booster(4).save_model(planted.path / "ranker.txt")
    assert serve.trees_of(planted) == 4


def test_the_synthetic_second_stage(benchmark, tmp_path):
    """Four generators under sixty trees, the states of long histories, and an update of one."""
    serve, made = benchmark("serve"), benchmark("serve_bundle").write(tmp_path / "b", items=300, users=40)
    assert serve.trees_of(made) == 60 and len(made.generators) == 4
    listed = RankingEngine(made).recommend(Query(user_id=3), 5).items
    assert {source.generator for line in listed for source in line.sources} <= set(made.generators)
    assert len(made.states["fmrlrec"]["rows"]) > 20
    assert serve.state_update(made, 5) > 0

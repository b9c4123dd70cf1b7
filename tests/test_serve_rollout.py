"""The server as a process: bundles swapped under load, bundles refused, variants, the log of what was shown."""

import contextlib
import http.client
import itertools
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from served import HISTORY, ITEMS, Running, running, scored, told_problem, until, weighted

from recsys.bundle import Bundle
from recsys.serving.engine import RankingEngine
from recsys.serving.rollout import Rollout

FACTORS = {"one": 1.0, "two": 2.0, "three": -3.0}
SWAPS, THREADS = 20, 4


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    for name, factor in FACTORS.items():
        weighted(folder / name, factor)
    return folder


@pytest.fixture(scope="module")
def server(bundles) -> Iterator[Running]:
    with running(bundles / "one") as found:
        yield found


@pytest.fixture
def on_one(server, bundles) -> Running:
    """The server with the bundle `one` in use, whatever came before."""
    assert server.ask("/admin/reload", {"bundle": str(bundles / "one")}).status_code == 200
    return server


def bundle_id(path: Path) -> str:
    return json.loads((path / "manifest.json").read_text())["bundle_id"]


# Swaps


@pytest.mark.parametrize("requests", [2_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_swaps_under_load(on_one, bundles, requests):
    """None is lost, none fails, and no answer mixes two bundles."""
    known = {bundle_id(bundles / name): scored(FACTORS[name]) for name in ("one", "two")}
    per_thread = requests // THREADS
    kinds = [
        ("/v1/rank", {"history": HISTORY, "candidates": ITEMS}, len(ITEMS)),
        ("/v1/recommend", {"history": HISTORY, "user_id": 4, "k": 6, "exclude_seen": False}, 6),
        ("/v1/recommend", {"history": HISTORY, "k": 3, "exclude_seen": False}, 3),
    ]
    questions = list(itertools.islice(itertools.cycle(kinds), per_thread))
    answers: list[list[tuple[int, bytes]]] = [[] for _ in range(THREADS)]

    def client(number: int) -> None:
        kept_alive = http.client.HTTPConnection(on_one.url.removeprefix("http://"), timeout=60)
        with contextlib.closing(kept_alive):
            for place, (path, body, _) in enumerate(questions):
                sent = json.dumps(body | {"request_id": f"{number}-{place}"})
                kept_alive.request("POST", path, sent, {"content-type": "application/json"})
                answer = kept_alive.getresponse()
                answers[number].append((answer.status, answer.read()))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for swap in range(SWAPS):
        # spread over the requests, and not over the time that they take
        due = requests * (swap + 1) // (SWAPS + 2)
        until(lambda due=due: sum(map(len, answers)) >= due or not any(t.is_alive() for t in threads), 300)
        if swap % 4 == 3:
            done = on_one.ask("/admin/rollback", method="POST")
        else:
            done = on_one.ask("/admin/reload", {"bundle": str(bundles / ("two" if swap % 2 == 0 else "one"))})
        assert done.status_code == 200, done.text
    for thread in threads:
        thread.join()

    assert [len(found) for found in answers] == [per_thread] * THREADS
    changes = 0
    for number, found in enumerate(answers):
        former = None
        for place, ((status, content), (_, _, length)) in enumerate(zip(found, questions, strict=True)):
            assert status == 200, content
            told = json.loads(content)
            assert told["request_id"] == f"{number}-{place}"
            served = told["model"]["bundle_id"]
            listed = {item["item_id"]: item["score"] for item in told["items"]}
            assert listed == pytest.approx({item: known[served][item] for item in listed})
            assert len(listed) == len(told["items"]) == length
            changes += former not in (None, served)
            former = served
    assert changes >= SWAPS  # each of four clients saw several: the swaps came amid the requests
    assert not [status for status in ("500", "503") if on_one.counted("recsys_requests_total", status=status)]


def test_rollback_goes_back_and_forth(on_one, bundles):
    def served() -> str:
        return on_one.ask("/v1/recommend", {"history": HISTORY, "k": 1}).json()["model"]["bundle_id"]

    one, two = bundle_id(bundles / "one"), bundle_id(bundles / "two")
    told = on_one.ask("/admin/reload", {"bundle": str(bundles / "two")}).json()
    assert (told["bundle_id"], told["previous"]) == (two, str(bundles / "one")) and served() == two
    assert on_one.ask("/admin/rollback", method="POST").json()["bundle_id"] == one and served() == one
    assert on_one.ask("/admin/rollback", method="POST").json()["bundle_id"] == two and served() == two


def test_a_bundle_that_cannot_come_back_is_let_go(bundles, monkeypatch):
    """Its thread would keep it in memory. One that a variant shares, and the one to roll back to, stay."""
    closed: list[str] = []
    monkeypatch.setattr(RankingEngine, "close", lambda engine: closed.append(engine.bundle.path.name))
    rollout = Rollout(lambda path: RankingEngine(Bundle.open(path)), lambda engine: None)
    rollout.load(bundles / "one")
    rollout.set_variants([("b", bundles / "one", 0.5)])
    for name in ("two", "three"):
        rollout.load(bundles / name)
    assert closed == []
    rollout.load(bundles / "one")
    assert closed == ["two"] and rollout.previous.path.name == "three"


# Refused


def corrupted(path: Path) -> None:
    content = bytearray((path / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "weights.safetensors").write_bytes(bytes(content))


def half_copied(path: Path) -> None:
    (path / "items.parquet").unlink()


def cut_short(path: Path) -> None:
    content = (path / "weights.safetensors").read_bytes()
    (path / "weights.safetensors").write_bytes(content[: len(content) // 2])


def without_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def of_format(change: int) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        manifest = json.loads((path / "manifest.json").read_text())
        manifest["format_version"] += change
        (path / "manifest.json").write_text(json.dumps(manifest))

    return edit


def with_text_ids(path: Path) -> None:
    shutil.rmtree(path)
    weighted(path, 2.0, text_ids=True)


def without_scores(path: Path) -> None:
    shutil.rmtree(path)
    weighted(path, np.nan)


@pytest.mark.parametrize(
    ("spoil", "step", "reason"),
    [
        (corrupted, "open", "the file was changed"),
        (half_copied, "open", "the file is missing"),
        (cut_short, "open", "the file was changed"),
        (without_manifest, "open", "manifest.json"),
        (of_format(-1), "open", "format version"),
        (of_format(1), "open", "format version"),
        (shutil.rmtree, "open", "manifest.json"),
        (with_text_ids, "ids", "ids of type"),
        (without_scores, "answers", "is scored None"),
    ],
    ids=["corrupted", "half_copied", "cut_short", "no_manifest", "older", "newer", "missing", "ids", "nan"],
)
def test_a_bad_bundle_is_refused(on_one, bundles, tmp_path, spoil, step, reason):
    """The reason is told and counted; what is served goes on, and can still be rolled back."""
    bad = tmp_path / "bad"
    shutil.copytree(bundles / "two", bad)
    spoil(bad)
    before = on_one.ask("/admin/status").json()
    detail = told_problem(on_one.ask("/admin/reload", {"bundle": str(bad)}), 409)
    assert reason in detail and str(bad) in detail
    after = on_one.ask("/admin/status").json()
    assert after["failures"][step] == before["failures"].get(step, 0) + 1
    assert " ".join(after["last_failure"].split()) == detail
    same = ("bundle_id", "bundle", "previous", "loaded_at")
    assert [after[key] for key in same] == [before[key] for key in same]
    answer = on_one.ask("/v1/rank", {"history": HISTORY, "candidates": ITEMS}).json()
    assert answer["model"]["bundle_id"] == bundle_id(bundles / "one")
    assert {item["item_id"]: item["score"] for item in answer["items"]} == pytest.approx(scored(1.0))
    assert on_one.ask("/readyz").status_code == 200


@pytest.mark.parametrize("body", [{}, {"bundle": 3}, {"bundle": "a", "more": 1}, [], "one"])
def test_an_order_that_is_none(on_one, body):
    assert on_one.ask("/admin/reload", body).status_code == 422


def test_admin_is_not_on_the_public_port(on_one):
    with httpx.Client(base_url=on_one.url, trust_env=False) as client:
        assert client.get("/admin/status").status_code == 404
        assert client.post("/admin/rollback").status_code == 404


# Variants, the log, the shadow


@pytest.fixture(scope="module")
def split_traffic(bundles, tmp_path_factory) -> Iterator[tuple[Running, Path]]:
    shown = tmp_path_factory.mktemp("shown") / "log"
    options = ("--variant", f"b=0.3={bundles / 'two'}", "--exposures", shown, "--shadow", bundles / "three")
    with running(bundles / "one", *options) as found:
        yield found, shown


def test_variants_and_the_log_agree(split_traffic, bundles):
    server, shown = split_traffic
    users, answers = range(300), []
    with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client:
        for turn in range(2):
            for user in users:
                body = {"user_id": user, "history": HISTORY, "k": 4, "exclude_seen": False}
                answers.append(client.post("/v1/recommend", json=body | {"request_id": f"{turn}:{user}"}))
    told = [answer.json() for answer in answers]
    variants = [one["model"]["variant"] for one in told]
    assert variants[:300] == variants[300:]
    assert 0.2 < variants[:300].count("b") / 300 < 0.4 and set(variants) == {"main", "b"}
    names = {"main": "one", "b": "two"}
    for one in told:
        name = names[one["model"]["variant"]]
        assert one["model"]["bundle_id"] == bundle_id(bundles / name)
        for item in one["items"]:
            assert item["score"] == pytest.approx(scored(FACTORS[name])[item["item_id"]])

    def logged() -> list[dict]:
        return [json.loads(line) for path in shown.glob("*.jsonl") for line in path.read_text().splitlines()]

    until(lambda: len(logged()) >= len(told))
    assert [line["request_id"] for line in logged()] == [one["request_id"] for one in told]
    for line, one, user in zip(logged(), told, [*users, *users], strict=True):
        assert (line["variant"], line["bundle_id"]) == (one["model"]["variant"], one["model"]["bundle_id"])
        assert line["user"] == json.dumps(user) and line["positions"] == [1, 2, 3, 4]
        assert line["items"] == [item["item_id"] for item in one["items"]]
        assert line["scores"] == [item["score"] for item in one["items"]]


def test_the_shadow_is_compared(split_traffic):
    """It ranks the other way round: of six items its first four share two with ours."""
    server, _ = split_traffic
    body = {"history": HISTORY, "k": 4, "exclude_seen": False}
    answer = server.ask("/v1/recommend", body)
    assert [item["score"] for item in answer.json()["items"]] in ([6, 5, 4, 3], [12, 10, 8, 6])
    overlap = until(lambda: server.ask("/admin/status").json()["shadow_overlap"])
    assert overlap == pytest.approx(0.5)

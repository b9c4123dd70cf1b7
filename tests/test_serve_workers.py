"""Two worker processes on one state: what one is told the other knows, and the death of one loses nothing."""

import contextlib
import itertools
import json
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from redis_server import DURABLE, RedisServer
from served import Running, halted, running, until, workers_of
from serving_case import content_of

from recsys.bundle_writing import write_bundle
from recsys.models.base import FitContext
from recsys.models.baselines.content_knn import ContentKNN, ContentKNNConfig
from recsys.schema import Dense

WIDTH, POSTERS, EVENTS = 8, 3, 60
USER = 9_000_001
"""Nobody that the bundle knows: all that is known of such users was told to the server."""
_numbers = itertools.count()


@pytest.fixture(scope="module")
def vectors(chain_split) -> np.ndarray:
    return np.random.default_rng(5).standard_normal((chain_split.num_items, WIDTH)).astype(np.float32)


@pytest.fixture(scope="module")
def bundles(chain, chain_split, vectors, tmp_path_factory) -> Path:
    """`one` and `two` rank by content that comes as vectors, with different memories of a history."""
    folder = tmp_path_factory.mktemp("bundles")
    table = Dense(vectors, np.ones(len(vectors), bool))
    for name, half_life in (("one", None), ("two", 1.0)):
        model = ContentKNN(ContentKNNConfig(half_life=half_life))
        model.fit(FitContext(chain_split.fit_log(), {("item", "text"): table}))
        content = content_of("content_knn", model, chain_split, chain.items)
        sent = {"text": {"settings": {"kind": "sent"}, "width": WIDTH, "fields": None}}
        write_bundle(folder / name, replace(content, content=sent))
    return folder


@pytest.fixture(scope="module", params=["sqlite", "redis"])
def server(request, bundles, tmp_path_factory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("state")
    with contextlib.ExitStack() as stack:
        state = folder / "live.db"
        if request.param == "redis":
            state = stack.enter_context(contextlib.closing(RedisServer(folder, *DURABLE))).url
        found = stack.enter_context(running(bundles / "one", "--workers", 2, "--state", state))
        assert found.on_each(lambda: until(lambda: found.ask("/readyz").status_code == 200)) == [True, True]
        yield found


@pytest.fixture
def user() -> int:
    return USER + next(_numbers)


def history(server: Running, user: int) -> list[int]:
    return [item["item_id"] for item in server.ask(f"/v1/users/{user}").json()["history"]]


def served(server: Running) -> str:
    answer = server.ask("/v1/recommend", {"history": [], "k": 1})
    assert answer.status_code == 200
    return answer.json()["model"]["bundle_id"]


def bundle_id(path: Path) -> str:
    return json.loads((path / "manifest.json").read_text())["bundle_id"]


def test_an_event_told_to_one_is_known_to_the_other_at_once(server, chain_split, user):
    first, second = workers_of(server.pid)
    items = chain_split.item_ids.to_list()[:4]
    for number, item in enumerate(items):
        with halted(second if number % 2 else first):
            body = {"event_id": f"{user}-{number}", "user_id": user, "item_id": item, "timestamp": number}
            assert server.ask("/v1/events", body).json() == {"kept": True}
        with halted(first if number % 2 else second):
            assert history(server, user) == items[: number + 1]
            assert server.ask("/v1/events", body).json() == {"kept": False}
            assert server.ask("/v1/recommend", {"user_id": user}).json()["history_length"] == number + 1
    with halted(first):
        assert server.ask(f"/v1/users/{user}", method="DELETE").json() == {"removed": len(items)}
    with halted(second):
        assert history(server, user) == []


def test_an_item_told_to_one_is_ranked_by_the_other(server, chain_split, vectors):
    """Once the other has looked again, which it does every second."""
    first, second = workers_of(server.pid)
    new, alike = 8_000_000 + next(_numbers), chain_split.item_ids.to_list()[3]
    features = {"text": vectors[3].tolist()}
    ask = {"history": [alike], "candidates": [new, *chain_split.item_ids.to_list()]}
    with halted(second):
        added = server.ask("/v1/items", {"items": [{"item_id": new, "title": "new", "features": features}]})
        assert added.json() == {"added": 1, "missing": {}}

    def answer() -> dict:
        return server.ask("/v1/rank", ask).json()

    with halted(first):
        until(lambda: answer()["unknown_items"] == [], 5)
        items = answer()["items"]
        assert {items[0]["item_id"], items[1]["item_id"]} == {new, alike}
        assert items[0]["score"] == pytest.approx(items[1]["score"], abs=1e-3)
        assert server.ask(f"/v1/items/{new}", method="DELETE").json() == {"removed": 1}
    ask = {"history": [alike], "k": chain_split.num_items, "exclude_seen": False}
    listed = {"path": "/v1/recommend", "body": ask}
    with halted(second):
        until(lambda: new not in {item["item_id"] for item in server.ask(**listed).json()["items"]}, 5)


def test_metrics_are_of_all_workers(server):
    def counts() -> tuple[float, float]:
        labels = {"route": "/v1/recommend", "status": "200"}
        return (
            server.counted("recsys_requests_total", **labels),
            server.counted("recsys_request_seconds_count", route="/v1/recommend"),
        )

    before = counts()
    for number, worker in enumerate(workers_of(server.pid)):
        with halted(worker):
            for _ in range(3 + number):
                served(server)
    assert server.on_each(counts) == [(before[0] + 7, before[1] + 7)] * 2


def test_a_reload_reaches_both_and_outlives_a_worker(server, bundles):
    one, two = bundle_id(bundles / "one"), bundle_id(bundles / "two")
    assert server.on_each(lambda: served(server)) == [one, one]
    assert server.ask("/admin/reload", {"bundle": str(bundles / "two")}).json()["bundle_id"] == two
    server.on_each(lambda: until(lambda: served(server) == two))
    for worker in workers_of(server.pid):
        kill_and_replace(server, worker)
        assert server.on_each(lambda: served(server)) == [two, two]
    assert until(lambda: admin_status(server))["bundle_id"] == two
    assert server.ask("/admin/reload", {"bundle": str(bundles / "one")}).json()["bundle_id"] == one
    server.on_each(lambda: until(lambda: served(server) == one))


def admin_status(server: Running) -> dict | None:
    """None where the worker that takes orders ends or starts in this moment."""
    try:
        return server.ask("/admin/status").json()
    except httpx.TransportError:
        return None


def kill_and_replace(server: Running, worker: int) -> None:
    """kill -9, and the wait for another in its place."""
    others = set(workers_of(server.pid))
    os.kill(worker, signal.SIGKILL)
    until(lambda: worker not in workers_of(server.pid))
    until(lambda: set(workers_of(server.pid)) - others)
    server.on_each(lambda: until(lambda: server.ask("/readyz").status_code == 200))


def test_killed_workers_lose_no_acknowledged_event(server, chain_split, user):
    """Both are killed, one after the other, while events come in. A client whose connection breaks sends again."""
    items = chain_split.item_ids.to_list()
    acknowledged: list[list[str]] = [[] for _ in range(POSTERS)]
    broken: list[str] = []

    def poster(number: int) -> None:
        for place in range(EVENTS):
            body = {
                "event_id": f"{user}-{number}-{place}", "user_id": user,
                "item_id": items[place % len(items)], "timestamp": place,
            }  # fmt: skip
            while True:
                try:
                    answer = server.ask("/v1/events", body)
                except httpx.TransportError as error:
                    broken.append(type(error).__name__)
                    continue
                assert answer.status_code == 200, answer.text
                acknowledged[number].append(body["event_id"])
                break

    threads = [threading.Thread(target=poster, args=(number,)) for number in range(POSTERS)]
    before = workers_of(server.pid)
    for thread in threads:
        thread.start()
    for share, worker in enumerate(before, 1):
        until(lambda share=share: sum(map(len, acknowledged)) >= share * POSTERS * EVENTS // 4)
        os.kill(worker, signal.SIGKILL)
        until(lambda worker=worker: worker not in workers_of(server.pid))
        until(lambda: len(workers_of(server.pid)) == 2)
    for thread in threads:
        thread.join()
    assert not set(before) & set(workers_of(server.pid))
    assert [len(found) for found in acknowledged] == [EVENTS] * POSTERS
    wanted = sorted(items[place % len(items)] for place in range(EVENTS) for _ in range(POSTERS))
    for found in server.on_each(lambda: history(server, user)):
        assert sorted(found) == wanted

"""The server as a process, under faults: bad requests, keys, a store that goes away, an order to end."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis_server import DURABLE, RedisServer
from served import HISTORY, ITEMS, Running, running, serve_command, told_problem, until, weighted

from recsys.serving import run

RANK = {"history": HISTORY, "candidates": ITEMS}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "one"
    weighted(folder, 1.0)
    return folder


@pytest.fixture(scope="module")
def server(bundle) -> Iterator[Running]:
    with running(bundle) as found:
        yield found


def event(event_id: str, user_id: int, item_id: int = ITEMS[0]) -> dict[str, Any]:
    return {"event_id": event_id, "user_id": user_id, "item_id": item_id}


# Requests that are none


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ('{"items": [{"item_id": 1, "image": "\\u0080"}]}', 422),
        (json.dumps({"candidates": list(range(10**6))}), 422),
        (json.dumps({"candidates": list(range(10**6, 2 * 10**6))}), 413),
        ('{"history": [3], "candidates": [5], "width": NaN}', 422),
        ('{"items": [{"item_id": 1, "features": {"text": [NaN]}}]}', 422),
        ('{"candidates": [5], "user_id": Infinity}', 422),
        ("[" * 50 + "]" * 50, 400),
        ('{"candidates":' * 50 + "1" + "}" * 50, 400),
        ('{"candidates": "all"}', 422),
        ('{"candidates": [1.5]}', 422),
        ('{"candidates": ["5"]}', 422),
        ('{"candidates": [5], "user_id": true}', 422),
        ('{"candidates": [5], "k": 3}', 422),
        (f'{{"candidates": [{10**30}]}}', 422),
        ('{"candidates": []}', 422),
        ('{"candidates": [5, 5]}', 422),
        ('{"candidates": [5], "request_id": "\\ud800"}', 422),
        ("null", 422),
        ("", 422),
        ("candidates=5", 422),
        (b"\xff\xfe", 422),
        ("{}".encode("utf-16"), 400),
    ],
)
def test_a_bad_body_is_told_so(server, body, status):
    with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client:
        told_problem(
            client.post("/v1/rank", content=body, headers={"content-type": "application/json"}), status
        )
        assert client.post("/v1/rank", json=RANK).status_code == 200  # on the same connection, or a new one


@pytest.mark.parametrize("chunked", [False, True])
def test_ten_megabytes_are_refused(server, chunked):
    size, piece = 10 << 20, b" " * 65_536
    content: Any = (piece for _ in range(size // len(piece))) if chunked else b" " * size
    with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client:
        detail = told_problem(client.post("/v1/rank", content=content), 413)
    assert "content-length" in detail


def test_a_body_that_never_comes_keeps_nobody_waiting(server):
    head = (
        "POST /v1/rank HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{"
    )
    host, port = server.url.removeprefix("http://").split(":")
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection((host, int(port)), 60)) for _ in range(50)]
        for connection in slow:
            connection.sendall(head.encode())
        until(lambda: server.counted("recsys_in_flight") >= len(slow))
        for _ in range(20):
            assert server.ask("/v1/rank", RANK).status_code == 200
        for connection in slow:
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            assert answer.status == 408 and json.loads(answer.read())["status"] == 408
            assert answer.getheader("connection") == "close" and connection.recv(1) == b""


def test_an_answer_is_not_held_back():
    """Headers and body are two writes: without this the second waits for the client's delayed acknowledgement."""
    with run._listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


# Keys


@pytest.fixture(scope="module")
def locked(bundle, tmp_path_factory) -> Iterator[Running]:
    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys.write_text("# ours\nfirst-key\n\nsecond-key\n")
    keys.chmod(0o600)
    with running(bundle, "--keys", keys) as found:
        yield found


@pytest.mark.parametrize("headers", [{}, {"x_api_key": "wrong"}, {"x_api_key": ""}, {"x_api_key": "# ours"}])
def test_no_answer_without_a_key(locked, headers):
    for path, body in (("/v1/rank", RANK), ("/v1/models", None), ("/openapi.json", None), ("/nowhere", None)):
        answer = locked.ask(path, body, **headers)
        told_problem(answer, 401)
        assert answer.headers["www-authenticate"] == "ApiKey"


@pytest.mark.parametrize("key", ["first-key", "second-key"])
def test_each_key_opens(locked, key):
    assert locked.ask("/v1/rank", RANK, x_api_key=key).status_code == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/v2/health/live"])
def test_health_needs_no_key(locked, path):
    assert locked.ask(path).status_code == 200


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--host", "0.0.0.0"), "keys"),
        (("--workers", "2"), "state"),
        (("--keys", "no-such-file"), "no-such-file"),
        (("--variant", "b=2=elsewhere"), "NAME=SHARE=BUNDLE"),
        (("--shadow", "elsewhere"), "elsewhere"),
    ],
)
def test_a_start_that_is_refused(bundle, tmp_path, options, reason):
    done = subprocess.run(
        serve_command(bundle, "--port", 0, *options), cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert reason in line and "Traceback" not in done.stderr


# The end


@pytest.mark.parametrize("workers", [1, 2])
def test_a_request_in_hand_is_answered_before_the_end(bundle, tmp_path, workers):
    """SIGTERM comes while a large batch is on its way: no more connections, but the answer, and exit code 0."""
    ask = {"history": HISTORY, "candidates": [*ITEMS, *range(10_000, 14_000)]}
    body = json.dumps({"requests": [ask] * 100}).encode()
    with running(bundle, "--workers", workers, "--state", tmp_path / "live.db") as found:
        host, port = found.url.removeprefix("http://").split(":")
        client = http.client.HTTPConnection(host, int(port), timeout=60)
        client.putrequest("POST", "/v1/rank/batch")
        client.putheader("content-type", "application/json")
        client.putheader("content-length", str(len(body)))
        client.endheaders(body[: len(body) // 2])
        until(lambda: found.counted("recsys_in_flight") >= 1)
        os.kill(found.pid, signal.SIGTERM)
        until(lambda: not listens(host, int(port)))
        client.send(body[len(body) // 2 :])
        answer = client.getresponse()
        assert answer.status == 200
        told = json.loads(answer.read())["answers"]
        assert len(told) == 100 and all(len(one["items"]) == len(ITEMS) for one in told)
        client.close()
        # looked at without being collected: the block waits for the process too
        ended = os.waitid(os.P_PID, found.pid, os.WEXITED | os.WNOWAIT)
        assert (ended.si_code, ended.si_status) == (os.CLD_EXITED, 0)


def listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), 5).close()
    except OSError:
        return False
    return True


# A store that goes away


def check_away(server: Running) -> None:
    """What needs the store is refused for now, the rest goes on."""
    told_problem(server.ask("/v1/events", event("lost", 7, ITEMS[1])), 503)
    told_problem(server.ask("/v1/events/batch", {"events": [event("lost", 7, ITEMS[1])]}), 503)
    told_problem(server.ask("/v1/recommend", {"user_id": 7, "k": 3}), 503)
    told_problem(server.ask("/v1/users/7"), 503)
    told_problem(server.ask("/v1/users/8", method="DELETE"), 503)
    told_problem(server.ask("/v1/items", {"items": [{"item_id": 77, "title": "new"}]}), 503)
    told_problem(server.ask("/readyz"), 503)
    assert server.ask("/healthz").status_code == 200
    ended = threading.Event()
    timer = threading.Timer(2.5, ended.set)  # longer than the catalogue is used without a look at the store
    timer.start()
    while not ended.is_set():
        assert server.ask("/v1/rank", RANK).status_code == 200
        assert server.ask("/v1/recommend", {"history": HISTORY, "k": 3}).status_code == 200


def check_back(server: Running) -> None:
    """Everything is as before, and what was refused can be sent again: it is kept once."""
    assert until(lambda: server.ask("/readyz").status_code == 200)
    assert server.ask("/v1/events", event("before", 7)).json() == {"kept": False}
    assert server.ask("/v1/events", event("lost", 7, ITEMS[1])).status_code == 200
    history = server.ask("/v1/users/7").json()["history"]
    assert sorted(item["item_id"] for item in history) == sorted(ITEMS[:2])
    answer = server.ask("/v1/recommend", {"user_id": 7, "k": 3}).json()
    assert answer["history_length"] == 2 and answer["fallback"] is None
    assert server.ask("/v1/items", {"items": [{"item_id": 77, "title": "new"}]}).status_code == 200
    assert server.ask("/v1/users/7", method="DELETE").json() == {"removed": 2}


@pytest.mark.parametrize("replaced", [False, True], ids=["gone", "another"])
def test_the_file_of_state_goes_away_and_comes_back(bundle, tmp_path, replaced):
    path, aside = tmp_path / "live.db", tmp_path / "aside"
    with running(bundle, "--state", path) as server:
        assert server.ask("/v1/events", event("before", 7)).json() == {"kept": True}
        path.rename(aside)
        if replaced:
            shutil.copyfile(aside, path)
        check_away(server)
        aside.rename(path)
        check_back(server)


def test_redis_goes_away_and_comes_back(bundle, tmp_path):
    redis = RedisServer(tmp_path, *DURABLE)
    with contextlib.closing(redis), running(bundle, "--state", redis.url) as server:
        assert server.ask("/v1/events", event("before", 7)).json() == {"kept": True}
        redis.kill()
        check_away(server)
        redis.start()
        check_back(server)

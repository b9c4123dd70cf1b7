"""What the guard lets through and what it refuses, called as a server calls it."""

import asyncio
import json

import pytest
from asgi import Echo, Exchange, ask, counted, guarded
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from recsys.serving.guard import MAX_DEPTH, Guard, depth
from recsys.serving.metrics import Metrics

# Bodies


def test_a_body_passes_unchanged():
    app = Echo()
    guard = guarded(app)
    for parts in ([b"{}"], [b'{"a":', b"", b"[1]}"], [b""], [b"x" * 999, b"y"]):
        whole = b"".join(parts)
        exchange = ask(guard, parts=parts, content_length=str(len(whole)).encode())
        assert (exchange.status, exchange.body) == (200, whole)
        assert exchange.headers["x-own"] == "1"


@pytest.mark.parametrize("length", [b"1001", b"9" * 400, b"-1", b"1e2", b"\xb2"])
def test_a_stated_length_is_refused_unread(length):
    app = Echo()
    exchange = ask(guarded(app), content_length=length)
    assert "at most 1000 bytes" in exchange.problem(413)
    assert exchange.headers["connection"] == "close"
    assert exchange.taken == 0 and not app.scopes


def test_a_body_in_chunks_is_counted():
    app = Echo()
    exchange = ask(guarded(app), parts=[b"x" * 400] * 50, transfer_encoding=b"chunked")
    exchange.problem(413)
    assert exchange.taken == 3, "the rest must not be read"
    assert not app.scopes
    exchange = ask(guarded(app), parts=[b"x" * 400] * 50, content_length=b"10")
    exchange.problem(413)


def test_a_slow_body_is_given_up():
    """However steadily it drips: the bound is on the whole."""
    app = Echo()
    guard = guarded(app, body_seconds=0.05)
    ask(guard, parts=[b"{"], stall=1).problem(408)

    class Dripping(Exchange):
        async def receive(self):
            await asyncio.sleep(0.01)
            return {"type": "http.request", "body": b" ", "more_body": True}

    asyncio.run(Dripping(guard).run()).problem(408)
    assert not app.scopes


def test_a_client_that_leaves_is_let_go():
    app = Echo()
    guard = guarded(app)
    exchange = Exchange(guard, parts=[])
    asyncio.run(exchange.run())
    assert exchange.messages == [] and not app.scopes
    assert counted(guard) == {("other", "499"): 1}
    assert ask(guard).status == 200, "its place is free again"


def nested(levels: int) -> bytes:
    return (
        b'{"a":' * (levels // 2)
        + b"[" * (levels - levels // 2)
        + b"]" * (levels - levels // 2)
        + b"}" * (levels // 2)
    )


def test_nesting():
    app = Echo()
    guard = guarded(app, max_body=10**6)
    assert ask(guard, parts=[nested(MAX_DEPTH)]).status == 200
    ask(guard, parts=[nested(MAX_DEPTH + 1)]).problem(400)
    ask(guard, parts=[b"[" * 100_000]).problem(400)
    wide = json.dumps([[{}] * 1000, "[{" * 1000, '"' + "[" * 1000]).encode()
    assert ask(guard, parts=[wide]).status == 200
    tricks = [b'["\\\\",' + nested(33) + b"]", b'["\\"[",' + nested(33) + b"]"]
    for body in tricks:
        json.loads(body)
        ask(guard, parts=[body]).problem(400)
    hidden = ('["\u0122",' + nested(40).decode() + "]").encode(
        "utf-16-le"
    )  # holds an odd number of quote bytes
    assert json.loads(hidden)
    assert "UTF-8" in ask(guard, parts=[hidden]).problem(400)


def slow_depth(value) -> int:
    if isinstance(value, dict):
        return 1 + max((slow_depth(one) for one in value.values()), default=0)
    if isinstance(value, list):
        return 1 + max((slow_depth(one) for one in value), default=0)
    return 0


texts = st.text(st.sampled_from('[]{}"\\ an\n\u00e9\u2200'), max_size=12)
values = st.recursive(
    st.none() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=15,
)


@given(values, st.booleans())
def test_depth_is_that_of_the_parser(value, ascii_only):
    assert depth(json.dumps(value, ensure_ascii=ascii_only).encode()) == slow_depth(value)


@given(st.binary(max_size=60))
def test_depth_of_anything(body):
    assert 0 <= depth(body) <= body.count(b"[") + body.count(b"{")


# Keys


def test_keys():
    app = Echo()
    guard = guarded(app, keys=["first", "zweiter-schlüssel"])
    for key in (b"first", "zweiter-schlüssel".encode()):
        assert ask(guard, x_api_key=key).status == 200
    app.scopes.clear()
    for headers in (
        {},
        {"x_api_key": b""},
        {"x_api_key": b"firs"},
        {"x_api_key": b"first "},
        {"x_api_key": b"\xff"},
    ):
        exchange = ask(guard, **headers)
        exchange.problem(401)
        assert exchange.headers["www-authenticate"] == "ApiKey"
        assert exchange.taken == 0
    assert not app.scopes
    assert counted(guard) == {("other", "200"): 2, ("guard", "401"): 5}


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"])
def test_health_is_open(path):
    assert ask(guarded(Echo(), keys=["key"]), path).status == 200


@pytest.mark.parametrize(
    "path", ["/healthz/", "/", "/docs", "/v2/health", "/v2/models/x", "/readyz2", "/metricsx"]
)
def test_nothing_else_is_open(path):
    ask(guarded(Echo(), keys=["key"]), path, client=("127.0.0.1", 5)).problem(401)


def test_metrics_are_open_on_loopback_only():
    guard = guarded(Echo(), keys=["key"])
    for host in ("127.0.0.1", "127.8.0.1", "::1", "::ffff:127.0.0.1"):
        assert ask(guard, "/metrics", client=(host, 5)).status == 200
    for client in (("10.0.0.9", 5), ("::ffff:10.0.0.9", 5), ("1270.0.0.1", 5), None):
        ask(guard, "/metrics", client=client).problem(401)
    # a proxy on this machine speaks for somebody else
    for header in ("x_forwarded_for", "forwarded"):
        ask(guard, "/metrics", client=("127.0.0.1", 5), **{header: b"10.0.0.9"}).problem(401)
    assert ask(guard, "/metrics", x_api_key=b"key").status == 200


def test_websockets_do_not_get_round_the_keys():
    sent = []

    async def run():
        async def receive():
            return {"type": "websocket.connect"}

        async def send(message):
            sent.append(message)

        await guarded(Echo(), keys=["key"])({"type": "websocket", "path": "/", "headers": []}, receive, send)

    asyncio.run(run())
    assert sent == [{"type": "websocket.close", "code": 1008}]


# Request ids and counting


def test_request_ids():
    app = Echo()
    guard = guarded(app)
    shared = {"from": "lifespan"}
    for chosen in (b"abc-1", b"!" * 200, b"~"):
        exchange = Exchange(guard, x_request_id=chosen)
        exchange.scope["state"] = shared
        asyncio.run(exchange.run())
        assert exchange.headers["x-request-id"] == chosen.decode()
        assert app.scopes[-1]["state"] == {"from": "lifespan", "request_id": chosen.decode()}
    assert shared == {"from": "lifespan"}
    made = set()
    for bad in (b"", b"a b", b"a\tb", b"x" * 201, b"\x7f", "ä".encode(), b"a\r\nx: y"):
        exchange = ask(guard, x_request_id=bad)
        made.add(exchange.headers["x-request-id"])
        assert exchange.scope["state"]["request_id"] == exchange.headers["x-request-id"]
    assert len(made) == 7 and all(len(one) == 32 and one.isalnum() for one in made)
    refused = ask(guard, x_request_id=b"mine", content_length=b"5000")
    assert refused.headers["x-request-id"] == "mine"


def test_routes_are_counted_as_templates():
    """By FastAPI's own routing, with what an endpoint tells about its answer."""
    app = FastAPI()

    @app.post("/items/{name}/like")
    def like(name: str, request: Request) -> str:
        request.state.observed = {
            "fallback": "popular",
            "timings": {"rank": 3.0, "total": 4.0},
            "empty": True,
        }
        return request.state.request_id

    metrics = Metrics()
    app.add_middleware(Guard, keys=None, max_body=100, max_in_flight=4, deadline_seconds=9, metrics=metrics)
    with TestClient(app) as client:
        for number in range(50):
            answer = client.post(f"/items/{number}/like", headers={"x-request-id": f"r{number}"})
            assert answer.json() == answer.headers["x-request-id"] == f"r{number}"
            assert client.get(f"/wander/{number}").status_code == 404
        assert client.post("/items/1/like", content=b"x" * 101).status_code == 413

        def chunks():
            yield b"x" * 60
            yield b"y" * 60

        assert client.post("/items/1/like", content=chunks()).status_code == 413
    text = metrics.render()[0].decode()
    lines = [line for line in text.splitlines() if line.startswith("recsys_requests_total")]
    assert sorted(lines) == [
        'recsys_requests_total{fallback="none",route="guard",status="413"} 2.0',
        'recsys_requests_total{fallback="none",route="other",status="404"} 50.0',
        'recsys_requests_total{fallback="popular",route="/items/{name}/like",status="200"} 50.0',
    ]
    assert 'recsys_stage_seconds_count{route="/items/{name}/like",stage="rank"} 50.0' in text
    assert 'stage="total"' not in text
    assert "recsys_empty_total 50.0" in text

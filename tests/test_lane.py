"""The short way to /v1/rank and /v1/recommend: whatever is sent, the answer is the one of the application behind it."""

import asyncio
import json
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys.errors import RequestError, ServingError
from recsys.serving import wire
from recsys.serving.api import create_app
from recsys.serving.content import NewItem
from recsys.serving.engine import RankingEngine
from recsys.serving.guard import Guard
from recsys.serving.metrics import Metrics

SHORT, LONG = "application/json", "application/json; charset=utf-8"
"""Content types that mean the same; only the plain one goes the short way."""
PATHS = ("/v1/rank", "/v1/recommend")
ASKED = {"/v1/rank": {"user_id": 3, "candidates": [1, 2, 5]}, "/v1/recommend": {"user_id": 3, "k": 2}}


@pytest.fixture(scope="module")
def engine(cases) -> RankingEngine:
    return RankingEngine(cases("fmrlrec").bundle, clock=lambda: 1_800_000_000)


@pytest.fixture(scope="module")
def client(engine) -> Iterator[TestClient]:
    """Without a guard, so that all bytes come through."""
    with TestClient(create_app(engine), raise_server_exceptions=False) as started:
        yield started


def told(client: TestClient, path: str, body: bytes, kind: str) -> tuple:
    """(status, content type, body without what differs from call to call)."""
    answer = client.post(path, content=body, headers={"content-type": kind})
    content = answer.json()
    if answer.status_code == 200:
        assert set(content.pop("timings_ms")) >= {"total"}
        assert content.pop("request_id")
    return answer.status_code, answer.headers["content-type"], content


def same(client: TestClient, path: str, body: bytes) -> tuple:
    short, long = (told(client, path, body, kind) for kind in (SHORT, LONG))
    assert short == long, body
    return short


def short_ways(monkeypatch) -> list[str]:
    """Bodies that have been answered in the short way, from now on: what FastAPI reads is not among them."""
    seen = []
    for body in (wire.RankBody, wire.RecommendBody):
        read = body.model_validate_json

        def noted(content, read=read):
            found = read(content)
            seen.append(content)
            return found

        monkeypatch.setattr(body, "model_validate_json", noted)
    return seen


@pytest.mark.parametrize("path", PATHS)
def test_a_valid_body_goes_the_short_way_and_the_others_do_not(client, monkeypatch, path):
    seen = short_ways(monkeypatch)
    body = json.dumps(ASKED[path]).encode()
    assert same(client, path, body)[0] == 200 and seen == [body]
    assert same(client, path, b"{}" if path == "/v1/rank" else b'{"k": 0}')[0] == 422
    assert client.get(path).status_code == 405
    assert client.post(path, content=body).status_code == 422  # no content type
    assert seen == [body]


VALUES = [
    "3", "-0", "3.0", "1e2", '"3"', "true", "null", "[]", "{}", "NaN", "Infinity", "-Infinity", "1e400", "03", "+3",
    str(2**63), str(-(2**63)), "9" * 5000, '""', '"\\ud800"', '"\\u0000"', '"\x01"', '"\\x"', "'3'",
    '"' + "x" * 201 + '"',
    "[3, 3]", "[1, 2,]", '["1"]', "[1.0]", "[true]", '{"a": NaN}', '{"a": 1, "a": "2"}', '{"": 1}', '{"a": {"b": 1}}',
]  # fmt: skip
KEYS = [
    "user_id",
    "history",
    "candidates",
    "k",
    "width",
    "at",
    "user_fields",
    "explain",
    "mmr",
    "filters",
    "more",
]


@pytest.mark.parametrize("path", PATHS)
def test_every_odd_value_at_every_key(client, path):
    """Twice under one key, too: the later one counts. Also under a key that is not there."""
    statuses = set()
    whole = json.dumps(ASKED[path])[:-1]
    for key in KEYS:
        for value in VALUES:
            statuses.add(same(client, path, f'{whole}, "{key}": {value}}}'.encode())[0])
    assert statuses == {200, 400, 422}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "change",
    [
        lambda body: b"", lambda body: b"null", lambda body: b"[]", lambda body: b"3", lambda body: body[:-1],
        lambda body: body + b" \n", lambda body: body + b"x", lambda body: body + body, lambda body: b" \t" + body,
        lambda body: b"\xef\xbb\xbf" + body, lambda body: body.decode().encode("utf-16"),
        lambda body: body.decode().encode("utf-32"), lambda body: body.replace(b"user_id", b"user_\xff"),
        lambda body: body.replace(b"3", b'"\xff"', 1), lambda body: body.replace(b"}", b"/**/}"),
        lambda body: b'{"more": ' + b"[" * 3000 + b"]" * 3000 + b"}",
    ],
)  # fmt: skip
def test_other_bytes(client, path, change):
    same(client, path, change(json.dumps(ASKED[path]).encode()))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 50) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(PATHS), st.dictionaries(st.sampled_from(KEYS), JSON, max_size=5))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_json(client, path, body):
    same(client, path, json.dumps(ASKED[path] | body).encode())


@pytest.mark.parametrize("error", [RequestError("no"), ServingError("away"), ZeroDivisionError("a bug")])
def test_what_the_engine_raises(client, engine, monkeypatch, error):
    def raises(*given, **named):
        raise error

    monkeypatch.setattr(RankingEngine, "recommend", raises)
    body = json.dumps(ASKED["/v1/recommend"]).encode()
    short, long = (
        client.post("/v1/recommend", content=body, headers={"content-type": kind}) for kind in (SHORT, LONG)
    )
    expected = {RequestError: 422, ServingError: 503, ZeroDivisionError: 500}[type(error)]
    assert short.status_code == long.status_code == expected
    assert short.content == long.content
    assert short.headers.get("retry-after") == long.headers.get("retry-after")


def sent(app, messages: list[dict], kind: str = SHORT) -> list[dict]:
    """What the application sends to a client of these messages."""
    answered, waiting = [], iter(messages)

    async def receive():
        return next(waiting)

    async def send(message):
        answered.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "path": "/v1/recommend",
        "raw_path": b"/v1/recommend", "root_path": "", "query_string": b"", "scheme": "http",
        "headers": [(b"content-type", kind.encode())], "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2),
    }  # fmt: skip
    asyncio.run(app(scope, receive, send))
    return answered


@pytest.mark.parametrize("body, status", [(b'{"user_id": 3, "k": 2}', 200), (b'{"user_id": 3, "k": 0}', 422)])
def test_a_body_in_pieces(engine, body, status):
    """It is put together, and given on whole where it is refused."""
    parts = [body[:5], b"", body[5:9], body[9:]]
    messages = [{"type": "http.request", "body": part, "more_body": part is not parts[-1]} for part in parts]
    start, *rest = sent(create_app(engine), messages)
    assert start["status"] == status
    found = json.loads(b"".join(message["body"] for message in rest))
    assert len(found["items"]) == 2 if status == 200 else "k: " in found["detail"]


def test_a_client_that_leaves(engine):
    """What had come of the body counts for nothing, though it could be read."""
    messages = [
        {"type": "http.request", "body": b'{"user_id": 3}', "more_body": True},
        {"type": "http.disconnect"},
    ]
    short, long = (sent(create_app(engine), messages, kind) for kind in (SHORT, LONG))
    assert short == long and short[0]["status"] == 400


def test_it_is_counted_under_its_route(cases):
    """With the items that nobody had taken: added ones."""
    metrics, engine = Metrics(), RankingEngine(cases("fmrlrec").bundle)
    engine.add_items([NewItem(5000, title="new")])
    body = json.dumps({"user_id": 3, "candidates": [1, 5000, engine.item_ids[-1]]}).encode()
    with TestClient(Guard(create_app(engine), None, wire.MAX_BODY_BYTES, 8, 5.0, metrics)) as client:
        for kind in (SHORT, LONG):
            assert client.post("/v1/rank", content=body, headers={"content-type": kind}).status_code == 200
    text = metrics.render()[0].decode()
    assert 'recsys_requests_total{fallback="none",route="/v1/rank",status="200"} 2.0' in text
    assert "recsys_candidates_sum 6.0" in text and "recsys_cold_items_total 2.0" in text

"""The HTTP API: every route, every refusal as problem details, and never a 5xx for what a client sends."""

import json
from collections.abc import Iterator

import polars as pl
import pytest
from answers import differences
from fastapi.openapi.models import OpenAPI
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving_case import content_of, requests

from recsys.bundle_writing import write_bundle
from recsys.serving import wire
from recsys.serving.api import create_app
from recsys.serving.engine import Query, RankingEngine
from recsys.serving.guard import Guard
from recsys.serving.metrics import Metrics

ROUTES = {
    ("post", "/v1/rank"),
    ("post", "/v1/recommend"),
    ("post", "/v1/events"),
    ("post", "/v1/rank/batch"),
    ("post", "/v1/recommend/batch"),
    ("post", "/v1/similar"),
    ("post", "/v1/events/batch"),
    ("post", "/v1/items"),
    ("delete", "/v1/items/{item_id}"),
    ("delete", "/v1/users/{user_id}"),
    ("get", "/v1/items"),
    ("get", "/v1/items/{item_id}"),
    ("get", "/v1/items/{item_id}/image"),
    ("get", "/v1/items/{item_id}/similar"),
    ("get", "/v1/users"),
    ("get", "/v1/users/{user_id}"),
    ("get", "/v1/models"),
    ("get", "/v2"),
    ("get", "/v2/models/{name}"),
    ("get", "/v2/models/{name}/ready"),
    ("get", "/v2/health/live"),
    ("get", "/v2/health/ready"),
    ("get", "/healthz"),
    ("get", "/readyz"),
}


@pytest.fixture
def engine(cases) -> RankingEngine:
    return RankingEngine(cases("fmrlrec").bundle)


@pytest.fixture
def client(engine) -> Iterator[TestClient]:
    """A started server; an exception inside it fails the test."""
    with TestClient(guarded(engine)) as started:
        yield started


@pytest.fixture
def text_client(text_case) -> Iterator[TestClient]:
    with TestClient(guarded(RankingEngine(text_case.bundle))) as started:
        yield started


def guarded(engine: RankingEngine) -> Guard:
    """The application behind the guard, as it is served."""
    return Guard(create_app(engine), None, wire.MAX_BODY_BYTES, 256, 5.0, Metrics())


def problem(response, status: int = 422) -> str:
    """The detail of a refusal that is told as it should be."""
    assert response.status_code == status, (response.status_code, response.text[:300])
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert set(body) == {"type", "title", "status", "detail"} and body["status"] == status
    assert "\n" not in body["detail"] and len(body["detail"]) <= 500
    return body["detail"]


# Routes


def test_rank_and_recommend(cases, client):
    for entry in requests(cases("fmrlrec"), 30, seed=3):
        response = client.post(entry["path"], json=entry["body"])
        assert response.status_code == 200, response.text
        answer = response.json()
        assert differences(entry, answer) == []
        assert answer["model"]["bundle_id"] == cases("fmrlrec").bundle.id
        assert set(answer["timings_ms"]) >= {"history", "retrieve", "answer", "total"}
        wire.Answer.model_validate(answer)


def test_request_id_is_made_up_where_absent(client):
    found = {client.post("/v1/recommend", json={"k": 1}).json()["request_id"] for _ in range(3)}
    assert len(found) == 3 and all(found)


def test_filters_and_seen_items(client):
    body = {"history": [3, 24], "k": 40, "exclude_seen": False}
    whole = [line["item_id"] for line in client.post("/v1/recommend", json=body).json()["items"]]
    chosen = body | {"filters": {"category": ["group 1"], "exclude": [12]}}
    found = [line["item_id"] for line in client.post("/v1/recommend", json=chosen).json()["items"]]
    assert found == [item for item in whole if 10 <= item < 20 and item != 12]
    default = client.post("/v1/recommend", json={"history": [3, 24], "k": 40}).json()
    assert len(default["items"]) == 38 and default["history_length"] == 2


def test_similar(client, engine):
    answer = client.get("/v1/items/3/similar", params={"k": 4}).json()
    expected = engine.similar(3, 4)
    assert [line["item_id"] for line in answer["items"]] == [item.item_id for item in expected.items]
    assert len(client.get("/v1/items/3/similar").json()["items"]) == 10


def test_events(client):
    event = {"event_id": "e1", "user_id": 10**6, "item_id": 2, "timestamp": 1000}
    assert client.post("/v1/events", json=event).json() == {"kept": True}
    assert client.post("/v1/events", json=event).json() == {"kept": False}
    answer = client.post("/v1/recommend", json={"user_id": 10**6, "k": 1}).json()
    assert [line["item_id"] for line in answer["items"]] == [17] and answer["fallback"] is None
    del event["timestamp"]  # the server's clock
    assert client.post("/v1/events", json=event | {"event_id": "e2", "item_id": 20}).json() == {"kept": True}
    answer = client.post("/v1/recommend", json={"user_id": 10**6, "k": 1}).json()
    assert [line["item_id"] for line in answer["items"]] == [23]


def test_unknown_user_and_items(client):
    answer = client.post("/v1/rank", json={"user_id": 10**9, "candidates": [1, 777, 2]}).json()
    assert answer["fallback"] == "popular" and answer["unknown_items"] == [777]
    assert sorted(line["item_id"] for line in answer["items"]) == [1, 2]


def test_health(engine):
    app = create_app(engine)
    cold = TestClient(app)  # not started: nothing is warm
    assert cold.get("/healthz").json()["status"] == "alive"
    assert "warming up" in problem(cold.get("/readyz"), 503)
    with TestClient(app) as started:
        ready = started.get("/readyz")
        assert ready.status_code == 200
        assert ready.json() == {"status": "ready", "bundle_id": engine.bundle.id}
        assert started.get("/healthz").status_code == 200
    assert cold.get("/readyz").status_code == 503  # and on the way down


# Ids


def test_ids_are_typed(client, text_client):
    assert "user_id '3'; expected an integer" in problem(client.post("/v1/recommend", json={"user_id": "3"}))
    assert "item_id '3'" in problem(client.post("/v1/rank", json={"candidates": ["3"]}))
    assert "item_id 3; expected text" in problem(text_client.post("/v1/rank", json={"candidates": [3]}))
    event = {"event_id": "e", "user_id": "3", "item_id": 3}
    assert "user_id '3'" in problem(client.post("/v1/events", json=event))
    assert text_client.get("/v1/items/0003/similar").status_code == 200
    assert "'3' is not in the catalogue" in problem(text_client.get("/v1/items/3/similar"))
    for wrong in ("abc", "3.0", "4_2", "%20 3", "٣", "9" * 30, "-", "+3"):
        assert "an integer" in problem(client.get(f"/v1/items/{wrong}/similar"))


def test_ids_with_slashes_and_other_signs(cases, chain, tmp_path):
    odd = ["a/b", "a b", "ä€😀", "50%", "x?y", "x#y", "../up", "a//b"]
    case = cases("fmrlrec")
    content = content_of("fmrlrec", case.model, case.split, chain.items)
    named = pl.Series("item_id", odd + [f"i{number}" for number in range(40 - len(odd))])
    from dataclasses import replace
    from urllib.parse import quote

    items = content.items.with_columns(named)
    ids = {"user": "int", "item": "str"}
    bundle = write_bundle(tmp_path / "odd", replace(content, items=items, id_type=ids))
    with TestClient(create_app(RankingEngine(bundle))) as client:
        for item in odd:
            answer = client.get(f"/v1/items/{quote(item, safe='')}/similar", params={"k": 39})
            assert answer.status_code == 200, (item, answer.text)
            assert item not in [line["item_id"] for line in answer.json()["items"]]
            ranked = client.post("/v1/rank", json={"candidates": [item]}).json()
            assert [line["item_id"] for line in ranked["items"]] == [item]


# Refusals

BAD_BODIES = [
    ("/v1/rank", {}),
    ("/v1/rank", {"candidates": []}),
    ("/v1/rank", {"candidates": 3}),
    ("/v1/rank", {"candidates": [None]}),
    ("/v1/rank", {"candidates": [1.5]}),
    ("/v1/rank", {"candidates": [True]}),
    ("/v1/rank", {"candidates": [[1]]}),
    ("/v1/rank", {"candidates": [2**63]}),
    ("/v1/rank", {"candidates": [""]}),
    ("/v1/rank", {"candidates": ["x" * 201]}),
    ("/v1/rank", {"candidates": [1, 1]}),
    ("/v1/rank", {"candidates": list(range(10_001))}),
    ("/v1/rank", {"candidates": [1], "k": 3}),
    ("/v1/rank", {"candidates": [1], "history": [1] * 1001}),
    ("/v1/rank", {"candidates": [1], "history": "1,2"}),
    ("/v1/rank", {"candidates": [1], "width": 7}),
    ("/v1/rank", {"candidates": [1], "width": 0}),
    ("/v1/rank", {"candidates": [1], "width": "8"}),
    ("/v1/rank", {"candidates": [1], "width": True}),
    ("/v1/rank", {"candidates": [1], "width": 8.0}),
    ("/v1/rank", {"candidates": [1], "user_id": {}}),
    ("/v1/rank", {"candidates": [1], "request_id": ""}),
    ("/v1/rank", {"candidates": [1], "request_id": 3}),
    ("/v1/rank", {"candidates": [1], "user": 3}),
    ("/v1/recommend", {"k": 0}),
    ("/v1/recommend", {"k": -1}),
    ("/v1/recommend", {"k": 41}),
    ("/v1/recommend", {"k": 1001}),
    ("/v1/recommend", {"k": 10**30}),
    ("/v1/recommend", {"k": "10"}),
    ("/v1/recommend", {"k": None}),
    ("/v1/recommend", {"k": 1.0}),
    ("/v1/recommend", {"exclude_seen": "yes"}),
    ("/v1/recommend", {"exclude_seen": 1}),
    ("/v1/recommend", {"filters": None}),
    ("/v1/recommend", {"filters": {"colour": ["red"]}}),
    ("/v1/recommend", {"filters": {"category": "group 1"}}),
    ("/v1/recommend", {"filters": {"category": ["x"] * 101}}),
    ("/v1/recommend", {"filters": {"include": ["a"]}}),
    ("/v1/recommend", {"candidates": [1]}),
    ("/v1/events", {}),
    ("/v1/events", {"event_id": "e", "user_id": 1}),
    ("/v1/events", {"event_id": "", "user_id": 1, "item_id": 1}),
    ("/v1/events", {"event_id": "e", "user_id": None, "item_id": 1}),
    ("/v1/events", {"event_id": "e", "user_id": 1, "item_id": 1, "timestamp": -1}),
    ("/v1/events", {"event_id": "e", "user_id": 1, "item_id": 1, "timestamp": 10**12}),
    ("/v1/events", {"event_id": "e", "user_id": 1, "item_id": 1, "timestamp": "now"}),
    ("/v1/events", {"event_id": "e", "user_id": 1, "item_id": 1, "timestamp": 1.5}),
    ("/v1/events", {"event_id": "e", "user_id": 1, "item_id": 1, "weight": 1}),
]


@pytest.mark.parametrize(("path", "body"), BAD_BODIES, ids=lambda value: str(value)[:60])
def test_bad_bodies(client, path, body):
    problem(client.post(path, json=body))


def test_refusals_name_the_place(client):
    assert problem(client.post("/v1/recommend", json={"k": "ten"})).startswith("k: ")
    assert problem(client.post("/v1/recommend", json={"kk": 3})).startswith("kk: ")
    assert problem(client.post("/v1/recommend", json={"filters": {"colour": 1}})).startswith("filters.colour")
    assert problem(client.post("/v1/rank", json={"candidates": [1, None]})).startswith("candidates.1")
    assert (
        problem(client.post("/v1/recommend", json={"k": 41}))
        == "k = 41; expected 1 to 40, the size of the catalogue"
    )
    assert "8, 16, 32" in problem(client.post("/v1/recommend", json={"width": 7}))


RAW = [
    b"",
    b"{",
    b"nonsense",
    b"[]",
    b"null",
    b"3",
    b'"text"',
    b'{"k": NaN}',
    b'{"k": Infinity}',
    b'{"history": [NaN]}',
    b'{"user_id": -Infinity}',
    b'{"k": 1e400}',
    b'{"k": 1' + b"0" * 5000 + b"}",
    b"\xff\xfe{}",
    b'{"user_id": "\xff"}',
    b'{"\\ud800": 1}',
    b'{"user_id": "\\ud800"}',
    b'{"request_id": "\\udfff", "k": 1}',
    b'{"filters": {"category": ["\\ud800"]}}',
    b'{"' + b"x" * 100_000 + b'": 1}',
    b"[" * 200_000,
    b'{"a":' * 100_000,
    b'{"history": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
]


@pytest.mark.parametrize("raw", RAW, ids=lambda raw: raw[:20].decode("latin-1"))
@pytest.mark.parametrize("path", ["/v1/rank", "/v1/recommend", "/v1/events"])
def test_raw_bodies(client, path, raw):
    response = client.post(path, content=raw, headers={"content-type": "application/json"})
    assert response.status_code in (400, 422)
    problem(response, response.status_code)


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "x"]
)
def test_other_content_types(client, kind):
    response = client.post("/v1/recommend", content=b'{"k": 3}', headers={"content-type": kind})
    assert 400 <= response.status_code < 500
    problem(response, response.status_code)


def test_bodies_that_are_too_large(client):
    fits = json.dumps({"k": 3}).encode()
    fits += b" " * (wire.MAX_BODY_BYTES - len(fits))
    headers = {"content-type": "application/json"}
    assert client.post("/v1/recommend", content=fits, headers=headers).status_code == 200
    problem(client.post("/v1/recommend", content=fits + b" ", headers=headers), 413)
    chunks = (fits[: 1 << 20] for _ in range(10))  # no length is given: counted as it comes
    problem(client.post("/v1/recommend", content=chunks, headers=headers), 413)
    short = (part for part in (b'{"k"', b": 3}"))
    assert client.post("/v1/recommend", content=short, headers=headers).status_code == 200


def test_queries_that_are_wrong(client):
    for k in ("0", "-1", "ten", "1.5", "", "1001", "9" * 5000):
        problem(client.get("/v1/items/3/similar", params={"k": k}))
    assert "1 to 39" in problem(client.get("/v1/items/3/similar", params={"k": 40}))
    assert "not in the catalogue" in problem(client.get("/v1/items/999/similar"))
    problem(client.get(f"/v1/items/{'9' * 201}/similar"))


def test_similarity_a_model_lacks(cases):
    with TestClient(create_app(RankingEngine(cases("popularity").bundle))) as client:
        assert "knows no similarity" in problem(client.get("/v1/items/3/similar"))


def test_unknown_routes_and_methods(client):
    problem(client.get("/v1/nothing"), 404)
    problem(client.get("/v1/rank"), 405)
    problem(client.put("/v1/recommend", json={}), 405)
    problem(client.delete("/v1/events"), 405)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from(
    ["user_id", "history", "candidates", "k", "width", "filters", "exclude_seen", "request_id", "event_id",
     "item_id", "timestamp", "include", "category"]
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["/v1/rank", "/v1/recommend", "/v1/events"]), st.dictionaries(KEYS, JSON, max_size=5))
def test_anything_gets_an_answer_or_a_refusal(client, path, body):
    response = client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
    assert response.status_code in (200, 400, 422)
    if response.status_code != 200:
        problem(response, response.status_code)


# The document


def test_openapi_document(client):
    document = client.get("/openapi.json").json()
    OpenAPI.model_validate(document)
    found = {(method, path) for path, methods in document["paths"].items() for method in methods}
    assert found == ROUTES
    schemas = document["components"]["schemas"]
    for path, methods in document["paths"].items():
        for route in methods.values():
            assert route["summary"], path
            if not path.endswith("/image"):
                schema = route["responses"]["200"]["content"]["application/json"]["schema"]
                named = schema.get("$ref", "").rsplit("/", 1)[-1]
                assert schemas[named]["properties"] if named else path.startswith("/v2"), path
            for status, refusal in route["responses"].items():
                if status != "200":
                    described = refusal["content"]["application/problem+json"]["schema"]
                    assert set(described["properties"]) == {"type", "title", "status", "detail"}
    for reference in json.dumps(document).split('"$ref": "#/components/schemas/')[1:]:
        assert reference.split('"', 1)[0] in schemas
    for name in ("RankBody", "RecommendBody", "EventBody"):
        assert schemas[name]["additionalProperties"] is False


def test_documentation_page(client):
    assert client.get("/docs").status_code == 200


def test_answers_do_not_depend_on_the_thread(cases, client):
    from concurrent.futures import ThreadPoolExecutor

    asked = [entry for entry in requests(cases("fmrlrec"), 40, seed=5)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda entry: client.post(entry["path"], json=entry["body"]).json(), asked))
    for entry, answer in zip(asked, answers, strict=True):
        assert differences(entry, answer) == []


def test_the_engine_is_the_only_state(engine):
    """Events told to one application are seen by another around the same engine."""
    with TestClient(create_app(engine)) as first, TestClient(create_app(engine)) as second:
        first.post("/v1/events", json={"event_id": "e", "user_id": 10**6, "item_id": 2, "timestamp": 5})
        answer = second.post("/v1/recommend", json={"user_id": 10**6, "k": 1}).json()
        assert answer["items"][0]["item_id"] == engine.recommend(Query(history=[2]), 1).items[0].item_id

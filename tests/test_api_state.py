"""HTTP: new items with their content, what is added and taken out, users, batches, what is served."""

import base64
import io
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from PIL import Image
from two_stage_case import WORDS, TwoStageCase, make_two_stage

from recsys.popularity import DAY
from recsys.serving import wire
from recsys.serving.api import create_app
from recsys.serving.engine import RankingEngine
from recsys.serving.guard import Guard
from recsys.serving.metrics import Metrics


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> TwoStageCase:
    return make_two_stage(tmp_path_factory.mktemp("two-stage"))


@pytest.fixture
def client(case) -> Iterator[TestClient]:
    metrics = Metrics()
    engine = RankingEngine(case.bundle, clock=lambda: 130 * DAY)
    app = create_app(
        engine, counted=lambda kept: [metrics.event(one) for one in kept], metrics=metrics.render
    )
    with TestClient(Guard(app, None, wire.MAX_BODY_BYTES, 256, 5.0, metrics)) as started:
        yield started


def picture() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(out, "PNG")
    return out.getvalue()


def test_new_items_are_ranked_among_candidates(client):
    items = [
        {"item_id": 1000 + group, "title": WORDS[group], "category": [f"group {group}"]} for group in range(4)
    ]
    body = {"user_id": 2, "candidates": [1, 25], "items": items, "explain": True}
    answer = wire.Answer.model_validate(client.post("/v1/rank", json=body).json())
    new = [line for line in answer.items if line.item_id >= 1000]
    assert new[0].item_id == 1002 and new[0].title == WORDS[2] and answer.missing == {}
    assert len(answer.items) == 6 and new[0].contributions["text.mean"] is not None
    nothing = client.post("/v1/rank", json={"user_id": 2, "items": [{"item_id": 1000}]})
    assert nothing.status_code == 422 and "no content" in nothing.json()["detail"]
    mixed = client.post("/v1/rank", json={"user_id": 2, "items": [{"item_id": 1000}, items[1]]}).json()
    assert mixed["missing"] == {"1000": ["text"]}
    cold = client.post("/v1/rank", json={"items": items}).json()
    assert cold["fallback"] == "content" and len(cold["items"]) == 4
    bad = client.post("/v1/rank", json={"items": [items[0] | {"image": "not base64!"}]})
    assert bad.status_code == 422 and "base64" in bad.json()["detail"]


def test_items_come_and_go(client):
    image = base64.b64encode(picture()).decode()
    new = {"item_id": 1000, "title": "a dragon castle sword of old", "category": ["group 0"], "image": image}
    assert client.post("/v1/items", json={"items": [new]}).json() == {"added": 1, "missing": {}}
    found = client.get("/v1/items", params={"search": "of OLD dragon"}).json()["items"]
    assert found == [
        {"item_id": 1000, "title": new["title"], "category": ["group 0"], "image": "/v1/items/1000/image"}
    ]
    shown = client.get("/v1/items/1000/image")
    assert shown.content == picture() and shown.headers["content-type"] == "image/png"
    assert client.get("/v1/items/1000").json()["title"] == new["title"]
    listed = client.post("/v1/recommend", json={"user_id": 0, "k": 49}).json()["items"]
    assert 1000 in [line["item_id"] for line in listed]
    alike = client.post("/v1/similar", json={"item": new | {"item_id": 2000}, "k": 5}).json()
    alike = alike["items"]
    assert {line["item_id"] for line in alike} <= {*range(12), 1000}
    assert client.get("/v1/items/1000/similar", params={"k": 3}).status_code == 200
    assert client.delete("/v1/items/1000").json() == {"removed": 1}
    listed = client.post("/v1/recommend", json={"user_id": 0, "k": 48}).json()["items"]
    assert 1000 not in [line["item_id"] for line in listed]
    assert client.delete("/v1/items/5555").status_code == 422
    assert client.get("/v1/items/3/image").status_code == 422  # there is none


def test_events_users_and_forgetting(client):
    before = client.get("/v1/users/7").json()["history"]
    events = [
        {"event_id": f"e{n}", "user_id": 7, "item_id": n, "timestamp": 125 * DAY + n} for n in (4, 2, 3)
    ]
    assert client.post("/v1/events/batch", json={"events": events}).json() == {"kept": [True] * 3}
    assert client.post("/v1/events/batch", json={"events": events[:1]}).json() == {"kept": [False]}
    after = client.get("/v1/users/7").json()["history"]
    assert [item["item_id"] for item in after] == [item["item_id"] for item in before] + [2, 3, 4]
    users = client.get("/v1/users", params={"search": "7", "limit": 3}).json()["users"]
    assert [user["user_id"] for user in users] == [7, 17, 27] and users[0]["events"] == len(before)
    assert client.delete("/v1/users/7").json() == {"removed": 3}
    assert client.get("/v1/users/7").json()["history"] == []
    text = client.get("/metrics").text
    assert 'recsys_events_total{kept="true"} 3.0' in text and 'recsys_events_total{kept="false"} 1.0' in text


def test_batches_equal_single_requests(client):
    asks = [{"user_id": user, "k": 4, "request_id": f"r{user}"} for user in range(5)]
    together = client.post("/v1/recommend/batch", json={"requests": asks}).json()["answers"]
    for ask, answer in zip(asks, together, strict=True):
        alone = client.post("/v1/recommend", json=ask).json()
        assert alone["items"] == answer["items"] and answer["request_id"] == ask["request_id"]
    ranks = [{"user_id": user, "candidates": [1, 20, 40]} for user in range(5)]
    together = client.post("/v1/rank/batch", json={"requests": ranks}).json()["answers"]
    assert [a["items"] for a in together] == [client.post("/v1/rank", json=r).json()["items"] for r in ranks]


def test_what_is_served(client, case):
    (facts,) = client.get("/v1/models").json()["models"]
    wire.ModelFacts.model_validate(facts)
    assert facts["generators"] == ["fmrlrec", "itemknn", "content_knn"] and facts["ranker"]
    assert facts["widths"] == [8, 16] and facts["encoders"] == {"text": "own"}
    assert facts["items"] == case.split.num_items and facts["bundle_id"] == case.bundle.id
    assert client.get("/v2").json()["name"] == "recsys"
    assert client.get("/v2/models/fmrlrec").json()["versions"] == [case.bundle.id]
    assert client.get("/v2/models/fmrlrec/ready").json()["ready"] is True
    assert client.get("/v2/models/none").status_code == 422
    assert client.get("/v2/health/ready").json()["bundle_id"] == case.bundle.id
    assert client.get("/v2/health/live").status_code == 200


def test_spread_and_exploration_over_http(client):
    body = {"user_id": 3, "k": 6, "explore": 2, "request_id": "same"}
    first, second = (client.post("/v1/recommend", json=body).json() for _ in range(2))
    assert first["items"] == second["items"]
    drawn = [line for line in first["items"] if line["sources"][0]["generator"] == "explore"]
    assert len(drawn) == 2 and all(line["score"] is None for line in drawn)
    wire.Answer.model_validate(first)


def test_answers_carry_the_id_and_are_counted(client):
    answer = client.post(
        "/v1/recommend", json={"user_id": 3, "k": 2}, headers={"x-request-id": "from-outside"}
    )
    assert answer.headers["x-request-id"] == answer.json()["request_id"] == "from-outside"
    client.post("/v1/recommend", json={"user_id": 10**9, "k": 2})
    text = client.get("/metrics").text
    assert 'recsys_requests_total{fallback="none",route="/v1/recommend",status="200"} 1.0' in text
    assert 'recsys_requests_total{fallback="popular",route="/v1/recommend",status="200"} 1.0' in text
    assert 'recsys_stage_seconds_count{route="/v1/recommend",stage="features"} 1.0' in text


def test_the_page_and_its_parts(client):
    page = client.get("/")
    assert (
        page.headers["content-type"].startswith("text/html")
        and "default-src 'none'" in page.headers["content-security-policy"]
    )
    assert client.get("/explorer/app.js").headers["content-type"].startswith("text/javascript")
    assert (
        client.get("/explorer/../api.py").status_code == 404
        and client.get("/explorer/none").status_code == 404
    )

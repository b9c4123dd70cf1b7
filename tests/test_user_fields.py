"""Attributes that come with a question: through the engine and over HTTP, without a user or a history."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from contracts.worlds import world
from fastapi.testclient import TestClient
from serving_case import content_of

from recsys.bundle import Bundle
from recsys.bundle_writing import write_bundle
from recsys.errors import RequestError
from recsys.features.columns import ColumnEncoder
from recsys.models.coldstart.model import ColdStart, ColdStartConfig
from recsys.serving.api import create_app
from recsys.serving.engine import Query, RankingEngine
from recsys.train import fit
from recsys.train_config import TrainConfig

GROUPS = ["a", "b", "c", "d"]


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    """The planted groups of users, told by one column of the users table."""
    place = world("attributes")
    model = ColdStart(ColdStartConfig(width=17, hidden=8, batch_size=16, tables=("about",)))
    fit(model, place.context(), TrainConfig(epochs=15, lr=1e-2))
    items = place.split.item_ids.to_frame("item_id").with_columns(title=pl.lit("a title"))
    content = content_of("coldstart", model, place.split, items)
    encoder = ColumnEncoder("group", "categorical", "vocabulary", 5, GROUPS)
    facts = {
        "entity": "user",
        "settings": {"kind": "metadata"},
        "width": 6,
        "fields": {"group": asdict(encoder)},
    }
    folder = tmp_path_factory.mktemp("user_fields") / "bundle"
    write_bundle(folder, replace(content, content={"about": facts}))
    return folder


@pytest.fixture
def engine(path) -> RankingEngine:
    return RankingEngine(Bundle.open(path))


def groups_of(items) -> list[int]:
    return [item.item_id // 10 for item in items]


@pytest.mark.parametrize("group", range(4))
def test_a_stranger_is_answered_by_attributes(engine, group):
    found = engine.recommend(Query(user_fields={"group": GROUPS[group]}), 10)
    assert found.fallback is None
    assert np.mean([one == group for one in groups_of(found.items)]) > 0.9


def test_without_any_it_is_popularity(engine):
    assert engine.recommend(Query(), 5).fallback == "popular"
    assert engine.recommend(Query(user_fields={"group": None}), 5).fallback == "popular"


def test_what_comes_with_the_question_wins_and_is_not_kept(engine):
    user = world("attributes").split.user_ids[0]
    before = engine.recommend(Query(user_id=user), 5)
    engine.recommend(Query(user_id=user, user_fields={"group": "c"}), 5)
    assert engine.recommend(Query(user_id=user), 5).items == before.items
    scores = [
        {
            one.item_id: one.score
            for one in engine.rank(Query(user_id=user, user_fields=fields), [0, 25]).items
        }
        for fields in ({}, {"group": "c"})
    ]
    assert scores[1][25] - scores[1][0] > scores[0][25] - scores[0][0]


def test_a_forgotten_user_is_a_stranger(engine):
    user = world("attributes").split.user_ids[0]
    assert engine.recommend(Query(user_id=user), 5).fallback is None
    engine.forget_user(user)
    assert engine.recommend(Query(user_id=user), 5).fallback == "popular"


def test_unknown_columns_and_wrong_values_are_named(engine):
    with pytest.raises(RequestError, match="'age'"):
        engine.recommend(Query(user_fields={"age": 7}), 5)
    unseen = engine.recommend(Query(user_fields={"group": "z"}), 5)
    assert len(unseen.items) == 5


def test_over_http(path: Path):
    client = TestClient(create_app(RankingEngine(Bundle.open(path))))
    for route, more in (("/v1/recommend", {"k": 10}), ("/v1/rank", {"candidates": list(range(40))})):
        answer = client.post(route, json={"user_fields": {"group": "d"}} | more)
        assert answer.status_code == 200 and answer.json()["fallback"] is None
        assert np.mean([line["item_id"] // 10 == 3 for line in answer.json()["items"][:8]]) > 0.9
    assert client.get("/v1/models").json()["models"][0]["modalities"] == []

"""States of recurrent models in the bundle: the same answers as reading the history, without reading it."""

from dataclasses import replace

import numpy as np
import pytest
from serving_case import content_of

from recsys.bundle import Bundle
from recsys.bundle_writing import write_bundle
from recsys.schema import Queries
from recsys.serving import user_states
from recsys.serving.engine import Query, RankingEngine
from recsys.serving.export import export_bundle
from recsys.serving.network import Network
from recsys.serving.state import open_state

READ = Network.read


@pytest.fixture(scope="module")
def content(cases, chain):
    case = cases("fmrlrec")
    return content_of("fmrlrec", case.model, case.split, chain.items)


@pytest.fixture
def stated(content, monkeypatch, tmp_path) -> Bundle:
    """A bundle with the state of every user of three events or more."""
    monkeypatch.setattr(user_states, "WORTH_KEEPING", 3)
    return write_bundle(tmp_path / "stated", content)


@pytest.fixture
def engine(stated) -> RankingEngine:
    return RankingEngine(stated, open_state(None), clock=lambda: stated.manifest["last_event"])


def never(network, items):
    raise AssertionError("a history was read")


def scores(engine: RankingEngine, user) -> dict:
    return {item.item_id: item.score for item in engine.rank(Query(user), engine.item_ids).items}


def known_user(engine: RankingEngine) -> tuple:
    row = int(engine.bundle.states["fmrlrec"]["rows"][0])
    return engine.users.ids[row], row


def same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    np.testing.assert_allclose(
        [found[item] for item in expected], list(expected.values()), rtol=1e-5, atol=1e-5
    )


def test_no_history_is_read(cases, engine, monkeypatch):
    user, row = known_user(engine)
    expected = cases("fmrlrec").model.score(engine_queries(engine, row))[0]
    monkeypatch.setattr(Network, "read", never)
    same(scores(engine, user), dict(zip(engine.item_ids, expected.tolist(), strict=True)))


def engine_queries(engine: RankingEngine, row: int):
    return Queries.of([engine.bundle.histories[row]], [row])


@pytest.mark.parametrize("more, read", [(3, False), (9, True)])
def test_events_since_are_stepped_through_while_they_are_few(stated, engine, monkeypatch, more, read):
    user, _ = known_user(engine)
    last = stated.manifest["last_event"]
    store = engine.store
    for number in range(more):
        engine.observe(f"e{number}", user, engine.item_ids[number], last + 1 + number)
    monkeypatch.setattr(user_states.UserStates, "of", lambda *asked: None)
    expected = scores(RankingEngine(stated, store), user)
    monkeypatch.undo()
    reads = []
    monkeypatch.setattr(Network, "read", lambda network, items: reads.append(1) or READ(network, items))
    same(scores(RankingEngine(stated, store), user), expected)
    assert bool(reads) == read


def test_another_history_is_read(stated, engine, monkeypatch):
    """A late event, and a user who was forgotten: what the bundle holds is of a history that is no more."""
    user, row = known_user(engine)
    before = scores(engine, user)
    engine.observe("late", user, engine.item_ids[0], int(stated.users["times"][row][0]) - 1)
    late = scores(engine, user)
    assert max(abs(late[item] - before[item]) for item in before) > 1e-3
    engine.forget_user(user)
    monkeypatch.setattr(Network, "read", never)
    found = engine.rank(Query(user), engine.item_ids)
    assert found.fallback == "popular"


def test_the_newest_users_where_there_is_no_room_for_all(content, monkeypatch, tmp_path):
    monkeypatch.setattr(user_states, "WORTH_KEEPING", 3)
    few = write_bundle(tmp_path / "few", replace(content, states=4))
    long = few.histories.lengths >= 3
    last = np.array([max(times, default=0) for times in few.users["times"].to_list()])
    rows = few.states["fmrlrec"]["rows"]
    assert len(rows) == 4 < long.sum()
    left_out = np.setdiff1d(np.flatnonzero(long), rows)
    assert last[rows].min() >= last[left_out].max()
    assert write_bundle(tmp_path / "none", replace(content, states=0)).states == {}


@pytest.mark.parametrize("width, vectors", [(8, "float32"), (None, "int8")])
def test_an_export_has_states_of_its_own(stated, monkeypatch, tmp_path, width, vectors):
    """Cut to a width, or read from rounded vectors."""
    small = RankingEngine(export_bundle(stated, tmp_path / "small", width, vectors))
    user, row = known_user(small)
    expected = small.program.score(engine_queries(small, row))[0]
    monkeypatch.setattr(Network, "read", never)
    same(scores(small, user), dict(zip(small.item_ids, expected.tolist(), strict=True)))
    assert len(small.bundle.states["fmrlrec"]["rows"]) == len(stated.states["fmrlrec"]["rows"])


def test_short_histories_and_other_models_have_none(cases):
    assert cases("fmrlrec").bundle.histories.lengths.max() < user_states.WORTH_KEEPING
    assert cases("fmrlrec").bundle.states == {} and cases("itemknn").bundle.states == {}

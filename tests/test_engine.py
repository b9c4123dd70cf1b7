"""The engine against the model's own scores, and what it does with events, filters, ids and strangers."""

import json
import threading
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from answers import differences
from serving_case import offline, requests

from recsys.bundle_writing import BundleContent, write_bundle
from recsys.errors import RequestError
from recsys.schema import Form, Queries
from recsys.serving.engine import Filters, Query, Ranked, RankingEngine
from recsys.serving.state import open_state

MODELS = ["fmrlrec", "ease", "itemknn", "popularity"]


@pytest.fixture
def engine(cases) -> RankingEngine:
    """The sequence model, with nothing observed yet."""
    return RankingEngine(cases("fmrlrec").bundle)


@pytest.fixture
def tied(tmp_path) -> RankingEngine:
    """Six items that all score the same for anybody."""
    form = Form("item_item", {"dense": np.zeros((6, 6), np.float32), "prior": np.zeros(6, np.float32)})
    items = pl.DataFrame({"item_id": [5, 3, 9, 1, 7, 2]})
    counts = np.array([2, 2, 2, 2, 2, 2])
    ids = {"user": "int", "item": "int"}
    content = BundleContent("tied", form, items, counts, None, ids, "split", 0)
    return RankingEngine(write_bundle(tmp_path / "tied", content))


def ids(ranked: Ranked) -> list:
    return [item.item_id for item in ranked.items]


def as_answer(ranked: Ranked, request_id: str) -> dict:
    lines = [{"item_id": item.item_id, "score": item.score} for item in ranked.items]
    return {"items": lines, "fallback": ranked.fallback, "request_id": request_id}


# Scores and order


@pytest.mark.parametrize("name", MODELS)
def test_ranked_as_the_model_scores(cases, name):
    case = cases(name)
    engine = RankingEngine(case.bundle)
    for entry in requests(case, 60, seed=1):
        body = entry["body"]
        query = Query(body.get("user_id"), body.get("history"), body.get("width"))
        if "candidates" in body:
            ranked = engine.rank(query, body["candidates"])
        else:
            ranked = engine.recommend(query, body["k"], exclude_seen=body["exclude_seen"])
        assert differences(entry, as_answer(ranked, body["request_id"])) == []
        assert [item.score for item in ranked.items] == sorted(
            (item.score for item in ranked.items), reverse=True
        )


def test_lines_carry_titles(engine):
    for item in engine.recommend(Query(history=[3]), 5).items:
        assert item.title == f"Item {item.item_id}"


def test_widths_are_models_of_their_own(cases, engine):
    case = cases("fmrlrec")
    lists = {}
    for width in case.model.widths:
        scores_I, _ = offline(case, [3, 24, 11], width)
        ranked = engine.recommend(Query(history=[3, 24, 11], width=width), 40, exclude_seen=False)
        found = {item.item_id: item.score for item in ranked.items}
        assert [found[item] for item in range(40)] == pytest.approx(scores_I.tolist(), abs=1e-5)
        lists[width] = ids(ranked)
    assert len({tuple(order) for order in lists.values()}) == 3
    assert ids(engine.recommend(Query(history=[3, 24, 11]), 40, exclude_seen=False)) == lists[32]


@pytest.mark.parametrize("name", MODELS)
def test_an_unknown_width_is_refused(cases, name):
    engine = RankingEngine(cases(name).bundle)
    for query in (Query(history=[3], width=7), Query(history=[], width=7), Query(width=7)):
        with pytest.raises(RequestError, match="width 7"):
            engine.recommend(query, 3)
        with pytest.raises(RequestError, match="width 7"):
            engine.rank(query, [1, 2])


def test_ties_go_by_index(tied):
    catalogue = [5, 3, 9, 1, 7, 2]
    assert ids(tied.recommend(Query(history=[9]), 6, exclude_seen=False)) == catalogue
    assert ids(tied.recommend(Query(history=[9]), 3)) == [5, 3, 1]
    assert ids(tied.rank(Query(history=[9]), [2, 9, 3, 7])) == [3, 9, 7, 2]
    assert ids(tied.recommend(Query(), 4)) == [5, 3, 9, 1]  # the fallback, tied as well


def test_items_without_titles_or_categories(tied):
    assert [item.title for item in tied.recommend(Query(), 2).items] == [None, None]
    assert ids(tied.recommend(Query(), 6, Filters(category=["group 0"]))) == []


# Filters and seen items


def test_seen_items_are_left_out_unless_asked_for(cases, engine):
    user = cases("fmrlrec").user_ids[4]
    seen = set(cases("fmrlrec").history(4))
    assert not seen & set(ids(engine.recommend(Query(user_id=user), 40)))
    everything = engine.recommend(Query(user_id=user), 40, exclude_seen=False)
    assert sorted(ids(everything)) == list(range(40))
    assert everything.history_length == len(cases("fmrlrec").history(4))


def test_filters_cut_the_same_list(engine):
    query = Query(history=[3, 24])
    whole = ids(engine.recommend(query, 40, exclude_seen=False))

    def filtered(**filters):
        return ids(engine.recommend(query, 40, Filters(**filters), exclude_seen=False))

    assert filtered(include=[4, 8, 15]) == [item for item in whole if item in (4, 8, 15)]
    assert filtered(exclude=[4, 8, 15]) == [item for item in whole if item not in (4, 8, 15)]
    assert filtered(include=[4, 8], exclude=[8]) == [4]
    assert filtered(include=[]) == []
    groups = [item for item in whole if item // 10 in (0, 2)]
    assert filtered(category=["group 0", "group 2"]) == groups
    assert filtered(category=["group 0"], exclude=[1]) == [x for x in whole if x < 10 and x != 1]
    assert filtered(category=["no such group"]) == []
    assert filtered(include=[4, 999], exclude=[998]) == [4]  # strangers select nothing
    assert ids(engine.recommend(query, 2, Filters(include=[3, 24, 5]))) == [5]  # seen ones are still left out


def test_filters_hold_for_the_fallback(engine):
    ranked = engine.recommend(Query(), 40, Filters(category=["group 1"], exclude=[10]))
    assert ranked.fallback == "popular" and sorted(ids(ranked)) == list(range(11, 20))


# Strangers


def test_unknown_user_gets_the_popular_items(cases, engine):
    counts = cases("fmrlrec").split.fit_log().item_counts()
    order = sorted(range(40), key=lambda item: (-counts[item], item))
    for query in (Query(user_id=10**9), Query(), Query(history=[])):
        ranked = engine.recommend(query, 10)
        assert ranked.fallback == "popular" and ranked.history_length == 0
        assert ids(ranked) == order[:10]
        assert [item.score for item in ranked.items] == [float(counts[item]) for item in order[:10]]
        chosen = engine.rank(query, [7, 2, 30])
        assert chosen.fallback == "popular" and ids(chosen) == [x for x in order if x in (7, 2, 30)]


def test_known_user_has_no_fallback(cases, engine):
    assert engine.recommend(Query(user_id=cases("fmrlrec").user_ids[0]), 1).fallback is None


def test_unknown_items_are_named_and_not_ranked(engine):
    ranked = engine.rank(Query(history=[3, 777, 24]), [1, 888, 2])
    assert sorted(ids(ranked)) == [1, 2] and ranked.unknown_items == [777, 888]
    assert ranked.history_length == 2
    same = engine.rank(Query(history=[3, 24]), [1, 2])
    assert [item.score for item in same.items] == [item.score for item in ranked.items]
    nothing = engine.rank(Query(history=[3]), [777])
    assert nothing.items == [] and nothing.unknown_items == [777]
    lost = engine.recommend(Query(history=[777]), 3)
    assert lost.fallback == "popular" and lost.unknown_items == [777]


def test_a_given_history_wins_over_the_stored_one(cases, engine):
    user = cases("fmrlrec").user_ids[4]
    given = engine.recommend(Query(user_id=user, history=[3, 24]), 5)
    assert given == engine.recommend(Query(history=[3, 24]), 5)


def test_ids_are_typed(engine, text_case):
    texts = RankingEngine(text_case.bundle)
    for wrong in ("3", 3.0, True, None):
        with pytest.raises(RequestError, match="item_id"):
            engine.rank(Query(history=[1]), [wrong])
        with pytest.raises(RequestError, match="item_id"):
            engine.recommend(Query(history=[wrong]), 3)
        with pytest.raises(RequestError, match="item_id"):
            engine.recommend(Query(history=[1]), 3, Filters(include=[wrong]))
        with pytest.raises(RequestError, match="item_id"):
            engine.recommend(Query(history=[1]), 3, Filters(exclude=[wrong]))
        with pytest.raises(RequestError, match="item_id"):
            engine.similar(wrong, 3)
        with pytest.raises(RequestError, match="item_id"):
            engine.observe("e", 1, wrong)
    for wrong in ("3", 3.0, True):
        with pytest.raises(RequestError, match="user_id"):
            engine.recommend(Query(user_id=wrong), 3)
        with pytest.raises(RequestError, match="user_id"):
            engine.recommend(Query(user_id=wrong, history=[1]), 3)
        with pytest.raises(RequestError, match="user_id"):
            engine.observe("e", wrong, 1)
    with pytest.raises(RequestError, match="item_id 3; expected text"):
        texts.rank(Query(history=["0001"]), [3])
    assert ids(texts.rank(Query(history=["0001"]), ["0003"])) == ["0003"]
    assert texts.rank(Query(history=["0001"]), ["3"]).unknown_items == ["3"]  # "3" is not "0003"
    assert texts.recommend(Query(user_id="u4"), 3).fallback is None
    assert texts.recommend(Query(user_id="4"), 3).fallback == "popular"


def test_k_beyond_the_catalogue(engine):
    assert len(engine.recommend(Query(history=[3]), 40, exclude_seen=False).items) == 40
    for k in (0, -1, 41):
        with pytest.raises(RequestError, match=f"k = {k}; expected 1 to 40"):
            engine.recommend(Query(history=[3]), k)
    assert len(engine.similar(3, 39).items) == 39
    for k in (0, 40):
        with pytest.raises(RequestError, match="1 to 39"):
            engine.similar(3, k)


def test_a_repeated_candidate_is_refused(engine):
    with pytest.raises(RequestError, match="a candidate stands twice"):
        engine.rank(Query(history=[3]), [1, 2, 1])


# Similar items


@pytest.mark.parametrize("name", ["fmrlrec", "ease", "itemknn"])
def test_similar_is_what_the_model_holds_alike(cases, name):
    case = cases(name)
    if name == "fmrlrec":
        vectors = case.model.item_vectors()
        lengths = np.linalg.norm(vectors, axis=1)
        alike = vectors @ vectors.T / np.outer(lengths, lengths)
    else:  # what a history of one item says about the others
        alone = case.model.score(Queries.of([[item] for item in range(40)]))
        alike = alone - case.model.score(Queries.of([[]]))
    engine = RankingEngine(case.bundle)
    for item in (0, 17, 39):
        expected = dict(enumerate(alike[item].tolist()))
        ranked = engine.similar(item, 39)
        assert sorted([*ids(ranked), item]) == list(range(40))
        for line in ranked.items:
            assert line.score == pytest.approx(expected[line.item_id], abs=1e-4)
        best = sorted((expected[other] for other in range(40) if other != item), reverse=True)
        assert [line.score for line in engine.similar(item, 5).items] == pytest.approx(best[:5], abs=1e-4)


def test_similar_refuses_what_it_cannot_do(engine, cases):
    with pytest.raises(RequestError, match="not in the catalogue"):
        engine.similar(999)
    with pytest.raises(RequestError, match="knows no similarity"):
        RankingEngine(cases("popularity").bundle).similar(3)


# Events


def test_an_event_changes_what_comes_next(engine):
    """Item x is followed by 7 x + 3: whatever the user did last decides."""
    user = 10**6
    assert engine.recommend(Query(user_id=user), 1).fallback == "popular"
    for step, item in enumerate((2, 20, 33)):
        assert engine.observe(f"e{step}", user, item, at=1000 + step)
        ranked = engine.recommend(Query(user_id=user), 1)
        assert ids(ranked) == [(7 * item + 3) % 40]
        assert ranked.fallback is None and ranked.history_length == step + 1


def test_events_come_after_the_stored_history(cases, engine):
    case, user = cases("fmrlrec"), 5
    last = int(case.bundle.users["times"][user][-1])
    engine.observe("now", case.user_ids[user], 8, at=last + 100)
    engine.observe("with the last", case.user_ids[user], 9, at=last)  # equal times: the stored one first
    expected = engine.recommend(Query(history=[*case.history(user), 9, 8]), 10)
    assert engine.recommend(Query(user_id=case.user_ids[user]), 10) == expected


def test_a_late_event_is_placed_by_its_time(cases, engine):
    case, user = cases("fmrlrec"), 5
    times, history = case.bundle.users["times"][user].to_list(), case.history(user)
    assert times[1] - times[0] >= 1
    before = engine.recommend(Query(user_id=case.user_ids[user]), 40, exclude_seen=False)
    engine.observe("late", case.user_ids[user], 8, at=times[0])
    placed = [history[0], 8, *history[1:]]
    after = engine.recommend(Query(user_id=case.user_ids[user]), 40, exclude_seen=False)
    assert after == engine.recommend(Query(history=placed), 40, exclude_seen=False)
    assert after != before
    engine.observe("earlier", case.user_ids[user], 9, at=times[0] - 50)
    earliest = engine.recommend(Query(history=[9, *placed]), 40, exclude_seen=False)
    assert engine.recommend(Query(user_id=case.user_ids[user]), 40, exclude_seen=False) == earliest


def test_events_in_any_order_of_arrival(engine):
    for name, order in {"a": (0, 1, 2, 3), "b": (3, 0, 2, 1)}.items():
        user = 10**6 + ord(name)
        for step in order:
            engine.observe(f"{name}{step}", user, (4, 31, 20, 9)[step], at=100 + step)
    expected = engine.recommend(Query(history=[4, 31, 20, 9]), 10)
    for name in "ab":
        assert engine.recommend(Query(user_id=10**6 + ord(name)), 10) == expected


def test_an_event_is_kept_once(engine):
    assert engine.observe("once", 10**6, 4, at=100) is True
    assert engine.observe("once", 10**6, 4, at=100) is False
    assert engine.observe("once", 10**6, 5, at=200) is False  # the first one stands
    assert engine.recommend(Query(user_id=10**6), 1).history_length == 1
    assert engine.recommend(Query(user_id=10**6), 5) == engine.recommend(Query(history=[4]), 5)


def test_events_without_a_time_take_the_clock(cases):
    moments = iter([500, 300, 400])
    engine = RankingEngine(cases("fmrlrec").bundle, clock=lambda: next(moments, 900))
    for name, item in {"a": 4, "b": 31, "c": 20}.items():
        engine.observe(name, 10**6, item)
    assert engine.recommend(Query(user_id=10**6), 5) == engine.recommend(Query(history=[31, 20, 4]), 5)


def test_an_unknown_item_does_not_shift_the_others(cases, engine):
    case, user = cases("fmrlrec"), 5
    last = int(case.bundle.users["times"][user][-1])
    engine.observe("a", case.user_ids[user], 777, at=last - 10**6)
    engine.observe("b", case.user_ids[user], 8, at=last + 1)
    ranked = engine.recommend(Query(user_id=case.user_ids[user]), 10)
    assert ranked.items == engine.recommend(Query(history=[*case.history(user), 8]), 10).items
    assert ranked.unknown_items == [777]


def test_events_of_unknown_items_are_kept_and_named(cases, tmp_path):
    case = cases("fmrlrec")
    store = open_state(tmp_path / "state.db")
    engine = RankingEngine(case.bundle, store)
    engine.observe("a", 10**6, 777, at=1)
    engine.observe("b", 10**6, 4, at=2)
    ranked = engine.recommend(Query(user_id=10**6), 5)
    assert ranked.unknown_items == [777] and ranked.history_length == 1
    assert ids(ranked) == ids(engine.recommend(Query(history=[4]), 5))
    # a later bundle that knows the item sees the event
    items = case.bundle.items.with_columns(
        pl.when(pl.col("item_id") == 30).then(777).otherwise(pl.col("item_id")).alias("item_id")
    )
    later = BundleContent(
        "fmrlrec", case.bundle.form, items, case.bundle.item_counts_I, None, case.bundle.id_type, "s", 0
    )
    renewed = RankingEngine(write_bundle(tmp_path / "later", later), store)
    assert renewed.recommend(Query(user_id=10**6), 5).history_length == 2
    assert renewed.recommend(Query(user_id=10**6), 5).unknown_items == []


def test_events_of_users_with_typed_ids_stay_apart(text_case):
    engine = RankingEngine(text_case.bundle)
    engine.observe("a", "new", "0003", at=1)
    assert engine.recommend(Query(user_id="new"), 3).fallback is None
    assert engine.recommend(Query(user_id="NEW"), 3).fallback == "popular"
    assert json.loads(engine.store.events('"new"')[0].user_id) == "new"


def test_two_threads_get_the_same_answers(cases):
    case = cases("fmrlrec")
    asked = [entry["body"] for entry in requests(case, 40, seed=2) if "candidates" not in entry["body"]]
    asked = [Query(body.get("user_id"), body.get("history"), body.get("width")) for body in asked]
    alone = [RankingEngine(case.bundle).recommend(query, 7) for query in asked]
    shared = RankingEngine(case.bundle)
    found: dict[int, list] = {}
    start = threading.Barrier(4)

    def work(number: int) -> None:
        start.wait()
        found[number] = []
        for step, query in enumerate(asked):
            found[number].append(shared.recommend(query, 7))
            shared.observe(f"{number}.{step}", 10**6 + number, step % 40, at=step)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found[number] == alone for number in range(4))
    for number in range(4):
        assert shared.recommend(Query(user_id=10**6 + number), 1).history_length == len(asked)


def test_without_users_every_user_is_unknown(cases, tmp_path, chain):
    from serving_case import content_of

    case = cases("fmrlrec")
    content = replace(content_of("fmrlrec", case.model, case.split, chain.items), users=None)
    engine = RankingEngine(write_bundle(tmp_path / "bundle", content))
    assert engine.recommend(Query(user_id=case.user_ids[0]), 3).fallback == "popular"
    engine.observe("a", case.user_ids[0], 4, at=1)
    assert ids(engine.recommend(Query(user_id=case.user_ids[0]), 1)) == [31]

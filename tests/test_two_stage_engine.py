"""The engine with a second stage: offline and served alike, event by event; new items; explanations; spread."""

import numpy as np
import pytest
from hash_text import HashText, HashTextConfig
from two_stage_case import SIZE, WORDS, TwoStageCase, make_two_stage

from recsys.errors import RequestError
from recsys.popularity import DAY, Popularity
from recsys.ranking_features import Asked, ranking_features
from recsys.schema import Dense, Queries, Ragged
from recsys.serving.answers import Query, Ranked, Spread
from recsys.serving.content import NewItem
from recsys.serving.engine import RankingEngine
from recsys.serving.forms import open_form
from recsys.two_stage import union


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> TwoStageCase:
    return make_two_stage(tmp_path_factory.mktemp("two-stage"))


@pytest.fixture
def engine(case) -> RankingEngine:
    return RankingEngine(case.bundle, clock=lambda: 130 * DAY)


def ids(ranked: Ranked) -> list:
    return [item.item_id for item in ranked.items]


def vector(text: str) -> list[float]:
    return HashText(HashTextConfig()).encode([text])[0].tolist()


# Parity


def test_a_thousand_events_offline_and_live(case):
    """Before each of the last thousand events: the candidates and every feature by replaying the log, and by the live
    engine that was told of the events one by one."""
    log = case.split.log
    order = np.argsort(log.time_N, kind="stable")
    first = int(case.bundle.manifest["last_event"])
    replayed = order[log.time_N[order] > first][:1000]
    now = {"time": first}
    engine = RankingEngine(case.bundle, clock=lambda: now["time"])
    programs = {name: open_form(form) for name, form in case.bundle.generators.items()}
    whole = Popularity.of_log(log)
    compared = 0
    for number, row in enumerate(replayed.tolist()):
        user, item, at = int(log.user_N[row]), int(log.item_N[row]), int(log.time_N[row])
        before = (log.user_N == user) & (log.time_N < at)
        history, times = log.item_N[before], log.time_N[before]
        now["time"] = at
        engine.live.refresh(force=True)
        question, _ = engine._question(Query(user_id=case.split.user_ids[user]), engine.catalogue)
        assert question.items.tolist() == history.tolist() and question.times.tolist() == times.tolist()

        queries = Queries(np.array([user]), Ragged.of([history]), np.array([at]))
        scores_GI = np.stack([program.score(queries)[0] for program in programs.values()])
        scores_GI[:, history] = -np.inf
        columns = union(scores_GI, case.ranker.per_generator)
        offline = ranking_features(
            Asked(history, times, at), columns, scores_GI[:, columns], whole.as_of(at), case.ranker.items
        )
        allowed = np.ones(case.split.num_items, bool)
        allowed[history] = False
        found = engine.stages.retrieved(engine.catalogue, question, allowed, 12, None)
        np.testing.assert_array_equal(found.columns, columns)
        live = engine.stages.features(engine.catalogue, question, found)
        np.testing.assert_allclose(live, offline, rtol=2e-4, atol=2e-5, equal_nan=True)
        compared += live.size
        assert engine.observe(f"e{number}", case.split.user_ids[user], case.split.item_ids[item], at)
    assert len(replayed) > 200 and compared > 100_000


def test_recommendations_are_those_of_the_offline_line(case, engine):
    """Scores to 1e-5 against the scorer that was evaluated."""
    asked = case.split.queries("test").take(slice(0, 40)).queries
    popularity = Popularity.of_log(case.split.fit_log(("train", "ranker", "valid")))
    offline_QI = case.ranker.scorer(case.models, popularity).score(asked)
    for row in range(len(asked)):
        history, at = asked.history[row], int(asked.at_Q[row])
        masked = offline_QI[row].copy()
        masked[history] = -np.inf
        served = RankingEngine(case.bundle, clock=lambda at=at: at)
        live = served.users.of(case.split.user_ids[int(asked.user_Q[row])])
        if live.items.tolist() != history.tolist():
            continue  # earlier events of the test part, which the bundle lacks
        ranked = served.recommend(Query(user_id=case.split.user_ids[int(asked.user_Q[row])]), 5)
        expected = np.argsort(-masked, kind="stable")[:5]
        np.testing.assert_allclose([item.score for item in ranked.items], masked[expected], atol=1e-5)


def test_a_state_is_read_stepped_and_fetched_alike(case):
    """The same scores whether a history was read at once, grew event by event, or came back from the store."""
    user, items = case.split.user_ids[0], [3, 15, 7, 3, 40]
    stepped = RankingEngine(case.bundle, clock=lambda: 130 * DAY)
    stepped.rank(Query(user_id=user), [1, 2])
    for number, item in enumerate(items):
        stepped.observe(f"{number}", user, item, 125 * DAY + number)
        stepped.rank(Query(user_id=user), [1, 2])
    read = RankingEngine(case.bundle, stepped.store, clock=lambda: 130 * DAY)
    first, second = (one.rank(Query(user_id=user), list(range(20))) for one in (stepped, read))
    np.testing.assert_allclose(
        [item.score for item in first.items], [item.score for item in second.items], atol=1e-5
    )
    read.close()  # the state is kept by now
    fetched = RankingEngine(case.bundle, stepped.store, clock=lambda: 130 * DAY)
    networks = [program.network for program in fetched.users.programs.values()]
    for network in networks:
        network.read = None  # not needed
    assert ids(fetched.rank(Query(user_id=user), list(range(20)))) == ids(second)


def test_late_events_and_equal_times_lead_to_one_history(case):
    user = case.split.user_ids[1]
    events = [("b", 5, 126), ("a", 6, 126), ("d", 7, 124), ("c", 8, 125)]
    orders = [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]]
    histories = []
    for order in orders:
        engine = RankingEngine(case.bundle, clock=lambda: 130 * DAY)
        for number in order:
            event_id, item, day = events[number]
            engine.observe(event_id, user, item, day * DAY)
            engine.rank(Query(user_id=user), [1])
        histories.append(engine.users.of(user).items.tolist())
    assert histories[0][-4:] == [7, 8, 6, 5]
    assert histories[1] == histories[2] == histories[0]


# The answer


def test_sources_and_contributions_add_up(case, engine):
    user = case.split.user_ids[2]
    ranked = engine.recommend(Query(user_id=user), 6, explain=True)
    places = {}
    for name in engine.generators:
        question, _ = engine._question(Query(user_id=user), engine.catalogue)
        scores = question.scores(name, engine.catalogue.programs[name], None, len(engine.catalogue), None)
        scores[question.items] = -np.inf
        places[name] = np.argsort(-scores, kind="stable").tolist()
    for item in ranked.items:
        assert item.sources
        for source in item.sources:
            assert places[source.generator].index(item.index) == source.rank - 1
        assert sum(item.contributions.values()) == pytest.approx(item.score, abs=1e-4)
        assert "popular_1d" in item.contributions and "base" in item.contributions
    assert set(ranked.timings) >= {"history", "retrieve", "features", "rank", "answer", "total"}


def test_what_is_in_fashion_today_ranks_above_what_was(case):
    """Live events move tomorrow's list: the second stage reads counts as of now."""
    at = {"now": 131 * DAY}
    engine = RankingEngine(case.bundle, clock=lambda: at["now"])
    user, rare = case.split.user_ids[4], 9
    candidates = [item for item in range(SIZE) if item != rare] + [rare]
    before = ids(engine.rank(Query(user_id=user), candidates)).index(rare)
    for number in range(60):
        engine.observe(f"hot{number}", case.split.user_ids[8 + 4 * (number % 10)], rare, 131 * DAY + number)
    engine.live.refresh(force=True)
    assert ids(engine.rank(Query(user_id=user), candidates)).index(rare) == before  # not of the same day
    at["now"] = 132 * DAY
    assert ids(engine.rank(Query(user_id=user), candidates)).index(rare) < before


def test_spread(case, engine):
    user = case.split.user_ids[3]
    plain = engine.recommend(Query(user_id=user), 8)
    same = engine.recommend(Query(user_id=user), 8, spread=Spread(mmr=1.0))
    assert ids(same) == ids(plain)
    tastes = Query(history=[3, 20, 30, 45])
    capped = engine.recommend(tastes, 6, spread=Spread(category_cap=2))
    groups = [item // SIZE for item in ids(capped)]
    assert max(groups.count(group) for group in set(groups)) == 2
    assert ids(capped)[0] == ids(engine.recommend(tastes, 6))[0]
    vectors = engine.program.form.item_vectors_ID

    def nearness(ranked: Ranked) -> float:
        """Mean cosine of every item with the nearest above it: what MMR takes into account."""
        rows = vectors[[item.index for item in ranked.items]]
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return float(np.mean([(rows[:place] @ rows[place]).max() for place in range(1, len(rows))]))

    assert nearness(engine.recommend(Query(user_id=user), 8, spread=Spread(mmr=0.2))) < nearness(plain)
    explored = engine.recommend(Query(user_id=user), 8, spread=Spread(explore=2, seed="r"))
    assert ids(explored)[:6] == ids(plain)[:6]
    drawn = explored.items[6:]
    assert [source.generator for item in drawn for source in item.sources] == ["explore", "explore"]
    assert all(item.score is None and item.item_id not in ids(plain)[:6] for item in drawn)
    again = engine.recommend(Query(user_id=user), 8, spread=Spread(explore=2, seed="r"))
    assert ids(again) == ids(explored)


# New items


def test_a_new_item_is_ranked_by_its_content(case, engine):
    """For a user of each taste, a new item of that taste stands above new items of the others."""
    new = [
        NewItem(1000 + group, title=WORDS[group], features={"text": vector(WORDS[group])})
        for group in range(4)
    ]
    for group in range(4):
        ranked = engine.rank(Query(user_id=case.split.user_ids[group]), [], new)
        assert ids(ranked)[0] == 1000 + group
        assert ranked.items[0].title == WORDS[group] and ranked.fallback is None


def test_raw_text_is_encoded_as_the_table_was(case, engine):
    raw = engine.rank(Query(history=[3, 5]), [1], [NewItem(1000, title=WORDS[0])])
    sent = engine.rank(Query(history=[3, 5]), [1], [NewItem(1000, features={"text": vector(WORDS[0])})])
    assert [item.score for item in raw.items] == [item.score for item in sent.items]
    assert not raw.missing


def test_new_items_beside_others_leave_their_scores_alone_without_trees(case, tmp_path):
    from two_stage_case import content_of

    from recsys.bundle_writing import write_bundle

    plain = write_bundle(tmp_path / "b", content_of(case.dataset, case.split, case.models, case.table, None))
    engine = RankingEngine(plain)
    alone = {item.item_id: item.score for item in engine.rank(Query(history=[3, 5]), [1, 20, 30]).items}
    new = NewItem(1000, features={"text": vector(WORDS[1])})
    beside = {
        item.item_id: item.score for item in engine.rank(Query(history=[3, 5]), [1, 20, 30], [new]).items
    }
    assert {item: beside[item] for item in alone} == alone
    rows = {"text": case.table}
    model = case.models["fmrlrec"]
    np.testing.assert_allclose(plain.form.encoding.vectors(rows), model.encode_items(rows), atol=1e-5)
    row = Dense(np.array([vector(WORDS[1])], np.float32), np.array([True]))
    expected = model.encode_items({"text": row})
    query_D = model.query_vectors(Queries.of([[3, 5]]))[0]
    assert beside[1000] == pytest.approx(float(query_D @ expected[0]), abs=1e-4)


def test_an_item_without_content_is_refused_alone_and_named_beside_others(engine):
    with pytest.raises(RequestError, match="no content"):
        engine.rank(Query(history=[3]), [1], [NewItem(1000)])
    both = [NewItem(1000), NewItem(1001, title=WORDS[0])]
    ranked = engine.rank(Query(history=[3]), [1], both)
    assert ranked.missing == {1000: ["text"]} and len(ranked.items) == 3


def test_features_that_do_not_fit(engine):
    with pytest.raises(RequestError, match="finite"):
        engine.rank(Query(history=[3]), [], [NewItem(1000, features={"text": [1.0]})])
    with pytest.raises(RequestError, match="sound"):
        engine.rank(Query(history=[3]), [], [NewItem(1000, features={"sound": [1.0]})])
    with pytest.raises(RequestError, match="twice"):
        engine.rank(Query(history=[3]), [1], [NewItem(1, title=WORDS[0])])


def test_added_items_are_recommended_and_removed_ones_are_not(case, engine):
    user = case.split.user_ids[0]
    missing = engine.add_items([NewItem(1000, title=WORDS[0], category=["group 0"])])
    assert not missing and len(engine.catalogue) == case.split.num_items + 1
    everything = engine.recommend(Query(user_id=user), len(engine.catalogue))
    place = ids(everything).index(1000)
    assert place < ids(everything).index(30) and everything.items[place].title == WORDS[0]
    assert 1000 in [item.item_id for item in engine.similar_to_new(NewItem(7000, title=WORDS[0]), 13).items]
    engine.observe("x", user, 1000, 129 * DAY)
    assert engine.users.of(user).items[-1] == case.split.num_items  # it is part of the history now
    assert 1000 not in ids(engine.recommend(Query(user_id=user), 10))
    engine.remove_items([1000, 3])
    rest = ids(engine.recommend(Query(history=[5]), 40))
    assert 1000 not in rest and 3 not in rest
    engine.add_items([NewItem(3, title="back")])
    assert 3 in ids(engine.recommend(Query(history=[5]), len(engine.catalogue), exclude_seen=False))
    assert engine.catalogue.titles[3] == "back"
    with pytest.raises(RequestError, match="not in the catalogue"):
        engine.remove_items([555])


def test_added_items_outlive_the_process_and_reach_others(case, engine):
    engine.add_items([NewItem(1000, title=WORDS[2], image=b"\xff\xd8\xff picture")])
    other = RankingEngine(case.bundle, engine.store, engine.clock)
    assert other.catalogue.added[1000].title == WORDS[2] and other.picture(1000) == b"\xff\xd8\xff picture"
    engine.add_items([NewItem(1001, title=WORDS[1])])
    other.live.refresh(force=True)
    first, second = (one.rank(Query(history=[30]), [1000, 1001, 30]) for one in (engine, other))
    assert [(i.item_id, i.score, i.title) for i in first.items] == [
        (i.item_id, i.score, i.title) for i in second.items
    ]


def test_a_forgotten_user_is_unknown(case, engine):
    user = case.split.user_ids[5]
    assert engine.recommend(Query(user_id=user), 3).history_length > 0
    engine.observe("y", user, 3, 129 * DAY)
    assert engine.forget_user(user) == 1
    again = engine.recommend(Query(user_id=user), 3)
    assert again.history_length == 0 and again.fallback == "popular"
    assert RankingEngine(case.bundle, engine.store).recommend(Query(user_id=user), 3).history_length == 0
    engine.observe("z", user, 3, 131 * DAY)
    assert engine.recommend(Query(user_id=user), 3).history_length == 1


def test_events_that_a_newer_bundle_was_made_of_count_once(case):
    """The store outlives a bundle: events it kept may stand in the next one's histories and counts."""
    row = 6
    user, times = case.split.user_ids[row], case.bundle.users["times"][row].to_list()
    items = case.bundle.histories[row].tolist()
    engine = RankingEngine(case.bundle, clock=lambda: 130 * DAY)
    counts = engine.live.popularity.as_of(130 * DAY).values_IF.copy()
    for number, (item, time) in enumerate(zip(items[-3:], times[-3:], strict=True)):
        engine.observe(f"again{number}", user, case.split.item_ids[item], time)
    engine.live.refresh(force=True)
    assert engine.users.of(user).items.tolist() == items
    np.testing.assert_array_equal(engine.live.popularity.as_of(130 * DAY).values_IF, counts)
    engine.observe("new", user, case.split.item_ids[4], 129 * DAY)
    assert engine.users.of(user).items.tolist() == [*items, 4]


@pytest.mark.parametrize("name", ["fmrlrec", "ease", "itemknn", "popularity"])
def test_a_model_that_reads_no_content_goes_on_when_items_are_added(cases, name):
    """It cannot score them; what it says of the others stays, also for a user who took one."""
    case = cases(name)
    engine = RankingEngine(case.bundle)
    user = case.user_ids[4]
    before = engine.recommend(Query(user_id=user), 6)
    engine.add_items([NewItem(5000, title="new")])
    engine.observe("took", user, 5000)
    after = engine.recommend(Query(user_id=user), 6)
    assert [(item.item_id, item.score) for item in after.items] == [
        (item.item_id, pytest.approx(item.score, abs=1e-5)) for item in before.items
    ]
    last = engine.rank(Query(user_id=user), [5000, case.item_ids[3]]).items[-1]
    assert (last.item_id, last.score) == (5000, None)

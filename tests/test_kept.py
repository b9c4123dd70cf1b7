"""What is kept with a live user between questions: never older than the history that the question is about."""

import threading

import pytest
from two_stage_case import WORDS, TwoStageCase, make_two_stage

from recsys.popularity import DAY
from recsys.serving.answers import Query, Ranked
from recsys.serving.content import NewItem
from recsys.serving.engine import RankingEngine

NOW = 130 * DAY


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> TwoStageCase:
    return make_two_stage(tmp_path_factory.mktemp("kept"))


def asked(engine: RankingEngine, user: int) -> list[Ranked]:
    return [engine.rank(Query(user_id=user), list(range(40))), engine.recommend(Query(user_id=user), 12)]


def as_if_never_asked(case: TwoStageCase, engine: RankingEngine, user: int) -> None:
    """The engine's answers are those of one that has just been opened over the same store."""
    engine.live.refresh(force=True)
    fresh = RankingEngine(case.bundle, engine.store, engine.clock)
    for found, expected in zip(asked(engine, user), asked(fresh, user), strict=True):
        assert found.history_length == expected.history_length
        assert [item.item_id for item in found.items] == [item.item_id for item in expected.items]
        assert [item.score for item in found.items] == pytest.approx(
            [item.score for item in expected.items], abs=1e-5
        )


def test_events_one_by_one_late_ones_and_forgetting(case):
    engine, user = RankingEngine(case.bundle, clock=lambda: NOW), case.split.user_ids[0]
    before = [item.score for item in asked(engine, user)[0].items]
    for number, (item, day) in enumerate([(3, 127), (30, 128), (30, 128), (7, 125), (15, 129)]):
        engine.observe(f"e{number}", user, item, day * DAY)
        as_if_never_asked(case, engine, user)
    assert [item.score for item in asked(engine, user)[0].items] != before
    engine.add_items([NewItem(1000, title=WORDS[1], category=["group 1"])])
    as_if_never_asked(case, engine, user)
    engine.observe("added", user, 1000, 129 * DAY + 1)
    as_if_never_asked(case, engine, user)
    engine.forget_user(user)
    as_if_never_asked(case, engine, user)


def test_two_users_do_not_share(case):
    engine = RankingEngine(case.bundle, clock=lambda: NOW)
    for user in (case.split.user_ids[1], case.split.user_ids[2], case.split.user_ids[1]):
        as_if_never_asked(case, engine, user)


def test_questions_while_events_come(case):
    """Several threads ask about the users whose events another one tells."""
    engine, users = RankingEngine(case.bundle, clock=lambda: NOW), case.split.user_ids[:3].to_list()
    ended, broken = threading.Event(), []

    def ask(start: int) -> None:
        lengths = dict.fromkeys(users, 0)
        try:
            for number in range(start, 10**6):
                if ended.is_set():
                    return
                user = users[number % 3]
                for answer in asked(engine, user):
                    assert all(item.score is not None for item in answer.items)
                    assert answer.history_length >= lengths[user]
                    lengths[user] = answer.history_length
        except Exception as error:
            broken.append(error)

    threads = [threading.Thread(target=ask, args=(start,)) for start in range(3)]
    for thread in threads:
        thread.start()
    for number in range(30):
        engine.observe(f"t{number}", users[number % 3], 5 * number % 40, 129 * DAY + number)
        asked(engine, users[number % 3])
    ended.set()
    for thread in threads:
        thread.join()
    assert not broken
    for user in users:
        as_if_never_asked(case, engine, user)

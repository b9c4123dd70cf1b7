"""Ranking modes: each finds what a model likes; orders and calibration cancel what it likes about slots."""

import json

import numpy as np
import pytest

from recsys.errors import ConfigError
from recsys.zeroshot.asking import contest
from recsys.zeroshot.budget import Meter
from recsys.zeroshot.cache import Answers, CachedClient
from recsys.zeroshot.clients.base import Answer, Usage
from recsys.zeroshot.clients.mock import Mock
from recsys.zeroshot.modes import RankConfig, Ranker
from recsys.zeroshot.probes import slot_preference
from recsys.zeroshot.prompts import Case, PromptConfig, Prompter
from recsys.zeroshot.shelf import Shelf

TITLES = [f"Film {number}" for number in range(30)]
SHELF = Shelf(TITLES, [""] * 30, [[]] * 30, [None] * 30)
MODES = ("listwise", "letters", "pairwise", "pointwise", "elimination")


def number(title: str) -> int:
    return int(title.split()[-1])


def likes_high(history, title) -> float:
    return 0.2 * number(title) - 1.3


def ranker(tmp_path, client, prompt=None, **settings) -> Ranker:
    cached = CachedClient(client, Answers(tmp_path / "answers.jsonl"), Meter(), "off")
    return Ranker(cached, Prompter(prompt or PromptConfig(), SHELF), RankConfig(**settings))


class Writing(Mock):
    """The same, but it can only write."""

    scores_choices = False


def case(query_id: int = 0, size: int = 8) -> Case:
    items = tuple(np.random.default_rng(query_id).permutation(size) + 10)
    return Case(query_id, (0, 1, 2), tuple(int(item) for item in items))


@pytest.mark.parametrize("kind", [Mock, Writing])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_finds_the_order(tmp_path, mode, kind):
    found = ranker(tmp_path, kind(likes_high), mode=mode, depth=7, rounds=2).rank(case())
    items = [found.case.candidates[place] for place in found.order]
    if mode == "pointwise" and kind is Writing:  # Yes and No are all it says: films above 6.5 come first
        assert [item > 6 for item in items] == [True] * 8
    else:
        assert items == sorted(items, reverse=True)
    assert found.faults.missing == found.faults.invalid == 0


@pytest.mark.parametrize("mode", MODES)
def test_no_more_requests_than_foretold(tmp_path, mode):
    asked = ranker(tmp_path, Writing(likes_high), mode=mode, rounds=3)
    found = asked.rank(case(size=12))
    assert len(found.replies) <= asked.requests(12)
    assert len(found.replies) == {"listwise": 3, "letters": 3, "pointwise": 12, "elimination": 15}.get(
        mode, len(found.replies)
    )


def test_a_planted_slot_preference_is_seen_and_cancelled(tmp_path):
    """The model likes the first slot more than any film: one order shows it; a whole square or calibration does not."""
    biased = Mock(likes_high, slot_bias=30.0)
    cases = [case(n) for n in range(24)]

    def first_is_best(**settings) -> tuple[float, float]:
        found = contest("x", ranker(tmp_path, biased, mode="letters", **settings), cases, 2)
        best = [one.case.candidates[one.order[0]] == 17 for one in found.judged]
        return float(np.mean(best)), slot_preference(found)["distance"]

    right, distance = first_is_best()
    assert right < 0.5 and distance > 0.8
    right_square, _ = first_is_best(rounds=8, combine="scores")
    right_random, _ = first_is_best(rounds=8, combine="scores", orders="random")
    assert right_square == 1.0 > right_random  # only the square holds every film in every slot equally often

    def of_history(history, title):
        return likes_high(history, title) if history else 0.0

    found = contest(
        "x", ranker(tmp_path, Mock(of_history, slot_bias=30.0), mode="letters", calibrate=True), cases, 2
    )
    assert all(one.case.candidates[one.order[0]] == 17 for one in found.judged)
    assert slot_preference(found)["distance"] < 0.5


def test_pairs_are_asked_in_both_orders(tmp_path):
    found = ranker(tmp_path, Mock(likes_high, slot_bias=30.0), mode="pairwise").rank(case())
    items = [found.case.candidates[place] for place in found.order]
    assert items == sorted(items, reverse=True)
    pairs = [reply.places for reply in found.replies]
    assert {(a, b) for a, b in pairs} == {(b, a) for a, b in pairs}


def test_scores_are_kept_by_candidate(tmp_path):
    found = ranker(tmp_path, Mock(likes_high), mode="letters", rounds=8, combine="scores").rank(case())
    values = np.array([number(TITLES[item]) for item in found.case.candidates])
    assert (np.argsort(found.scores_RN.mean(axis=0)) == np.argsort(values)).all()
    assert (found.scores_RN.std(axis=0) < 1e-9).all()


def test_what_is_left_out_follows_in_the_base_rankers_order(tmp_path):
    class Short(Mock):
        def chat(self, messages, schema=None):
            whole = json.loads(super().chat(messages, schema).text)["ranking"]
            return Answer(json.dumps({"ranking": whole[:2]}), Usage())

    based = Case(0, (), (10, 11, 12, 13), base=(1, 3, 0, 2))
    found = ranker(tmp_path, Short(likes_high), mode="listwise", orders="fixed").rank(based)
    assert found.order.tolist() == [3, 2, 1, 0] and found.faults.missing == 2
    plain = Case(0, (), (10, 11, 12, 13))
    assert ranker(tmp_path, Short(likes_high), mode="listwise").rank(plain).order.tolist() == [3, 2, 0, 1]


def test_one_repair_and_no_more(tmp_path):
    class Babbling(Mock):
        asked = 0

        def chat(self, messages, schema=None):
            self.asked += 1
            return Answer("hm", Usage()) if len(messages) < 4 else super().chat(messages[:2], schema)

    client = Babbling(likes_high)
    found = ranker(tmp_path, client, mode="listwise").rank(case())
    assert found.case.candidates[found.order[0]] == 17 and client.asked == 2
    assert (found.faults.answers, found.faults.invalid, found.faults.repaired) == (2, 1, 1)
    client = Babbling(likes_high)
    found = ranker(tmp_path, client, mode="listwise", repair=False).rank(case())
    assert client.asked == 1 and found.faults.missing == 8


def test_what_does_not_go_together_is_told(tmp_path):
    class Blind(Mock):
        sees_images = False

    with pytest.raises(ConfigError, match="sees none"):
        ranker(tmp_path, Blind(likes_high), PromptConfig(candidates="image"))
    with pytest.raises(ConfigError, match=r"rank\.calibrate"):
        ranker(tmp_path, Mock(likes_high), mode="listwise", calibrate=True)
    with pytest.raises(ConfigError, match=r"rank\.combine"):
        ranker(tmp_path, Mock(likes_high), mode="pairwise", combine="scores")
    with pytest.raises(ConfigError, match="at most 26"):
        ranker(tmp_path, Mock(likes_high), mode="letters").rank(Case(0, (), tuple(range(27))))

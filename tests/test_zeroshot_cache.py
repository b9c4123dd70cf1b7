"""Answers by content: paid once, kept whole, replayed without a model, never beyond the budget."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from recsys.errors import ConfigError, RecsysError
from recsys.zeroshot.budget import BudgetConfig, BudgetError, Meter, Price, read_price
from recsys.zeroshot.cache import Answers, CachedClient
from recsys.zeroshot.clients.base import Answer, Client, Usage
from recsys.zeroshot.messages import Message, Picture, canonical, contact_sheet


class Counting(Client):
    """Answers what it was asked, slowly; counts."""

    name = "counting"
    scores_choices = True

    def __init__(self):
        self.asked: list[str] = []
        self._lock = threading.Lock()

    def chat(self, messages, schema=None):
        with self._lock:
            self.asked.append(messages[-1].text)
        time.sleep(0.002)
        return Answer(f"said {messages[-1].text}", Usage(10, 5), 0.5)

    def score_choices(self, messages, choices):
        self.asked.append(messages[-1].text)
        return Answer("", Usage(10, 1), 0.5, scores=tuple(-float(n) for n in range(len(choices))))


def say(text: str) -> list[Message]:
    return [Message("user", (text,))]


def test_what_was_paid_for_is_never_asked_again(tmp_path):
    asked = Counting()
    first = CachedClient(asked, Answers(tmp_path / "a.jsonl"), Meter())
    answers = [
        first.chat(say("one"), round=0),
        first.chat(say("one"), round=0),
        first.chat(say("one"), round=1),
    ]
    scores = first.score_choices(say("one"), ["A", "B"], round=0).scores
    assert asked.asked == ["one", "one", "one"]  # another round, and scores, are other questions
    again = CachedClient(asked, Answers(tmp_path / "a.jsonl"), Meter())
    assert again.chat(say("one"), round=0).text == answers[0].text
    assert again.score_choices(say("one"), ["A", "B"], round=0).scores == scores == (0.0, -1.0)
    assert len(asked.asked) == 3
    assert again.meter.facts()["paid_requests"] == 0 and again.meter.facts()["prompt_tokens"] == 20


def test_keys_hold_what_decides_an_answer_and_nothing_else(tmp_path):
    client = CachedClient(Counting(), Answers(tmp_path / "a.jsonl"), Meter())
    key = client.key(say("one"), {"schema": None}, {"round": 0})
    assert key == client.key(say("one"), {"schema": None}, {"round": 0})
    others = [
        client.key(say("two"), {"schema": None}, {"round": 0}),
        client.key(say("one"), {"schema": {"type": "object"}}, {"round": 0}),
        client.key(say("one"), {"schema": None}, {"round": 1}),
        client.key(say("one"), {"schema": None}, {"round": 0, "template": "2"}),
    ]
    other_model = Counting()
    other_model.name = "other"
    others.append(
        CachedClient(other_model, Answers(tmp_path / "b"), Meter()).key(
            say("one"), {"schema": None}, {"round": 0}
        )
    )
    assert len({key, *others}) == 6


def test_pictures_are_in_keys_by_their_bytes_which_are_stable(tmp_path):
    Image.effect_noise((300, 200), 60).convert("RGB").save(tmp_path / "p.png")
    one, two = Picture.open(tmp_path / "p.png", 64), Picture.open(tmp_path / "p.png", 64)
    assert one.jpeg == two.jpeg and max(one.image.size) == 64
    assert canonical([Message("user", ("see", one))])[0]["parts"] == ["see", {"image": one.sha256}]
    assert Picture.open(tmp_path / "p.png", 32).sha256 != one.sha256
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    assert Picture.open(tmp_path / "bad.jpg", 32) is None and Picture.open(tmp_path / "none.jpg", 32) is None
    sheet = contact_sheet([("A", one), ("B", None), ("C", two)], 40, columns=2)
    assert sheet.image.size == (80, 112)


def test_threads_that_ask_the_same_pay_once(tmp_path):
    asked = Counting()
    client = CachedClient(asked, Answers(tmp_path / "a.jsonl"), Meter())
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda n: client.chat(say(f"q{n % 10}")).text, range(80)))
    assert sorted(asked.asked) == [f"q{n}" for n in range(10)]
    assert texts == [f"said q{n % 10}" for n in range(80)]
    assert len(Answers(tmp_path / "a.jsonl")) == 10


def test_a_line_cut_short_by_a_kill_is_left_out_and_writing_goes_on(tmp_path):
    path = tmp_path / "a.jsonl"
    client = CachedClient(Counting(), Answers(path), Meter())
    for name in ("one", "two", "three"):
        client.chat(say(name))
    whole = path.read_bytes()
    for cut in range(len(whole) - 200, len(whole), 17):
        path.write_bytes(whole[:cut])
        found = Answers(path)
        assert len(found) == 2 and found.damaged <= 1
        asked = Counting()
        again = CachedClient(asked, found, Meter())
        assert [again.chat(say(name)).text for name in ("one", "two", "three")][2] == "said three"
        assert asked.asked == ["three"]
        assert len(Answers(path)) == 3


def test_replay_needs_no_model_and_names_what_is_missing(tmp_path):
    CachedClient(Counting(), Answers(tmp_path / "a.jsonl"), Meter()).chat(say("one"))
    replayed = CachedClient(None, Answers(tmp_path / "a.jsonl"), Meter(), "replay", name="counting")
    assert replayed.chat(say("one")).text == "said one"
    with pytest.raises(RecsysError, match="this answer was not recorded"):
        replayed.chat(say("two"))


@pytest.mark.parametrize(("mode", "asks", "kept"), [("off", 2, 0), ("record", 2, 1), ("read-write", 1, 1)])
def test_modes(tmp_path, mode, asks, kept):
    asked = Counting()
    client = CachedClient(asked, Answers(tmp_path / "a.jsonl"), Meter(), mode)
    client.chat(say("one")), client.chat(say("one"))
    assert len(asked.asked) == asks and len(Answers(tmp_path / "a.jsonl")) == kept


@pytest.mark.parametrize(
    ("limit", "answered"), [({"requests": 3}, 3), ({"tokens": 40}, 2), ({"cost": 0.000031}, 2), ({}, 5)]
)
def test_the_budget_is_never_passed_and_known_answers_are_free(tmp_path, limit, answered):
    asked = Counting()
    meter = Meter(BudgetConfig(**limit), Price(1.0, 1.0, 1.0, known=True), answer_tokens=5)
    client = CachedClient(asked, Answers(tmp_path / "a.jsonl"), meter)
    told = None
    for number in range(5):
        try:
            client.chat(say(f"q{number}"))
        except BudgetError as error:
            told = str(error)
    assert len(asked.asked) == answered
    assert (told is None) == (answered == 5) and (told is None or "nothing is paid twice" in told)
    client.chat(say("q0"))
    assert len(asked.asked) == answered


def test_scores_hold_one_token_of_the_budget_and_texts_as_many_as_they_may_be(tmp_path):
    meter = Meter(BudgetConfig(tokens=100), answer_tokens=90)
    client = CachedClient(Counting(), Answers(tmp_path / "a.jsonl"), meter)
    client.score_choices(say("q0"), ["A"])
    assert client.score_choices(say("q1"), ["A"]).scores == (0.0,)
    with pytest.raises(BudgetError, match=r"budget\.tokens = 100 is spent after 2 requests, 22 tokens"):
        client.chat(say("q2"))


def test_the_budget_holds_under_threads(tmp_path):
    asked = Counting()
    client = CachedClient(asked, Answers(tmp_path / "a.jsonl"), Meter(BudgetConfig(requests=7)))

    def ask(number: int) -> bool:
        try:
            client.chat(say(f"q{number}"))
        except BudgetError:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(ask, range(40))) == 7
    assert len(asked.asked) == 7


def test_a_failed_request_gives_its_reservation_back(tmp_path):
    class Failing(Counting):
        def chat(self, messages, schema=None):
            if messages[-1].text == "bad":
                raise RuntimeError("down")
            return super().chat(messages, schema)

    client = CachedClient(Failing(), Answers(tmp_path / "a.jsonl"), Meter(BudgetConfig(requests=1)))
    for _ in range(3):
        with pytest.raises(RuntimeError):
            client.chat(say("bad"))
    assert client.chat(say("good")).text == "said good"


def test_prices(tmp_path):
    assert not read_price("nobody", None).known and read_price("mock", None).known
    (tmp_path / "p.toml").write_text(
        'currency = "EUR"\n[models.m]\nprompt = 2.0\ncompletion = 8.0\ncached = 1.0\n'
    )
    price = read_price("m", str(tmp_path / "p.toml"))
    assert price.currency == "EUR"
    assert price.of(Usage(prompt=1_000_000, completion=500_000, cached=400_000)) == pytest.approx(
        1.2 + 0.4 + 4.0
    )
    (tmp_path / "bad.toml").write_text("[models.m]\nprompt = 2.0\n")
    with pytest.raises(ConfigError, match="cannot be read as prices"):
        read_price("m", str(tmp_path / "bad.toml"))

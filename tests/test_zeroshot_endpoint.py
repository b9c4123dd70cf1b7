"""The endpoint client and a whole experiment against a server on loopback that delays, limits, lies and refuses."""

import json
from types import SimpleNamespace

import pytest
from chat_stub import FAULTS, Stub, stubbed
from PIL import Image
from zeroshot_case import experiment, headline, planted, run

from recsys.errors import ConfigError
from recsys.zeroshot.clients import openai_endpoint
from recsys.zeroshot.clients.base import ClientError
from recsys.zeroshot.messages import Message, Picture

pytest.importorskip("openai", reason="the extra llm is not installed")
PROMPT = [
    Message("user", ("History, oldest first:\n1. crimson car\nCandidates:\nA. azure\nB. crimson\nRank",))
]
SCHEMA = {"type": "object", "properties": {"ranking": {"type": "array", "items": {"enum": ["A", "B"]}}}}


def client(url: str, waits: list | None = None, **settings):
    waits = [] if waits is None else waits
    made = {"wait": 0.01, "retries": 2} | settings
    return openai_endpoint.OpenAIEndpoint("m", url, sleep=waits.append, **made)


def test_what_is_sent_and_what_comes_back(monkeypatch):
    monkeypatch.setenv("SECRET", "key-1")
    picture = Picture.of(Image.new("RGB", (30, 30), "red"), 16)
    with stubbed(stub := Stub()) as url:
        asked = client(url, key_variable="SECRET")
        answer = asked.chat([Message("system", ("be brief",)), *PROMPT], SCHEMA)
        asked.chat([Message("user", ("see ", picture, *PROMPT[0].parts))], SCHEMA)
    assert json.loads(answer.text) == {"ranking": ["B", "A"]} and answer.finish == "stop"
    assert (answer.usage.prompt, answer.usage.completion, answer.usage.retries) == (100, 20, 0)
    first, second = stub.bodies
    assert first["response_format"]["json_schema"]["schema"] == SCHEMA
    assert first["messages"][0] == {"role": "system", "content": "be brief"}
    assert second["messages"][0]["content"][1]["image_url"] == {"url": picture.data_uri, "detail": "low"}
    assert "key-1" not in json.dumps(stub.bodies) + json.dumps(dict(asked.sampling))


@pytest.mark.parametrize("fault", ["limit", "down"])
def test_retries_wait_as_the_server_says_or_longer_each_time(fault):
    waits: list[float] = []
    with stubbed(Stub(lambda turn: fault)) as url:
        answer = client(url, waits).chat(PROMPT, SCHEMA)
    assert answer.usage.retries == 1
    assert waits == [0.01] if fault == "limit" else 0.005 <= waits[0] <= 0.015


def test_an_end_to_retries(monkeypatch):
    waits: list[float] = []
    with pytest.raises(ClientError, match="no answer after 3 tries"):
        client("http://127.0.0.1:9/v1", waits).chat(PROMPT)
    assert len(waits) == 2 and waits[1] > waits[0] * 2 / 3


def test_what_no_retry_would_change_is_told_at_once():
    waits: list[float] = []
    with stubbed(stub := Stub()) as url:
        stub.reply = lambda body: (400, {}, {"error": {"message": "no such model"}})
        with pytest.raises(ConfigError, match="the server refuses the request"):
            client(url, waits).chat(PROMPT)
    assert not waits


@pytest.mark.parametrize(
    ("value", "seconds"), [("3", 3.0), ("nonsense", None), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0)]
)
def test_retry_after(value, seconds):
    error = RuntimeError()
    error.response = SimpleNamespace(headers={"retry-after": value})
    assert openai_endpoint._retry_after(error) == seconds


def test_scores_of_labels_from_alternatives_of_the_first_token():
    with stubbed(Stub()) as url:
        scores = client(url).score_choices(PROMPT, ["A", "B", "Z"]).scores
    assert scores[1] > scores[0]
    assert scores[2] == scores[0] - 1.0


def settings(url: str, data, mode: str = "listwise", **client):
    asked = {"kind": "openai", "model": "stub", "base_url": url, "wait": 0.01, "concurrency": 4} | client
    return experiment(data, client=asked, rank={"mode": mode}, budget={"requests": 60})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return planted(tmp_path_factory.mktemp("endpoint") / "data")


def test_a_run_against_a_bad_server_is_complete_and_every_fault_is_counted(data, tmp_path):
    stub = Stub(lambda turn: FAULTS[turn % len(FAULTS)] if turn < 20 else "ok")
    with stubbed(stub) as url:
        result = run(settings(url, data), tmp_path)
    one = result.outcome.contenders["stub"]
    faults, spent = one["faults"], result.outcome.facts["spent"]
    assert result.outcome.facts["queries"] == 24
    given = {name: stub.faults[name] for name in ("garbage", "duplicates", "refusal", "cut", "limit", "down")}
    assert given == dict.fromkeys(given, 2)
    assert faults["refused"] == 2 and faults["duplicate"] == 2 and faults["truncated"] == 2
    assert faults["repaired"] == 2 and faults["invalid"] >= 4  # garbage and cut lists
    assert faults["failed"] == 0 and one["usage"]["retries"] == 4
    assert spent["paid_requests"] == 24 + faults["repaired"] <= 60
    assert headline(result, "stub") > headline(result, "random")
    again = run(settings("http://127.0.0.1:9/v1", data, cache="replay"), tmp_path)
    assert again.outcome.contenders == result.outcome.contenders
    assert again.outcome.facts["spent"]["paid_requests"] == 0


def test_users_whose_question_fails_for_good_are_counted_and_ranked_by_the_tail(data, tmp_path):
    with stubbed(stub := Stub()) as url:
        original = stub.reply

        def reply(body):
            status = original(body)
            return (503, {}, {"error": {}}) if "dragon" in body["messages"][-1]["content"][:200] else status

        stub.reply = reply
        result = run(settings(url, data, retries=1), tmp_path)
    faults = result.outcome.contenders["stub"]["faults"]
    assert 0 < faults["failed"] < 24 and faults["missing"] == 10 * faults["failed"]


def test_scores_over_http_rank_as_the_mock_itself(data, tmp_path):
    with stubbed(Stub()) as url:
        over = run(settings(url, data, "letters"), tmp_path / "a")
    plain = run(experiment(data, rank={"mode": "letters"}), tmp_path / "b")
    assert headline(over, "stub") == headline(plain, "overlap")

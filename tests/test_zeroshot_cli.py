"""`recsys zeroshot` as a user sees it."""

import json

import pytest
from zeroshot_case import planted


@pytest.fixture
def toml(tmp_path):
    planted(tmp_path / "data")
    path = tmp_path / "mine.toml"
    path.write_text(
        f'name = "mine"\nusers = 12\n[data]\nkind = "dataset"\npath = "{tmp_path / "data"}"\n'
        '[split]\nmethod = "leave_last_out"\n[candidates]\nn = 8\n'
        '[client]\nkind = "mock"\nmodel = "overlap"\n[track]\nenabled = false\n'
    )
    return path


def test_a_run_and_its_table(recsys, toml, tmp_path):
    code, printed, _ = recsys("zeroshot", toml, "--out", tmp_path / "out")
    assert code == 0
    assert "overlap" in printed and "popularity" in printed and "random" in printed
    assert "12 users, 8 candidates (random, truth guaranteed)" in printed and "look 1" in printed
    assert (tmp_path / "out" / "mine" / "gallery.html").is_file()
    code, printed, _ = recsys("zeroshot", toml, "--out", tmp_path / "out")
    assert "12 requests, 0 of them now" in printed and "look 1" in printed


def test_a_dry_run_asks_nothing(recsys, toml, tmp_path):
    code, printed, _ = recsys(
        "zeroshot", toml, "--out", tmp_path / "out", "--dry-run", "--set", "rank.mode=listwise",
        "--set", "client.kind=openai", "--set", "client.model=gpt-4o-mini", "--set", "budget.cost=1.5",
    )  # fmt: skip
    assert code == 0
    assert "24" in printed and "budget: cost 1.5" in printed and "USD" in printed
    assert not (tmp_path / "out" / "zeroshot-answers.jsonl").exists()
    assert not (tmp_path / "out" / "mine").exists()


def test_mistakes_are_one_line(refused, toml):
    assert "did you mean 'mode'" in refused("zeroshot", toml, "--set", "rank.mod=letters")
    assert "no experiment 'ml-1'" in refused("zeroshot", "ml-1")


def test_what_is_recorded_holds_no_prompt_and_no_key(recsys, toml, tmp_path):
    recsys("zeroshot", toml, "--out", tmp_path / "out")
    lines = (tmp_path / "out" / "zeroshot-answers.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert len(entries) == 12
    assert set(entries[0]) == {
        "key", "model", "sampling", "tag", "text", "usage", "seconds", "finish", "scores", "at"
    }  # fmt: skip

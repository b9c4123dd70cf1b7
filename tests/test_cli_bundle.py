"""The command line on bundles: damaged ones, wrong ids and widths, odd titles, addresses and stores."""

import json
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from serving_case import content_of

from recsys.bundle_writing import write_bundle
from recsys.splits import SplitConfig, make_split


@pytest.fixture
def bundle(cases) -> Path:
    return cases("fmrlrec").path


# Bundles


@pytest.fixture
def damaged(bundle, tmp_path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


COMMANDS = [
    ("recommend", "copy", "--user", "3"),
    ("recommend", "copy", "--all-users", "--out", "lists.parquet"),
    ("similar", "copy", "--item", "3"),
    ("serve", "copy", "--port", "0"),
    ("evaluate", "copy", "split"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_damaged_bundles(refused, damaged, chain_split, tmp_path, command):
    chain_split.save(tmp_path / "split")
    weights = damaged / "weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "weights.safetensors: the file was changed" in refused(*command)
    weights.unlink()
    assert "weights.safetensors: the file is missing" in refused(*command)
    weights.write_bytes(whole)
    manifest = json.loads((damaged / "manifest.json").read_text())
    (damaged / "manifest.json").write_text(json.dumps(manifest | {"format_version": 99}))
    assert "upgrade recsys" in refused(*command)
    (damaged / "manifest.json").write_text("{")
    assert "manifest.json is damaged" in refused(*command)
    shutil.rmtree(damaged)
    assert "not a bundle" in refused(*command)


def test_a_split_of_something_else(refused, chain, bundle, tmp_path):
    make_split(chain, SplitConfig(method="random", catalogue="listed")).save(tmp_path / "other")
    assert "not the one this was made under" in refused("evaluate", bundle, "other")
    assert "not a split folder" in refused("evaluate", bundle, "absent")


def test_wrong_protocols(refused, chain_split, bundle, tmp_path):
    chain_split.save(tmp_path / "split")
    assert "did you mean 'mask'?" in refused("evaluate", bundle, "split", "--set", "mesk=off")
    assert "no part 'tset'" in refused("evaluate", bundle, "split", "--part", "tset")
    assert "width 7" in refused("evaluate", bundle, "split", "--set", "widths=[7]")


def test_evaluate_writes_a_look_only_at_test(recsys, chain_split, bundle, tmp_path):
    chain_split.save(tmp_path / "split")
    code, out, _ = recsys("evaluate", bundle, "split", "--set", "bootstrap=10")
    assert code == 0 and "valid/ndcg_at_5" in out and not (tmp_path / "runs").exists()
    for _ in range(2):  # the same look twice is one look
        code, out, _ = recsys("evaluate", bundle, "split", "--part", "test", "--set", "bootstrap=10")
        assert code == 0 and "look 1 at this test set" in out
    assert len((tmp_path / "runs" / "ledger.jsonl").read_text().splitlines()) == 1


def test_who_is_it_for(refused, bundle):
    for wrong in (
        (),
        ("--user", "3", "--history", "1,2"),
        ("--user", "3", "--all-users"),
        ("--all-users",),
        ("--user", "3", "--out", "x.parquet"),
    ):
        assert "who is it for?" in refused("recommend", bundle, *wrong)


def test_unknown_user_is_no_mistake(recsys, bundle):
    code, out, err = recsys("recommend", bundle, "--user", 10**9, "-k", 3)
    assert code == 0 and out.count("Item ") == 3
    assert err == "nothing is known of this user: the most popular items\n"


def test_unknown_items_of_a_history_are_named(recsys, bundle):
    code, out, err = recsys("recommend", bundle, "--history", "3, 777,24", "-k", 3)
    assert code == 0 and err == "not in the catalogue: 777\n"
    assert out == recsys("recommend", bundle, "--history", "3,24", "-k", 3)[1]


@pytest.mark.parametrize("wrong", ["abc", "3.0", "", "4_2", "٣", "1e3", "9" * 30])
def test_ids_of_the_wrong_type(refused, bundle, wrong):
    assert "an integer" in refused("recommend", bundle, "--user", wrong)
    assert "an integer" in refused("similar", bundle, "--item", wrong)
    if wrong:
        assert "an integer" in refused("recommend", bundle, "--history", f"3,{wrong}")


def test_text_ids_are_taken_as_they_are(recsys, refused, text_case):
    assert "0031" in recsys("recommend", text_case.path, "--history", "0004", "-k", 40 - 1)[1]
    assert "not in the catalogue: 4" in recsys("recommend", text_case.path, "--history", "4")[2]
    assert "'4' is not in the catalogue" in refused("similar", text_case.path, "--item", "4")


def test_k_and_width(refused, bundle):
    for k in (41, 0, -1):
        assert f"k = {k}" in refused("recommend", bundle, "--user", 3, "-k", k)
        assert f"k = {k}" in refused("recommend", bundle, "--all-users", "--out", "x.parquet", "-k", k)
    assert "k = 40; expected 1 to 39" in refused("similar", bundle, "--item", 3, "-k", 40)
    assert "width 7; expected one of: 8, 16, 32" in refused("recommend", bundle, "--user", 3, "--width", 7)
    assert "not in the catalogue" in refused("similar", bundle, "--item", 999)


def test_lists_of_all_users(recsys, refused, cases, tmp_path):
    case = cases("ease")
    assert recsys("recommend", case.path, "--all-users", "--out", "x.parquet", "-k", 4)[0] == 0
    frame = pl.read_parquet(tmp_path / "x.parquet")
    assert frame.columns == ["user_id", "item_id", "rank", "score"] and len(frame) == 4 * len(case.user_ids)
    assert frame["rank"].to_list()[:4] == [1, 2, 3, 4]
    for to in ("absent/x.parquet", ".", "x.parquet/y"):
        assert "cannot write here" in refused("recommend", case.path, "--all-users", "--out", to)


def test_a_bundle_without_users(refused, cases, chain, tmp_path):
    case = cases("ease")
    content = content_of("ease", case.model, case.split, chain.items)
    write_bundle(tmp_path / "nobody", replace(content, users=None))
    assert "holds no users" in refused("recommend", "nobody", "--all-users", "--out", "x.parquet")


def test_hostile_titles_are_printed_as_they_are(recsys, cases, chain, tmp_path):
    case = cases("ease")
    content = content_of("ease", case.model, case.split, chain.items)
    titles = pl.col("title").str.replace("Item ", "[/red][bold]Item ", literal=True)
    write_bundle(tmp_path / "odd", replace(content, items=content.items.with_columns(titles)))
    for command in (("recommend", "odd", "--user", 3), ("similar", "odd", "--item", 3)):
        code, out, _ = recsys(*command)
        assert code == 0 and "[/red][bold]Item " in out


# Serving and MLflow


def test_addresses_that_cannot_be_had(refused, bundle, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"127.0.0.1:{port}: cannot listen" in refused("serve", bundle, "--port", port)
    assert "no API keys" in refused("serve", bundle, "--host", "256.0.0.1", "--port", 0)
    (tmp_path / "keys").write_text("a key\n")
    public = ("--host", "256.0.0.1", "--keys", tmp_path / "keys", "--port", 0)
    assert "cannot listen" in refused("serve", bundle, *public)


def test_state_files_that_cannot_be_used(refused, bundle, tmp_path):
    assert "--state" in refused("serve", bundle, "--port", 0, "--state", "absent/state.db")
    (tmp_path / "text.db").write_text("this is not a database " * 100)
    assert "not a database" in refused("serve", bundle, "--port", 0, "--state", "text.db")


def test_clock(refused, bundle):
    assert "expected now or data" in refused("serve", bundle, "--clock", "then")


def test_models_of_no_store(refused):
    for command in (
        ("serve", "models:/tiny@champion"),
        ("similar", "models:/tiny@champion", "--item", 3),
        ("recommend", "runs:/123/model", "--user", 3),
        ("promote", "tiny"),
    ):
        assert "no MLflow store here" in refused(*command)
    assert "no MLflow store here" in refused("promote", "tiny", "--tracking-uri", "sqlite:///other.db")

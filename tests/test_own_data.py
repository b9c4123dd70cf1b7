"""A user's own CSV through `recsys run`: text ids with leading zeros, ties, repeats, a user without events.

The figures are worked out again from the file with plain Python and the slow oracle.
"""

import csv
import json
import sys
from collections import Counter

import numpy as np
import oracle
import polars as pl
import pytest

from recsys import cli

K = 3
RECIPE = """
name = "own"

[data]
kind = "table"
interactions = "log.csv"
items = "articles.csv"
users = "people.csv"
columns.interactions = {{ user_id = "customer", item_id = "sku", timestamp = "when" }}
columns.items = {{ item_id = "sku", title = "name" }}
columns.users = {{ user_id = "customer" }}

[split]
method = "leave_last_out"

[models.popularity]

[train.monitor]
metric = "ndcg_at_3"

[evaluate]
ks = [{k}]
mask = "{mask}"
repeat_targets = "{repeat}"
bootstrap = 50

[track]
enabled = false
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """The three files. Times repeat within a user, so that the file's order decides; skus begin with zeros."""
    folder = tmp_path_factory.mktemp("shop")
    rng = np.random.default_rng(5)
    rows = []
    for user in range(40):
        for _ in range(int(rng.integers(2, 12))):
            sku = f"{int(30 * rng.random() ** 2):05d}"
            rows.append((f"{user:03d}", sku, f"2024-03-{int(rng.integers(1, 9)):02d}T12:00:00"))
    rng.shuffle(rows)
    write(folder / "log.csv", ("customer", "sku", "when"), rows)
    write(folder / "articles.csv", ("sku", "name"), [(f"{item:05d}", f"Thing {item}") for item in range(30)])
    write(
        folder / "people.csv", ("customer",), [(f"{user:03d}",) for user in range(41)]
    )  # 040 bought nothing
    return folder


def write(path, header, rows):
    with open(path, "w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([header, *rows])


def histories(shop) -> dict[str, list[str]]:
    """Each user's items in time order, equal times in file order."""
    with open(shop / "log.csv", encoding="utf-8") as log:
        rows = list(csv.DictReader(log))
    found: dict[str, list[str]] = {}
    for row in sorted(rows, key=lambda row: row["when"]):
        found.setdefault(row["customer"], []).append(row["sku"])
    return dict(sorted(found.items()))


def by_hand(shop, mask: str, repeat: str) -> list[dict[str, float]]:
    """Popularity under leave-last-out: all but the last two of a user count, the last is asked for."""
    bought = histories(shop)
    catalogue = sorted({sku for skus in bought.values() for sku in skus})
    asked = [skus for skus in bought.values() if len(skus) >= 3]
    short = [skus for skus in bought.values() if len(skus) < 3]
    counts = Counter(sku for skus in asked for sku in skus[:-2]) + Counter(
        sku for skus in short for sku in skus
    )
    scores = [[float(counts[sku]) for sku in catalogue]] * len(asked)
    seen = [[catalogue.index(sku) for sku in skus[:-1]] for skus in asked]
    wanted = [[catalogue.index(skus[-1])] for skus in asked]
    return oracle.evaluate(scores, seen, wanted, mask=mask == "history", repeat=repeat, k=K)


@pytest.mark.parametrize(("mask", "repeat"), [("history", "keep"), ("history", "miss"), ("off", "keep")])
def test_the_run_agrees_with_plain_python(shop, monkeypatch, capsys, mask, repeat):
    (shop / "own.toml").write_text(RECIPE.format(k=K, mask=mask, repeat=repeat), encoding="utf-8")
    monkeypatch.chdir(shop)
    monkeypatch.setattr(sys, "argv", ["recsys", "run", "own.toml"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    expected = by_hand(shop, mask, repeat)
    report = json.loads((shop / "runs/own/report/report.json").read_text())
    values = report["models"]["popularity"]["values"]
    for metric in ("ndcg", "hr", "recall", "mrr", "map"):
        mean = float(np.mean([query[metric] for query in expected]))
        assert values[f"test/{metric}_at_{K}"]["value"] == pytest.approx(mean), metric
        assert values[f"test/{metric}_at_{K}"]["n"] == len(expected)
    repeated = sum(skus[-1] in skus[:-1] for skus in histories(shop).values() if len(skus) >= 3)
    assert repeated > 0
    assert report["models"]["popularity"]["facts"]["targets_repeated"] == repeated


def test_ids_come_out_as_they_went_in(shop, monkeypatch, capsys):
    (shop / "own.toml").write_text(RECIPE.format(k=K, mask="history", repeat="keep"), encoding="utf-8")
    monkeypatch.chdir(shop)
    bought = histories(shop)
    user = next(user for user, skus in bought.items() if len(set(skus)) >= 3)
    for command in (
        ["run", "own.toml"],
        ["recommend", "runs/own/bundle", "--user", user, "-k", "5"],
        ["recommend", "runs/own/bundle", "--user", "040", "-k", "5"],
    ):
        monkeypatch.setattr(sys, "argv", ["recsys", *command])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0, command
        printed = capsys.readouterr().out
        if command[0] == "recommend":
            listed = [line.split("│")[2].strip() for line in printed.splitlines() if line.startswith("│")]
            assert len(listed) == 5 and all(len(sku) == 5 for sku in listed)
            # 040 has an account but no event: nothing is masked, and the most popular come first
            assert not set(listed) & set(bought.get(command[3], ()))
    items = pl.read_parquet(shop / "runs/own/bundle/items.parquet")
    assert items["item_id"].dtype == pl.String and items["item_id"].str.len_chars().unique().to_list() == [5]

"""Stands in for RecBole's Python: called as `PYTHON driver.py WHAT ARGUMENT`, it ranks by popularity in the train file,
and knows the models Pop and SeqPop. Reads what the driver reads, writes what it writes."""

import csv
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np


def rows(path):
    with open(path, newline="") as handle:
        return list(csv.DictReader(handle, delimiter="\t", quoting=csv.QUOTE_NONE))


def fit(job):
    folder, out = Path(job["folder"]), Path(job["out"])
    files = {part: rows(folder / f"{folder.name}.{part}.inter") for part in ("train", "valid", "test")}
    assert set(files["train"][0]) == {
        f"{name}:{kind}" for name, kind in KINDS.items() if name in job["columns"]
    }
    counts = Counter(int(row["item_id:token"][1:]) for row in files["train"])
    items = [int(row["item_id:token"][1:]) for row in rows(folder / f"{folder.name}.item")]
    order = sorted(items, key=lambda item: (-counts[item], item))
    seen, users, lists = np.load(job["seen"]), [], []
    for row in files["test"]:
        user = int(row["user_id:token"][1:])
        hidden = set(seen["items"][seen["starts"][user] : seen["starts"][user + 1]].tolist())
        users.append(user)
        lists.append([item for item in order if item not in hidden][: job["depth"]])
    print("epoch 1: validation 0.1", flush=True)
    if job["settings"].get("fail"):
        raise SystemExit("no such thing")
    np.savez(out / "lists.npz", users=np.array(users), lists=np.array(lists))
    result = {"metrics": {"ndcg@5": 0.25}, "valid": 0.1, "seconds": 2.0, "parameters": 7, "settings": {}}
    (out / "result.json").write_text(json.dumps(result))


KINDS = {"user_id": "token", "item_id": "token", "timestamp": "float", "item_id_list": "token_seq"}

if __name__ == "__main__":
    _, _, what, argument = sys.argv
    if what == "describe":
        known = argument in ("Pop", "SeqPop")
        print(json.dumps({"known": known, "sequential": argument == "SeqPop"} if known else {"known": False}))
    else:
        fit(json.loads(Path(argument).read_text()))

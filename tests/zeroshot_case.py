"""A planted world for zero-shot ranking: groups whose titles share words, a few items taken far more than others."""

from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image

from recsys.dataset import Dataset
from recsys.zeroshot.clients.mock import Mock, oracle_taste
from recsys.zeroshot.config import Experiment
from recsys.zeroshot.lab import Lab
from recsys.zeroshot.run import run_experiment

RECORD = Path(__file__).parent / "zeroshot_record.jsonl"
"""Answers of SmolLM2-135M; its figures lie beside it. Made by test_zeroshot_local.py."""
GROUPS, SIZE = 4, 15
WORDS = ("dragon castle", "rocket planet", "wedding letter", "murder detective")


def planted(path: Path, *, users: int = 60, pictures: bool = False, seed: int = 0) -> Path:
    """A user takes items of one group, the first of the group most; the test item is one of these too."""
    rng = np.random.default_rng(seed)
    weights = 1 / np.arange(1, SIZE + 1) ** 1.5
    rows = []
    for user in range(users):
        own = rng.choice(SIZE, 7, replace=False, p=weights / weights.sum())
        own = rng.permutation(own) + SIZE * (user % GROUPS)
        rows += [(user, int(item), 1000 * user + step) for step, item in enumerate(own)]
    items = {
        "item_id": range(GROUPS * SIZE),
        "title": [f"{WORDS[item // SIZE]} {item}" for item in range(GROUPS * SIZE)],
        "category": [[f"group {item // SIZE}"] for item in range(GROUPS * SIZE)],
        "text": [f"about {WORDS[item // SIZE]} and more" for item in range(GROUPS * SIZE)],
    }
    root = path.with_suffix(".media")
    if pictures:
        root.mkdir()
        for item in range(GROUPS * SIZE):
            colour = (60 * (item // SIZE), 4 * item, 90)
            Image.new("RGB", (60, 90), colour).save(root / f"{item}.png")
        items["image_path"] = [f"{item}.png" if item else None for item in range(GROUPS * SIZE)]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    Dataset.from_frames(
        path, frame, pl.DataFrame(items), name="planted", media_root=root if pictures else None
    )
    return path


def experiment(data: Path, **tables) -> Experiment:
    """A small experiment with the mock that likes shared words; tables in place of these."""
    values = {
        "name": "planted",
        "users": 24,
        "data": {"kind": "dataset", "path": str(data)},
        "split": {"method": "leave_last_out"},
        "candidates": {"n": 10},
        "client": {"kind": "mock", "model": "overlap"},
        "prompt": {"domain": "movies", "length": 5},
        "evaluate": {"ks": [10, 1, 5], "bootstrap": 50},
        "track": {"enabled": False},
    }
    return Experiment.model_validate(values | tables)


def recorded(data: Path, **client) -> Experiment:
    """What the shipped record holds the answers to: SmolLM2-135M in three modes."""
    model = {"kind": "local_text", "model": "smollm2-135m", "max_tokens": 40, "concurrency": 1}
    return experiment(
        data,
        users=6,
        candidates={"n": 6},
        client=model | client,
        variants={
            "letters": {"rank": {"mode": "letters", "calibrate": True}},
            "list": {"rank": {"mode": "listwise"}},
            "point": {"rank": {"mode": "pointwise"}},
        },
        evaluate={"ks": [5, 1], "bootstrap": 50},
    )


def oracle(config: Experiment, root: Path) -> Mock:
    """A client that knows what every user of the experiment's part took."""
    lab = Lab.open(config, root)
    asked, titles = lab.asked(config.part, config.users), lab.plain_shelf.titles
    answers: dict[tuple[str, ...], set[str]] = {}
    for row, case in enumerate(lab.cases(asked, config.prompt)):
        shown = tuple(titles[item] for item in case.history[-config.prompt.length :])
        answers.setdefault(shown, set()).update(titles[item] for item in asked.queries.targets[row])
    return Mock(oracle_taste(answers), "oracle")


def run(config: Experiment, root: Path, client: Mock | None = None):
    return run_experiment(config, root, client)


def headline(result, name: str) -> float:
    return result.outcome.contenders[name]["values"][result.outcome.headline]["value"]

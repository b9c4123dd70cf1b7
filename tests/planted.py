"""Datasets with a known right answer: co-occurrence, order, content, attributes."""

from pathlib import Path

import numpy as np
import polars as pl

from recsys.dataset import Dataset


def order(path: Path, *, users: int = 150, items: int = 40, noise: float = 0.15, seed: int = 0) -> Dataset:
    """Item x is followed by (7 x + 3) mod items, but for a share of noise; popularity is flat."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        item = int(rng.integers(items))
        for step in range(int(rng.integers(6, 16))):
            rows.append((user, item, 1000 * user + step))
            item = int(rng.integers(items)) if rng.random() < noise else (7 * item + 3) % items
    return _write(path, rows, _items(items, lambda item: f"Item {item}"))


def co_occurrence(path: Path, *, users: int = 150, groups: int = 4, size: int = 10, seed: int = 0) -> Dataset:
    """Every user likes the items of one group only; within it, order means nothing."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        own = rng.permutation(size)[: int(rng.integers(5, 8))] + size * (user % groups)
        rows += [(user, int(item), 1000 * user + step) for step, item in enumerate(own)]
    return _write(path, rows, _items(groups * size, lambda item: f"Item {item}"))


def content(path: Path, *, users: int = 150, groups: int = 4, size: int = 12, seed: int = 0) -> Dataset:
    """As co-occurrence, and an item's text names its group; the last two items of each group occur only late, so that a
    global-time split leaves them cold."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        group = user % groups
        early = rng.permutation(size - 2)[:5] + size * group
        rows += [(user, int(item), 100 * user + step) for step, item in enumerate(early)]
        late = size * group + size - 2 + user % 2
        rows.append((user, int(late), 1_000_000 + user))
    words = ("dragon castle sword", "rocket planet star", "kiss wedding love", "murder clue police")
    return _write(
        path, rows, _items(groups * size, lambda item: f"{words[item // size]} {item}", groups, size)
    )


def _items(count: int, title, groups: int = 4, size: int | None = None) -> pl.DataFrame:
    size = size or -(-count // groups)
    return pl.DataFrame(
        {
            "item_id": range(count),
            "title": [title(item) for item in range(count)],
            "category": [[f"group {item // size}"] for item in range(count)],
        }
    )


def _write(path: Path, rows: list[tuple[int, int, int]], items: pl.DataFrame) -> Dataset:
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    return Dataset.from_frames(path, frame, items, name=path.name)

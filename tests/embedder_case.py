"""A small Dataset with gaps, and recipes of every embedder on it."""

from pathlib import Path

import numpy as np
import polars as pl
from notellm2_case import folder as llama

import recsys as package
from recsys.config import parse
from recsys.embedder_recipe import EmbedderRecipe

IMAGE = {"kind": "hash_file:HashFile", "width": 6}
TEXT = {"kind": "hash_text:HashText", "width": 7}
SPLIT = {"method": "leave_last_out", "catalogue": "listed"}
SMALL = {"widths": [4, 8], "batch_size": 8}
CONFIGS = {
    "notellm2": SMALL | {"tune": "last", "last_layers": 1, "visual_tokens": 2},
    "neighbours": SMALL | {"heads": 2, "fanout": 3, "whiten": 5},
    "frozen_head": SMALL | {"hidden": [16]},
}


def recipe(model: str, **changes) -> EmbedderRecipe:
    """Two epochs. config: further settings of the model."""
    config = CONFIGS[model] | changes.pop("config", {})
    values = {"model": model, "tables": {"image": IMAGE}, "config": config, "train": {"epochs": 2}}
    if model == "notellm2":
        values |= {"language": str(llama()), "template": "{title}"}
    else:
        values["tables"] = {"image": IMAGE, "text": TEXT}
    return parse(EmbedderRecipe, values | changes, where="test")


def dataset_at(folder: Path) -> package.Dataset:
    """24 items: 3 without a text, 4 without a picture, one of them without either."""
    (folder / "media").mkdir()
    for number in range(20):
        (folder / "media" / f"{number}.jpg").write_bytes(bytes([number]))
    ids = [f"i{number:02}" for number in range(24)]
    items = pl.DataFrame(
        {
            "item_id": ids,
            "title": [None if n in (1, 2, 23) else f"w{n} w{n % 5}" for n in range(24)],
            "image_path": [f"{n}.jpg" if n < 20 else None for n in range(24)],
        }
    )
    rng = np.random.default_rng(0)
    rows = [(u, ids[int(i)], 100 * u + s) for u in range(12) for s, i in enumerate(rng.permutation(24)[:7])]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    pairs = pl.DataFrame({"item_id": ids, "other_id": ids[5:] + ids[:5], "kind": ["also_bought"] * 24})
    return package.Dataset.from_frames(
        folder / "data", frame, items, pairs=pairs, media_root=folder / "media"
    )


def unseen_at(folder: Path, like: package.Dataset) -> package.Dataset:
    """Items that no run has seen: words and pictures in other company; one lacks its text, one its picture, one
    both."""
    items = pl.DataFrame(
        {
            "item_id": [f"n{number}" for number in range(6)],
            "title": ["w3 w9", "w14 w2", None, "w7", "w20 w1", None],
            "image_path": ["4.jpg", "11.jpg", "2.jpg", None, "17.jpg", None],
        }
    )
    pairs = pl.DataFrame({"item_id": ["n0"], "other_id": ["n1"]})
    return package.Dataset.from_frames(folder, items=items, pairs=pairs, media_root=like.media_root)

"""Bundles that benchmarks/serve.py times: fMRLRec of width 128 with two blocks, random weights, planted users.

The cost of a request depends on sizes alone: items, widths, lengths of histories. Item vectors lie around centres,
so that an approximate index finds them neither easier nor harder than learnt ones.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import torch

from recsys import schema
from recsys.bundle import Bundle
from recsys.bundle_writing import BundleContent, user_histories, write_bundle
from recsys.models.base import FitContext
from recsys.models.fmrlrec import FMRLRec, FMRLRecConfig
from recsys.schema import Form, Log

ITEMS, USERS, MEAN_HISTORY = 3_706, 6_040, 100
"""Those of MovieLens 1M, but for the histories, which are cut to the newest events there too."""
LONGEST_HISTORY = 200
LAST_EVENT = 1_700_000_000
CENTRES = 1_000
GENRES = ("Action", "Comedy", "Crime", "Drama", "Fantasy", "Horror", "Musical", "Romance", "War", "Western")


def planted_log(items: int, users: int, rng: np.random.Generator) -> Log:
    """Histories of about MEAN_HISTORY different moments; the item at popularity rank r is drawn as 1 / (r + 10)."""
    lengths_U = np.clip(rng.lognormal(np.log(MEAN_HISTORY), 0.5, users), 20, LONGEST_HISTORY).astype(np.int64)
    ends_U = np.cumsum(lengths_U)
    weights_I = 1 / (np.arange(items) + 10.0)
    item_N = rng.choice(items, ends_U[-1], p=weights_I / weights_I.sum())
    starts_N = np.repeat(ends_U - lengths_U, lengths_U)
    time_N = LAST_EVENT - 3600 * (np.repeat(ends_U, lengths_U) - np.arange(ends_U[-1]) - 1)
    user_N = np.searchsorted(ends_U, starts_N, side="right")
    ones_N = np.ones(len(item_N), np.float32)
    return Log(user_N, item_N, time_N, ones_N, np.concatenate([[0], ends_U]), items)


def clustered(items: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """[I, D] float32 around CENTRES centres, a million at a time in a gigabyte."""
    centres = rng.standard_normal((CENTRES, width), np.float32)
    vectors_ID = 0.5 * rng.standard_normal((items, width), np.float32)
    vectors_ID += centres[rng.integers(CENTRES, size=items)]
    return 0.1 * vectors_ID


def synthetic_form(log: Log, rng: np.random.Generator) -> Form:
    """The program as `recsys run` would write it. Its network is made over few items, then gets all of them."""
    torch.manual_seed(0)
    few = Log(*(np.zeros(1, np.int64),) * 3, np.ones(1, np.float32), np.array([0, 1]), 1)
    model = FMRLRec(FMRLRecConfig(widths=(16, 32, 64, 128), blocks=2))
    model.setup(FitContext(few))
    form = model.serving_form()
    vectors_ID = clustered(log.num_items, form.widths[-1], rng)
    bias_I = 0.1 * rng.standard_normal(log.num_items).astype(np.float32)
    return replace(form, item_vectors_ID=vectors_ID, item_bias_I=bias_I)


def write(folder: Path, items: int = ITEMS, users: int = USERS, seed: int = 0) -> Bundle:
    """A bundle of so many items and users."""
    rng = np.random.default_rng(seed)
    log = planted_log(items, users, rng)
    item_ids = pl.int_range(1, items + 1, eager=True)
    frame = pl.DataFrame({schema.ITEM: item_ids}).with_columns(
        (pl.lit("Title of item ") + pl.col(schema.ITEM).cast(pl.String)).alias(schema.TITLE),
        pl.concat_list(pl.Series([GENRES[genre] for genre in rng.integers(len(GENRES), size=items)])).alias(
            schema.CATEGORY
        ),
    )
    content = BundleContent(
        model="fmrlrec",
        form=synthetic_form(log, rng),
        items=frame,
        item_counts_I=log.item_counts(),
        users=user_histories(log, pl.int_range(1, users + 1, eager=True), LONGEST_HISTORY),
        id_type={"user": "int", "item": "int"},
        split_id="synthetic",
        last_event=LAST_EVENT,
        recipe={"name": "synthetic"},
        fingerprints={"dataset": "synthetic", "split": "synthetic", "features": {}},
        flags={"uses_history": True},
        source="synthetic",
        licence="CC0",
    )
    return write_bundle(folder, content)

"""Bundles that benchmarks/serve.py times: fMRLRec of width 128 with two blocks, random weights, planted users; a ranker
of the default size over it, item neighbours, content and popularity, learnt from noise.

The cost of a request depends on sizes alone: items, widths, lengths of histories. Item vectors lie around centres,
so that an approximate index finds them neither easier nor harder than learnt ones.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from recsys import schema
from recsys.bundle import Bundle
from recsys.bundle_writing import BundleContent, user_histories, write_bundle
from recsys.item_encoding import unit
from recsys.models.base import FitContext
from recsys.models.baselines.content_knn import ContentKNN, ContentKNNConfig
from recsys.models.baselines.itemknn import ItemKNN, ItemKNNConfig
from recsys.models.baselines.popularity import Popularity as PopularityModel
from recsys.models.baselines.popularity import PopularityConfig
from recsys.models.fmrlrec import FMRLRec, FMRLRecConfig
from recsys.models.ranker import fit_ranker
from recsys.popularity import Popularity
from recsys.ranker_config import RankerConfig
from recsys.ranking_features import Items, feature_names
from recsys.schema import Dense, Form, Log, Ragged
from recsys.two_stage import Ranker

ITEMS, USERS, MEAN_HISTORY = 3_706, 6_040, 100
"""Those of MovieLens 1M, but for the histories, which are cut to the newest events there too."""
LONGEST_HISTORY = 200
LAST_EVENT = 1_700_000_000
CENTRES = 1_000
TABLE_WIDTH = 32
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


def second_stage(log: Log, form: Form, genres: Ragged, rng: np.random.Generator) -> dict[str, Any]:
    """Ranker and generators as `BundleContent` takes them."""
    values_ID = rng.standard_normal((log.num_items, TABLE_WIDTH)).astype(np.float32)
    tables = {("item", "text"): Dense(values_ID, np.ones(log.num_items, bool))}
    others = {
        "itemknn": ItemKNN(ItemKNNConfig()),
        "content_knn": ContentKNN(ContentKNNConfig(dims=TABLE_WIDTH)),
        "popularity": PopularityModel(PopularityConfig(window_days=30.0)),
    }
    for model in others.values():
        model.fit(FitContext(log, tables))
    config = RankerConfig(generators=("fmrlrec", *others), tables=("text",))
    names = feature_names(config.generators, config.tables)
    features_NF = rng.standard_normal((200 * 100, len(names))).astype(np.float32)
    labels_N = rng.random(len(features_NF)) < 0.1
    trees = fit_ranker(config, features_NF, labels_N, np.full(200, 100), names)
    content = {"text": unit(values_ID)}
    known = Items(content, {"text": tables["item", "text"].present_E}, genres, len(GENRES))
    maps = {"text": (np.zeros(TABLE_WIDTH, np.float32), np.eye(TABLE_WIDTH, dtype=np.float32))}
    generators = {"fmrlrec": ("fmrlrec", form)}
    generators |= {name: (name, model.serving_form()) for name, model in others.items()}
    ranker = Ranker(config.generators, config.per_generator, trees, known, maps, GENRES, {"shipped": True})
    facts = {"text": {"entity": "item", "settings": {"kind": "text"}, "width": TABLE_WIDTH, "fields": None}}
    return {"ranker": ranker, "generators": generators, "content": facts}


def write(
    folder: Path, items: int = ITEMS, users: int = USERS, seed: int = 0, *, ranker: bool = True
) -> Bundle:
    """A bundle of so many items and users."""
    rng = np.random.default_rng(seed)
    log = planted_log(items, users, rng)
    item_ids = pl.int_range(1, items + 1, eager=True)
    codes_I = rng.integers(len(GENRES), size=items)
    frame = pl.DataFrame({schema.ITEM: item_ids}).with_columns(
        (pl.lit("Title of item ") + pl.col(schema.ITEM).cast(pl.String)).alias(schema.TITLE),
        pl.Series(schema.CATEGORY, [[GENRES[code]] for code in codes_I.tolist()]),
    )
    form = synthetic_form(log, rng)
    genres = Ragged.from_lengths(codes_I, np.ones(items, np.int64))
    more = second_stage(log, form, genres, rng) if ranker else {}
    content = BundleContent(
        model="fmrlrec",
        form=form,
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
        popularity=Popularity.of_log(log),
        **more,
    )
    return write_bundle(folder, content)

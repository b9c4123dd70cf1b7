"""A bundle with a second stage on planted data: text of four groups, a sequence model, item KNN, content kNN, trees."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from hash_text import HashText, HashTextConfig

from recsys import schema
from recsys.bundle import Bundle
from recsys.bundle_writing import BundleContent, user_histories, write_bundle
from recsys.dataset import Dataset
from recsys.features.extract import extract
from recsys.models.base import FitContext, Model
from recsys.models.baselines.content_knn import ContentKNN, ContentKNNConfig
from recsys.models.baselines.itemknn import ItemKNN, ItemKNNConfig
from recsys.models.fmrlrec import FMRLRec, FMRLRecConfig
from recsys.popularity import DAY, Popularity
from recsys.ranker_config import RankerConfig
from recsys.ranking import learnt
from recsys.schema import Dense
from recsys.splits import Split, SplitConfig, make_split
from recsys.train import fit
from recsys.train_config import TrainConfig
from recsys.two_stage import Ranker

GROUPS, SIZE, USERS = 4, 12, 60
WORDS = ("dragon castle sword", "rocket planet star", "kiss wedding love", "murder clue police")
FEATURES = {"kind": "hash_text:HashText"}


@dataclass(frozen=True)
class TwoStageCase:
    """The models by generator's name, and all that was made of them."""

    dataset: Dataset
    split: Split
    models: dict[str, Model]
    table: Dense
    ranker: Ranker
    path: Path

    @property
    def bundle(self) -> Bundle:
        return Bundle.open(self.path)


def planted_days(folder: Path) -> Dataset:
    """Users of four tastes over 120 days; within a taste what is in fashion changes every twelve days."""
    rng = np.random.default_rng(2)
    rows = []
    for day in range(120):
        for user in rng.choice(USERS, 20, replace=False).tolist():
            taste = user % GROUPS
            hot = np.random.default_rng([day // 12, taste]).permutation(SIZE)[:3]
            item = SIZE * taste + int(rng.choice(hot) if rng.random() < 0.8 else rng.integers(SIZE))
            rows.append((user, item, day * DAY + int(rng.integers(DAY))))
    interactions = pl.DataFrame(rows, [schema.USER, schema.ITEM, schema.TIME], orient="row")
    items = pl.DataFrame(
        {
            schema.ITEM: range(GROUPS * SIZE),
            schema.TITLE: [f"{WORDS[item // SIZE]} {item}" for item in range(GROUPS * SIZE)],
            schema.CATEGORY: [[f"group {item // SIZE}"] for item in range(GROUPS * SIZE)],
        }
    )
    return Dataset.from_frames(folder, interactions, items)


def make_two_stage(folder: Path) -> TwoStageCase:
    dataset = planted_days(folder / "data")
    split = make_split(dataset, SplitConfig(method="staged", queries="event", catalogue="listed"))
    found, _ = extract(dataset, HashText(HashTextConfig()), "text", folder / "store", progress=False)
    table = found.align(split.item_ids)
    context = FitContext(split.fit_log(), {("item", "text"): table})
    models: dict[str, Model] = {
        "fmrlrec": FMRLRec(FMRLRecConfig(tables=("text",), widths=(8, 16), dropout=0.0, batch_size=16)),
        "itemknn": ItemKNN(ItemKNNConfig(neighbours=12)),
        "content_knn": ContentKNN(ContentKNNConfig(tables=("text",))),
    }
    for model in models.values():
        fit(model, context, TrainConfig(epochs=4, lr=1e-2))
    config = RankerConfig(
        generators=tuple(models), per_generator=12, tables=("text",), dims=8, min_leaf=10, trees=30
    )
    ranker = learnt(config, models, split, dataset, {"text": table})
    write_bundle(folder / "bundle", content_of(dataset, split, models, table, ranker))
    return TwoStageCase(dataset, split, models, table, ranker, folder / "bundle")


def content_of(
    dataset: Dataset, split: Split, models: dict[str, Model], table: Dense, ranker: Ranker | None
) -> BundleContent:
    form = models["fmrlrec"].serving_form()
    history = split.fit_log(("train", "ranker", "valid"))
    forms = {
        name: (name, form if name == "fmrlrec" else model.serving_form()) for name, model in models.items()
    }
    return BundleContent(
        model="fmrlrec",
        form=form,
        items=dataset.items.sort(schema.ITEM),
        item_counts_I=split.fit_log().item_counts(),
        users=user_histories(history, split.user_ids, 200),
        id_type={"user": "int", "item": "int"},
        split_id=split.id,
        last_event=int(history.time_N.max()),
        popularity=Popularity.of_log(history),
        content={"text": {"settings": FEATURES, "width": table.width, "fields": None}},
        ranker=ranker,
        generators={} if ranker is None else forms,
    )

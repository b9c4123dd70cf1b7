"""Small fitted models on planted data, their bundles, and requests with the answers the models give offline."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recsys import schema
from recsys.bundle import Bundle
from recsys.bundle_writing import BundleContent, user_histories, write_bundle
from recsys.models.base import FitContext, Model
from recsys.models.baselines.ease import EASE, EASEConfig
from recsys.models.baselines.itemknn import ItemKNN, ItemKNNConfig
from recsys.models.baselines.popularity import Popularity, PopularityConfig
from recsys.models.fmrlrec import FMRLRec, FMRLRecConfig
from recsys.schema import Queries
from recsys.splits import Split
from recsys.train import fit
from recsys.train_config import TrainConfig

WIDTHS = (8, 16, 32)
WINDOW = 6
"""Shorter than most histories, so that serving reads further back than a training row does."""


@dataclass(frozen=True)
class Case:
    """A fitted model, the split it was fitted on, and the bundle made of it."""

    name: str
    model: Model
    split: Split
    path: Path

    @property
    def bundle(self) -> Bundle:
        return Bundle.open(self.path)

    @property
    def item_ids(self) -> list:
        return self.split.item_ids.to_list()

    @property
    def user_ids(self) -> list:
        return self.split.user_ids.to_list()

    def history(self, user: int) -> list[int]:
        """Item indices of a user's train and valid rows, oldest first."""
        return self.split.fit_log(("train", "valid")).sequences[user].tolist()


def fitted(name: str, split: Split) -> Model:
    """A model fitted on the train part in a second or two."""
    ctx = FitContext(split.fit_log())
    if name == "fmrlrec":
        model: Model = FMRLRec(FMRLRecConfig(widths=WIDTHS, window=WINDOW, batch_size=16, dropout=0.0))
    elif name == "ease":
        model = EASE(EASEConfig(regularisation=5.0))
    elif name == "itemknn":
        model = ItemKNN(ItemKNNConfig(neighbours=12))
    else:
        model = Popularity(PopularityConfig())
    fit(model, ctx, TrainConfig(epochs=12, lr=1e-2))
    return model


def content_of(name: str, model: Model, split: Split, items: pl.DataFrame, keep: int = 200) -> BundleContent:
    """What `recsys run` would put into the bundle."""
    history = split.fit_log(("train", "valid"))
    flags = ("uses_history", "uses_user_fields", "uses_context", "scores_cold_items", "scores_cold_users")
    return BundleContent(
        model=name,
        form=model.serving_form(),
        items=split.item_ids.to_frame(schema.ITEM).join(
            items, on=schema.ITEM, how="left", maintain_order="left"
        ),
        item_counts_I=split.fit_log().item_counts(),
        users=user_histories(history, split.user_ids, keep),
        id_type={
            "user": "str" if split.user_ids.dtype == pl.String else "int",
            "item": "str" if split.item_ids.dtype == pl.String else "int",
        },
        split_id=split.id,
        last_event=int(history.time_N.max()),
        recipe={"name": "planted", "evaluate": {"ks": [5]}},
        fingerprints={"dataset": split.dataset_fingerprint, "split": split.id, "features": {}},
        flags={flag: bool(getattr(model, flag)) for flag in flags},
        source="planted",
        licence="CC0",
        licence_text="Do as you like.",
        reports={"fit": {"seconds": 1.0}},
    )


def make_case(name: str, split: Split, items: pl.DataFrame, path: Path) -> Case:
    model = fitted(name, split)
    write_bundle(path, content_of(name, model, split, items))
    return Case(name, model, split, path)


def with_text_ids(split: Split) -> Split:
    """The same split under ids that are text: user 7 is "u7", item 7 is "0007"."""
    users = pl.Series(schema.USER, [f"u{user}" for user in split.user_ids.to_list()])
    items = pl.Series(schema.ITEM, [f"{item:04d}" for item in split.item_ids.to_list()])
    return replace(split, user_ids=users, item_ids=items)


def requests(case: Case, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Mixed requests, each with the offline scores of the items that may come back.

    Every entry: path, body, scores (pairs of item id and score), fallback. Kinds take turns: known user, given
    history (empty, short, longer than the training window), candidates or the catalogue, every width.
    """
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        body: dict[str, Any] = {"request_id": f"r{number}"}
        if number % 3 == 0:
            user = int(rng.integers(len(case.user_ids)))
            body["user_id"] = case.user_ids[user]
            history = case.history(user)
        else:
            length = (0, 2, 5, 3 * WINDOW, 8 * WINDOW)[number % 5]
            history = rng.integers(len(case.item_ids), size=length).tolist()
            body["history"] = [case.item_ids[item] for item in history]
        width = (None, *case.model.widths)[number % (1 + len(case.model.widths))]
        if width is not None:
            body["width"] = width
        scores_I, fallback = offline(case, history, width)
        if number % 2:
            allowed = rng.permutation(len(case.item_ids))[:15].tolist()
            body["candidates"] = [case.item_ids[item] for item in allowed]
            path = "/v1/rank"
        else:
            body |= {"k": 7, "exclude_seen": number % 4 == 0}
            seen = set(history) if body["exclude_seen"] else set()
            allowed = [item for item in range(len(case.item_ids)) if item not in seen]
            path = "/v1/recommend"
        pairs = [(case.item_ids[item], float(scores_I[item])) for item in allowed]
        made.append({"path": path, "body": body, "scores": pairs, "fallback": fallback})
    return made


def offline(case: Case, history: list[int], width: int | None) -> tuple[np.ndarray, str | None]:
    """The model's own scores of the catalogue; the counts where a model of histories is given none."""
    if not history and case.model.uses_history:
        return case.split.fit_log().item_counts().astype(np.float32), "popular"
    return case.model.score(Queries.of([history]), None, width)[0], None

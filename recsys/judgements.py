"""What a prompted model thought of items, as features of the ranker, so that serving needs no such model.

`recsys zeroshot` leaves NAME.parquet (what was said to whom) and NAME.items.parquet (what is thought of an item whoever
asks, without the users of each fold). A user's own answers never are in a feature that learns from its choices.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from recsys import schema
from recsys.errors import DataError, SplitError
from recsys.files import digest, file_sha256
from recsys.splits import Split

_PART = "ranker"


@dataclass(frozen=True)
class Judgements:
    """values_FI2: of every fold, and last of all users: [F + 1, I, 2], columns as `recsys.ranking_features.JUDGED`; an
    item that nobody was asked about has NaN and 0. fold_U: of every user of the split, -1 = was not asked."""

    values_FI2: np.ndarray
    fold_U: np.ndarray

    def of(self, user: int) -> np.ndarray:
        """[I, 2] without what was said to the user; -1 = of everybody, for serving."""
        return self.values_FI2[self.fold_U[user] if user >= 0 else -1]

    @classmethod
    def open(cls, path: Path, split: Split) -> "Judgements":
        """path: NAME.parquet. Raises SplitError for judgements of another split, or of a part that comes after what the
        ranker learns from; DataError for a folder that `recsys zeroshot` did not write, or whose candidates hold what
        was taken by design."""
        facts = _facts(path)
        split.check_id(facts["split_id"])
        if facts["part"] != _PART:
            raise SplitError(
                f"judgements of the part {facts['part']!r}", where=path, expected=f"part {_PART!r}",
                fix=f'run the experiment with part = "{_PART}": other parts know what comes later',
            )  # fmt: skip
        if facts["candidates"]["target_guaranteed"]:
            raise DataError(
                "what was taken was put among the candidates",
                where=path, expected="candidates.guaranteed = false",
                fix="make the experiment again: which items were asked about would tell the ranker what was taken",
            )  # fmt: skip
        said, thought = pl.read_parquet(path), pl.read_parquet(_items(path))
        folds = int(thought["fold"].max()) + 1
        place_of = {item: index for index, item in enumerate(split.item_ids.to_list())}
        values_FI2 = np.zeros((folds + 1, split.num_items, 2), np.float32)
        values_FI2[..., 0] = np.nan
        rows = np.array([place_of[item] for item in thought[schema.ITEM].to_list()], np.int64)
        columns = thought["mean_place"].to_numpy(), np.log1p(thought["judged"].to_numpy())
        values_FI2[thought["fold"].to_numpy(), rows] = np.stack(columns, axis=1)  # fold -1 is the last
        fold_U = np.full(split.num_users, -1)
        asked = dict(said.select(schema.USER, "query_id").unique().iter_rows())
        for row, user in enumerate(split.user_ids.to_list()):
            if user in asked:
                fold_U[row] = asked[user] % folds
        return cls(values_FI2, fold_U)


def fingerprint(path: Path) -> str:
    """Of both tables and of what the experiment was. Raises DataError where one is missing."""
    _facts(path)
    return digest([file_sha256(one) for one in (path, _items(path))])


def _items(path: Path) -> Path:
    return path.with_name(f"{path.stem}.items.parquet")


def _facts(path: Path) -> dict:
    outcome = path.parent.parent / "zeroshot.json"
    for needed in (path, _items(path), outcome):
        if not needed.is_file():
            raise DataError(
                "no judgements of a prompted model", where=needed, expected="FOLDER/judgements/NAME.parquet",
                fix='make them: recsys zeroshot, with part = "ranker", candidates.guaranteed = false, the same split',
            )  # fmt: skip
    return json.loads(outcome.read_text(encoding="utf-8"))["facts"]

"""Splits: which interactions a model may learn from, and which questions it is asked.

A Split is a value with an id (hash of method, arguments, positives and dataset fingerprint). Its parts are
ordered: the input history of a query is what the user did in *earlier* parts; `fit` is handed the
parts it may learn from and nothing else.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from recsys import schema
from recsys.cutting import assign_parts
from recsys.dataset import Dataset
from recsys.errors import SplitError
from recsys.files import digest, new_folder, write_json
from recsys.filtering import filtered
from recsys.schema import Log, Queries, Ragged
from recsys.split_config import SplitConfig

VERSION = 1


@dataclass(frozen=True)
class EvalQueries:
    """The questions of one part: ids, what the model may know, and the answers.

    targets hold item indices, -1 for a target outside the catalogue; a user's repeated targets stand once.
    """

    query_id_Q: np.ndarray
    queries: Queries
    targets: Ragged

    def __len__(self) -> int:
        return len(self.query_id_Q)

    def take(self, rows: np.ndarray | slice) -> "EvalQueries":
        return EvalQueries(self.query_id_Q[rows], self.queries.take(rows), self.targets.take(rows))


@dataclass(frozen=True)
class Split:
    """A Dataset cut into parts. log holds every kept row; part_N its part number, -1 = dropped.

    An item outside the catalogue has a negative number of its own in the log, so that two of them stay two targets.
    """

    config: SplitConfig
    dataset_fingerprint: str
    user_ids: pl.Series
    item_ids: pl.Series
    log: Log
    part_N: np.ndarray
    facts: dict

    @property
    def id(self) -> str:
        return split_id(self.config, self.dataset_fingerprint)

    @property
    def num_items(self) -> int:
        return len(self.item_ids)

    @property
    def num_users(self) -> int:
        return len(self.user_ids)

    def check(self, dataset: Dataset) -> None:
        """Raises SplitError where `dataset` is not the one this split was made from."""
        if dataset.fingerprint != self.dataset_fingerprint:
            raise SplitError(
                f"split {self.id[:12]} was made from another dataset",
                where=dataset.path,
                expected=f"fingerprint {self.dataset_fingerprint[:12]}, found {dataset.fingerprint[:12]}",
                fix="make a new split",
            )

    def check_id(self, split_id: str) -> None:
        """Raises SplitError where something (a bundle, a table) rests on another split."""
        if split_id != self.id:
            raise SplitError(
                f"split {self.id[:12]} is not the one this was made under", expected=split_id[:12]
            )

    def codes(self, parts: Sequence[str]) -> list[int]:
        unknown = [part for part in parts if part not in self.config.parts]
        if unknown:
            raise SplitError(
                f"no part {unknown[0]!r} in a {self.config.method} split",
                expected=" | ".join(self.config.parts),
            )
        return [self.config.parts.index(part) for part in parts]

    def fit_log(self, parts: Sequence[str] = ("train",)) -> Log:
        """The rows a model may learn from."""
        return self.log.take(np.isin(self.part_N, self.codes(parts)) & (self.log.item_N >= 0))

    def queries(self, part: str) -> EvalQueries:
        """One query per user (or per event) with a row in `part`; history = the user's earlier parts."""
        code = self.codes([part])[0]
        rolling = self.config.queries == "event"
        known_N = (self.part_N >= 0) & (self.part_N < code + rolling) & (self.log.item_N >= 0)
        before_N1 = np.concatenate([[0], np.cumsum(known_N)])  # known rows before each row of the log
        items = self.log.item_N[known_N]
        target_rows = np.flatnonzero(self.part_N == code)
        users = self.log.user_N[target_rows]
        if rolling:
            starts, ends = before_N1[self.log.indptr_U1[users]], before_N1[target_rows]
            found = np.maximum(self.log.item_N[target_rows], -1)
            at, targets = self.log.time_N[target_rows], Ragged.from_lengths(found, np.ones_like(users))
            query_id = np.arange(len(target_rows))
        else:
            first = np.flatnonzero(np.diff(users, prepend=-1))  # the log is sorted by user
            pairs = np.stack([users, self.log.item_N[target_rows]], axis=1)
            _, once = np.unique(pairs, axis=0, return_index=True)
            once.sort()
            lengths = np.bincount(users[once], minlength=self.num_users)
            users = users[first]
            targets = Ragged.from_lengths(np.maximum(pairs[once, 1], -1), lengths[users])
            starts, ends = before_N1[self.log.indptr_U1[users]], before_N1[self.log.indptr_U1[users + 1]]
            cut = self.facts.get("cut_times", {}).get(part)
            at = self.log.time_N[target_rows[first]] if cut is None else np.full(len(users), cut)
            query_id = users
        times = Ragged(self.log.time_N[known_N], starts, ends)
        return EvalQueries(query_id, Queries(users, Ragged(items, starts, ends), at, times=times), targets)

    def save(self, folder: str | Path) -> None:
        with new_folder(Path(folder)) as target:
            pl.DataFrame(
                {
                    "user": self.log.user_N.astype(np.int32),
                    "item": self.log.item_N.astype(np.int32),
                    "time": self.log.time_N,
                    "weight": self.log.weight_N,
                    "part": self.part_N,
                }
            ).write_parquet(target / "log.parquet")
            self.user_ids.to_frame(schema.USER).write_parquet(target / "users.parquet")
            self.item_ids.to_frame(schema.ITEM).write_parquet(target / "items.parquet")
            manifest = {
                "version": VERSION,
                "id": self.id,
                "config": self.config.model_dump(mode="json"),
                "dataset_fingerprint": self.dataset_fingerprint,
                "facts": self.facts,
            }
            write_json(target / "split.json", manifest)

    @classmethod
    def load(cls, folder: str | Path) -> "Split":
        """Raises SplitError where the folder is no split, or its manifest is damaged."""
        folder = Path(folder)
        try:
            manifest = json.loads((folder / "split.json").read_text())
            config = SplitConfig.model_validate(manifest["config"])
        except (FileNotFoundError, NotADirectoryError):
            raise SplitError("not a split folder (no split.json)", where=folder) from None
        except (ValueError, KeyError, TypeError) as error:
            reason = next(iter(str(error).splitlines()), "")
            raise SplitError(
                f"split.json is damaged ({reason})", where=folder, fix="make the split again"
            ) from None
        users = pl.read_parquet(folder / "users.parquet")[schema.USER]
        items = pl.read_parquet(folder / "items.parquet")[schema.ITEM]
        frame = pl.read_parquet(folder / "log.parquet")
        log = make_log(
            frame["user"].to_numpy().astype(np.int64),
            frame["item"].to_numpy().astype(np.int64),
            frame["time"].to_numpy(),
            frame["weight"].to_numpy(),
            len(users),
            len(items),
        )
        return cls(
            config,
            manifest["dataset_fingerprint"],
            users,
            items,
            log,
            frame["part"].to_numpy(),
            manifest["facts"],
        )


def split_id(config: SplitConfig, fingerprint: str) -> str:
    return digest({"version": VERSION, "config": config.model_dump(mode="json"), "dataset": fingerprint})


def make_log(user_N, item_N, time_N, weight_N, num_users: int, num_items: int) -> Log:
    """A Log from arrays already sorted by user and time."""
    indptr = np.searchsorted(user_N, np.arange(num_users + 1))
    return Log(user_N, item_N, time_N, weight_N, indptr, num_items)


def make_split(dataset: Dataset, config: SplitConfig) -> Split:
    """Filter, index, sort and cut. Raises SplitError where the method cannot be applied."""
    rows = filtered(dataset, config)
    user_ids = rows[schema.USER].unique().sort()
    in_data = rows[schema.ITEM].unique().sort()
    listed = dataset.items[schema.ITEM].sort() if config.catalogue == "listed" else in_data
    ordering = [schema.USER, schema.ORDER if schema.ORDER in rows.columns else schema.TIME]
    rows = rows.sort(ordering, maintain_order=True)
    time = rows[schema.TIME if dataset.has_time else schema.ORDER].to_numpy()
    log = make_log(
        positions(rows[schema.USER], user_ids),
        positions(rows[schema.ITEM], listed),
        time.astype(np.int64),
        rows[schema.WEIGHT].to_numpy(),
        len(user_ids),
        len(listed),
    )
    time_hi_N = rows[schema.TIME_HI].to_numpy() if schema.TIME_HI in rows.columns else None
    part_N, facts = assign_parts(log, time_hi_N, config, has_time=dataset.has_time)
    if config.catalogue == "train":
        in_train = np.unique(log.item_N[part_N == 0])
        new_index = -1 - np.arange(len(listed))
        new_index[in_train] = np.arange(len(in_train))
        listed = listed.gather(in_train)
        log = make_log(
            log.user_N, new_index[log.item_N], log.time_N, log.weight_N, len(user_ids), len(listed)
        )
    counts = {name: int((part_N == code).sum()) for code, name in enumerate(config.parts)}
    empty = [name for name in ("train", "valid", "test") if not counts[name]]
    if empty:
        raise SplitError(
            f"the {empty[0]} part is empty ({len(rows)} rows after filtering)",
            where=dataset.path,
            fix="change the cuts, the filters, or the method",
        )
    facts |= {
        "rows": counts,
        "dropped": int((part_N < 0).sum()),
        "users": len(user_ids),
        "catalogue": len(listed),
    }
    return Split(config, dataset.fingerprint, user_ids, listed, log, part_N, facts)


def positions(values: pl.Series, ids: pl.Series) -> np.ndarray:
    """Position of each value in `ids`, -1 where it is not among them; both of one type."""
    table = pl.DataFrame({"id": ids, "index": np.arange(len(ids))})
    joined = values.to_frame("id").join(table, on="id", how="left", maintain_order="left")
    return joined["index"].fill_null(-1).to_numpy().astype(np.int64)

"""Candidates: lists to rank within, on disk, so that a sampled protocol is explicit."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recsys import schema
from recsys.errors import EvaluationError
from recsys.files import new_folder, write_json
from recsys.schema import Ragged
from recsys.splits import Split, positions


def item_index(ids: pl.Series, split: Split) -> np.ndarray:
    """Catalogue index of every id, -1 outside the catalogue. Raises EvaluationError for another id type."""
    if ids.dtype != split.item_ids.dtype:
        raise EvaluationError(
            f"item_id is {ids.dtype}",
            expected=str(split.item_ids.dtype),
            fix="ids are kept verbatim: cast them",
        )
    return positions(ids, split.item_ids)


def sorted_lists(frame: pl.DataFrame, position: str, where: str) -> pl.DataFrame:
    needed = ["query_id", schema.ITEM, position]
    missing = [name for name in needed if name not in frame.columns]
    if missing:
        raise EvaluationError(f"column {missing[0]!r} is missing", where=where, expected=", ".join(needed))
    frame = frame.sort("query_id", position)
    repeated = frame.filter(pl.struct("query_id", schema.ITEM).is_duplicated())
    if not repeated.is_empty():
        raise EvaluationError(
            f"item {repeated[schema.ITEM][0]!r} stands twice in the list of query {repeated['query_id'][0]}",
            where=where,
        )
    places = frame.select((pl.col(position).rank("ordinal").over("query_id")) == pl.col(position))
    if not places.to_series().all():
        raise EvaluationError(
            f"{position}s of a query have a hole or repeat", where=where, expected="1, 2, 3, ..."
        )
    return frame


def lists_by_query(frame: pl.DataFrame, split: Split, part: str, where: str) -> Ragged:
    """Item indices of every query of the part, in list order; a query without a list has an empty row."""
    asked = split.queries(part).query_id_Q
    row_N = np.searchsorted(asked, frame["query_id"].to_numpy())
    known = (row_N < len(asked)) & (asked[np.minimum(row_N, len(asked) - 1)] == frame["query_id"].to_numpy())
    if not known.all():
        stranger = frame["query_id"].to_numpy()[~known][0]
        raise EvaluationError(
            f"query {stranger} is not one of the {len(asked)} {part} queries",
            where=where,
            fix="use this split's ids",
        )
    return Ragged.from_lengths(
        item_index(frame[schema.ITEM], split), np.bincount(row_N, minlength=len(asked))
    )


@dataclass(frozen=True)
class Candidates:
    """Lists to rank within, one per query: a sampled protocol made explicit.

    frame: query_id, item_id, position (from 1). facts: split_id, part, seed, length, target_guaranteed.
    """

    frame: pl.DataFrame
    facts: dict[str, Any]
    lists: Ragged = field(repr=False)
    query_id_Q: np.ndarray = field(repr=False)

    @classmethod
    def of(cls, frame: pl.DataFrame, split: Split, part: str, **facts: Any) -> "Candidates":
        """Checked lists. Raises EvaluationError for repeats, holes, unknown queries or items."""
        frame = sorted_lists(frame, "position", "candidates")
        lists = lists_by_query(frame, split, part, "candidates")
        if (lists.values < 0).any():
            raise EvaluationError("an item is outside the catalogue", where="candidates", fix="drop it")
        facts |= {"split_id": split.id, "part": part, "length": int(lists.lengths.max(initial=0))}
        return cls(frame, facts, lists, split.queries(part).query_id_Q)

    @classmethod
    def sample(
        cls,
        split: Split,
        part: str,
        n: int,
        seed: int = 0,
        *,
        guaranteed: bool = True,
        by_popularity: bool = False,
    ) -> "Candidates":
        """n items per query, at random (or by train popularity), without the input history, shuffled.

        guaranteed: the targets are among them; otherwise only by chance. Raises EvaluationError for n beyond
        the catalogue.
        """
        asked = split.queries(part)
        longest = int((asked.queries.history.lengths + asked.targets.lengths).max())
        if n > split.num_items - longest:
            raise EvaluationError(
                f"{n} candidates from {split.num_items} items with histories of up to {longest}"
            )
        counts = split.fit_log().item_counts() + 1.0 if by_popularity else np.ones(split.num_items)
        rows = []
        for row in range(len(asked)):
            rng = np.random.default_rng([seed, row])
            targets = asked.targets[row][asked.targets[row] >= 0]
            keep = targets[:n] if guaranteed else targets[:0]
            weights = counts.copy()
            weights[asked.queries.history[row]] = 0
            weights[targets if guaranteed else targets[:0]] = 0
            drawn = rng.choice(split.num_items, n - len(keep), replace=False, p=weights / weights.sum())
            rows.append(rng.permutation(np.concatenate([keep, drawn])))
        frame = pl.DataFrame(
            {
                "query_id": np.repeat(asked.query_id_Q, n),
                schema.ITEM: split.item_ids.gather(np.concatenate(rows)),
                "position": np.tile(np.arange(1, n + 1), len(rows)),
            }
        )
        return cls.of(
            frame, split, part, seed=seed, target_guaranteed=guaranteed, by_popularity=by_popularity
        )

    @property
    def length(self) -> int:
        return self.facts["length"]

    def check(self, split: Split, part: str, depth: int) -> None:
        """Raises EvaluationError where the lists belong elsewhere or are shorter than `depth`."""
        if (self.facts["split_id"], self.facts["part"]) != (split.id, part):
            raise EvaluationError("candidates were made for another split or part", fix="sample them again")
        if depth > self.length:
            raise EvaluationError(
                f"k = {depth} lies beyond the lists' depth {self.length}", fix="lower evaluate.ks"
            )

    def rows(self, query_id_Q: np.ndarray) -> np.ndarray:
        """[Q, C] item indices, -1 pads."""
        return self.lists.take(np.searchsorted(self.query_id_Q, query_id_Q)).padded(self.length)

    @staticmethod
    def columns(lists_QC: np.ndarray, targets: Ragged) -> Ragged:
        """The targets as columns of the lists, -1 where a target is not among them."""
        rows, items = targets.flat()
        equal_TC = (lists_QC[rows] == items[:, None]) & (items >= 0)[:, None]
        columns = np.where(equal_TC.any(axis=1), equal_TC.argmax(axis=1), -1)
        return Ragged.from_lengths(columns, targets.lengths)

    def save(self, folder: Path) -> None:
        with new_folder(folder) as target:
            self.frame.write_parquet(target / "candidates.parquet")
            write_json(target / "candidates.json", self.facts)

    @classmethod
    def load(cls, folder: Path, split: Split) -> "Candidates":
        """Raises EvaluationError where the lists were made for another split."""
        facts = json.loads((folder / "candidates.json").read_text())
        if facts["split_id"] != split.id:
            raise EvaluationError(
                "candidates were made for another split", where=folder, fix="sample them again"
            )
        return cls.of(
            pl.read_parquet(folder / "candidates.parquet"), split, **facts | {"part": facts["part"]}
        )

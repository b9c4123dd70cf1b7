"""S3-Rec / P5 sequence files: one user a line, `user item item ...` in time order, no timestamps."""

import json
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import polars as pl
from pydantic import model_validator

from recsys.dataset import Dataset
from recsys.errors import DataError
from recsys.normalise import reading
from recsys.sources.base import Source, data_root, need
from recsys.sources.reading import need_columns

_KNOWN = {
    "beauty": (
        "amazon-s3rec/Beauty.txt",
        "amazon-s3rec/Beauty_items.parquet",
        "Amazon review data 2014, 5-core, S3-Rec",
    ),
    "sports": (
        "amazon-s3rec/Sports_and_Outdoors.txt",
        "amazon-s3rec/Sports_and_Outdoors_items.parquet",
        "Amazon review data 2014, 5-core, S3-Rec",
    ),
    "yelp": ("amazon-s3rec/Yelp.txt", "amazon-s3rec/Yelp_items.parquet", "Yelp Open Dataset, S3-Rec"),
    "beauty-lrurec": ("amazon-sasrec/beauty_lrurec_sequences.txt", None, "Amazon review data 2014, LRURec"),
}
_LICENCES = {
    "amazon": "Amazon review data (McAuley, UCSD): academic use",
    "yelp": "Yelp Open Dataset terms: academic use",
}


class Sequences(Source):
    """A sequence file and, where there is one, a Parquet of its items. Ids are integers, `order` is the position."""

    places: ClassVar[frozenset[str]] = frozenset({"path", "items"})

    name: Literal["beauty", "sports", "yelp", "beauty-lrurec"] | None = None
    """A set known by name, looked up in $RECSYS_DATA; or give `path`."""
    path: str | None = None
    """The .txt file."""
    items: str | None = None
    """Parquet with item_id and any of title, categories_json (list of paths), keywords, further columns."""

    @model_validator(mode="after")
    def _one(self):
        if (self.name is None) == (self.path is None):
            raise ValueError("either name or path")
        return self

    def _files(self) -> tuple[Path, Path | None]:
        if self.name is None:
            return need(Path(self.path), "sequences"), None if self.items is None else need(
                Path(self.items), "items"
            )
        root = data_root()
        if root is None:
            raise DataError(
                f"{self.name} is not at hand", where="$RECSYS_DATA", fix="set it, or give data.path"
            )
        sequences, items, _ = _KNOWN[self.name]
        return need(root / sequences, "sequences"), None if items is None else need(root / items, "items")

    def inputs(self) -> list[Path]:
        return [path for path in self._files() if path is not None]

    def prepare(self, out: Path) -> Dataset:
        sequences, items = self._files()
        source = _KNOWN[self.name][2] if self.name else f"sequence file {sequences.name}"
        licence = _LICENCES["yelp" if self.name == "yelp" else "amazon"] if self.name else "unknown"
        return Dataset.from_frames(
            out,
            read_sequences(sequences),
            None if items is None else read_items(items),
            name=self.name or sequences.stem,
            source=source,
            licence=licence,
            missing_items="add",
        )


def read_sequences(path: Path) -> pl.DataFrame:
    """user_id, item_id, order. Raises DataError naming the line that is not a list of integers."""
    users, lengths, items = [], [], []
    with reading(path), open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                user, *sequence = map(int, line.split())
            except ValueError:
                raise DataError(
                    f"line {number} is {line[:40]!r}",
                    where=path,
                    expected="integers: user item item ...",
                    fix="correct or remove the line",
                ) from None
            users.append(user)
            lengths.append(len(sequence))
            items.extend(sequence)
    lengths_U = np.array(lengths, np.int64)
    repeated = np.repeat(np.array(users, np.int64), lengths_U)
    order = np.arange(len(items)) - np.repeat(np.cumsum(lengths_U) - lengths_U, lengths_U)
    return pl.DataFrame({"user_id": repeated, "item_id": np.array(items, np.int64), "order": order})


def read_items(path: Path) -> pl.DataFrame:
    """category = the distinct names on an item's category paths; keywords stand in for a missing title's text."""
    with reading(path):
        frame = pl.read_parquet(path)
    need_columns(frame.lazy(), ["item_id"], path)
    if "categories_json" in frame.columns:
        names = [None if text is None else _names(text, path) for text in frame["categories_json"].to_list()]
        frame = frame.with_columns(pl.Series("category", names, pl.List(pl.String))).drop("categories_json")
    if "keywords" in frame.columns:
        frame = frame.rename({"keywords": "text"})
    return frame


def _names(text: str, where: Path) -> list[str]:
    """The distinct names of a JSON list whose entries are category paths (lists of names) or bare names."""
    try:
        entries = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"categories_json {text[:40]!r} is no JSON ({error})", where=where, expected="a list of paths"
        ) from None
    names = [name for entry in entries for name in (entry if isinstance(entry, list) else [entry])]
    return list(dict.fromkeys(map(str, names)))

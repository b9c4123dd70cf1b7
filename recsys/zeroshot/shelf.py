"""What a prompt can show of items: titles, captions, pictures, categories; in catalogue order."""

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import polars as pl

from recsys import schema
from recsys.dataset import Dataset
from recsys.errors import ConfigError
from recsys.splits import Split
from recsys.zeroshot.messages import Picture

_TOP = 5


@dataclass(frozen=True)
class Shelf:
    """titles, captions, categories, paths: one entry an item; an empty caption where there is none."""

    titles: Sequence[str]
    captions: Sequence[str]
    categories: Sequence[Sequence[str]]
    paths: Sequence[Path | None]
    _pictures: dict = field(default_factory=dict, repr=False, compare=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def picture(self, item: int, side: int) -> Picture | None:
        """The item's picture, at most side x side pixels; read once."""
        path = self.paths[item]
        if path is None:
            return None
        with self._lock:
            if (path, side) not in self._pictures:
                self._pictures[path, side] = Picture.open(path, side)
            return self._pictures[path, side]

    def profile(self, items: Sequence[int]) -> str:
        """The categories that these items have most of, with counts."""
        counts = Counter(name for item in items for name in self.categories[item])
        return ", ".join(f"{name} ({count})" for name, count in counts.most_common(_TOP))

    def shuffled_pictures(self, seed: int) -> "Shelf":
        """Every picture and caption on another item that has one: what it shows is wrong, all else is as it was."""
        rng = np.random.default_rng(seed)
        paths, captions = list(self.paths), list(self.captions)
        for values in (paths, captions):
            having = [item for item, value in enumerate(values) if value]
            order = rng.permutation(len(having))  # moved on by one along a random cycle: nobody keeps its own
            old = [values[having[place]] for place in order]
            for place, value in zip(order, [*old[1:], *old[:1]], strict=True):
                values[having[place]] = value
        return replace(self, paths=paths, captions=captions)


def make_shelf(
    dataset: Dataset, split: Split, captions: str | None, text: dict[int, str] | None = None
) -> Shelf:
    """captions: a column of items, or None. text: captions by item index, made elsewhere, in place of a column.

    Raises ConfigError for a column that the Dataset lacks.
    """
    items = pl.DataFrame({schema.ITEM: split.item_ids}).join(
        dataset.items, on=schema.ITEM, how="left", maintain_order="left"
    )
    ids = [str(value) for value in split.item_ids.to_list()]
    titles = _column(items, schema.TITLE)
    described = (
        [""] * len(ids) if captions is None else [value or "" for value in _column(items, captions, captions)]
    )
    for item, words in (text or {}).items():
        described[item] = words
    paths = [
        dataset.media_root / name if name and dataset.media_root is not None else None
        for name in _column(items, schema.IMAGE)
    ]
    categories = [tuple(names or ()) for names in _column(items, schema.CATEGORY)]
    return Shelf(
        [" ".join(title.split()) if title else name for title, name in zip(titles, ids, strict=True)],
        [" ".join(str(words).split()) for words in described],
        categories,
        paths,
    )


def _column(items: pl.DataFrame, name: str, asked: str | None = None) -> list:
    if name not in items.columns:
        if asked is not None:
            raise ConfigError(
                f"captions.source = {asked!r}",
                expected=f"labels, transformers:NAME, or a column of items: {', '.join(items.columns)}",
            )
        return [None] * len(items)
    return items[name].to_list()

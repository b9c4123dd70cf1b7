"""Feature rows of items that come with their content: text and pictures through the encoders the bundle names, where
they are installed; attributes through its vocabularies; tables that stand on others by what it carries of them. What
cannot be encoded is a missing modality, and said so.

Most encoders need torch and are found through the registry when an item with such content comes: serving starts
without them.
"""

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recsys import schema
from recsys.bundle import Bundle
from recsys.errors import RequestError
from recsys.registry import load_function
from recsys.schema import Dense
from recsys.serving.derived import Reader, derived, has_torch

_NEED_TORCH = ("text", "image", "image_tokens")


@dataclass(frozen=True)
class NewItem:
    """An item by its content. features: table -> vector, for what the sender has encoded. image: the file's bytes."""

    item_id: int | str
    title: str | None = None
    text: str | None = None
    category: Sequence[str] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    image: bytes | None = None
    features: Mapping[str, Sequence[float]] = field(default_factory=dict)


class ContentEncoder:
    """Feature rows of new items for the tables of a bundle."""

    def __init__(self, bundle: Bundle):
        self.tables: Mapping[str, Mapping[str, Any]] = {
            name: table
            for name, table in bundle.manifest["content"].items()
            if table.get("entity", "item") == "item"
        }
        self._derived = derived(self.tables, bundle.path)
        below = {name: one.tables.values() for name, one in self._derived.items()}
        order = TopologicalSorter({name: below.get(name, ()) for name in self.tables})
        self._order = tuple(order.static_order())
        self._made: dict[str, Any] = {}

    def encoders(self) -> dict[str, Reader]:
        """What encodes raw content of each table here."""
        found: dict[str, Reader] = {}
        for name in self._order:
            one = self._derived.get(name)
            found[name] = self._reader(name) if one is None else one.reader(found)
        return {name: found[name] for name in self.tables}

    def _reader(self, name: str) -> Reader:
        """Of a table that stands on no other."""
        table = self.tables[name]
        kind = table["settings"]["kind"]
        if kind == "metadata":
            return "vocabulary"
        if ":" in kind:  # what an extractor of somebody's own was fitted to is not in the bundle
            return "own" if table.get("raw", True) else "none"
        return "torch" if kind in _NEED_TORCH and has_torch() else "none"

    def rows(self, items: Sequence[NewItem]) -> dict[str, Dense]:
        """Table -> rows of the items, absent where an item lacks the content or nothing here encodes it.

        Raises RequestError for a vector of the wrong length or an unknown table.
        """
        for item in items:
            unknown = [name for name in item.features if name not in self.tables]
            if unknown:
                raise RequestError(
                    f"features of {unknown[0]!r}", where=f"item {item.item_id!r}",
                    expected=f"one of: {', '.join(self.tables) or 'none, the model reads no content'}",
                )  # fmt: skip
        found: dict[str, Dense] = {}
        for name in self._order:
            found[name] = self._table(name, items, found)
        return {name: found[name] for name in self.tables}

    def missing(self, items: Sequence[NewItem], rows: Mapping[str, Dense]) -> dict[int | str, list[str]]:
        """Item id -> tables that it has no row in."""
        found = {
            item.item_id: [name for name, table in rows.items() if not table.present_E[number]]
            for number, item in enumerate(items)
        }
        return {item_id: names for item_id, names in found.items() if names}

    def _table(self, name: str, items: Sequence[NewItem], below: Mapping[str, Dense]) -> Dense:
        """below: rows of the items in the tables that it stands on, and others."""
        values_EF = np.full((len(items), int(self.tables[name]["width"])), np.nan, np.float32)
        raw = [number for number, item in enumerate(items) if name not in item.features]
        for number, item in enumerate(items):
            if name in item.features:
                vector = np.asarray(item.features[name], np.float32)
                if vector.shape != values_EF[number].shape or not np.isfinite(vector).all():
                    raise RequestError(
                        f"features.{name} of {vector.size} values", where=f"item {item.item_id!r}",
                        expected=f"{values_EF.shape[1]} finite values",
                    )  # fmt: skip
                values_EF[number] = vector
        if raw:
            there = {other: one.take(raw) for other, one in below.items()}
            values_EF[raw] = self._read(name, [items[number] for number in raw], there)
        return Dense(values_EF, np.isfinite(values_EF).all(axis=1))

    def _read(self, name: str, items: Sequence[NewItem], below: Mapping[str, Dense]) -> np.ndarray:
        """[N, F] of raw content, NaN where an item has none that is read here."""
        table = self.tables[name]
        if name in self._derived:
            one = self._derived[name]
            return one.rows(_frame(items, None, _columns(one.template)), below)
        reader = self._reader(name)
        if reader == "vocabulary":
            return _fields(table, items)
        if reader == "none":
            return np.full((len(items), int(table["width"])), np.nan, np.float32)
        return self._encoded(name, table["settings"], items)

    def _encoded(self, name: str, settings: Mapping[str, Any], items: Sequence[NewItem]) -> np.ndarray:
        """[N, F], NaN where an item has no such content or it cannot be read."""
        extractor = self._extractors(name, settings)
        with tempfile.TemporaryDirectory() as folder:
            named = _columns(settings.get("template"))
            contents = extractor.contents(_frame(items, Path(folder), named), Path(folder))
            flat = [content for content in contents if content is not None]
            out = np.full((len(items), int(self.tables[name]["width"])), np.nan, np.float32)
            if not flat:
                return out
            vectors, unreadable = next(extractor.encode_chunks([flat]))
        places = [number for number, content in enumerate(contents) if content is not None]
        readable = [place for position, place in enumerate(places) if position not in unreadable]
        out[readable] = vectors
        return out

    def _extractors(self, name: str, settings: Mapping[str, Any]) -> Any:
        if name not in self._made:
            make = load_function("extractor")
            self._made[name] = make(dict(settings), where=f"features.{name}")
            self._made[name].workers = 0  # one picture at a time: processes would cost more than they give
        return self._made[name]


def _columns(template: str | None) -> list[str]:
    return re.findall(r"{(\w+)}", template or "")


def _fields(table: Mapping[str, Any], items: Sequence[NewItem]) -> np.ndarray:
    encode = load_function("typed_rows")
    dense = load_function("fields")
    frame = encode(_frame(items, None), {"fields": table["fields"]})
    return dense(frame, table["fields"]).dense().values_EF


def _frame(items: Sequence[NewItem], folder: Path | None, named: Sequence[str] = ()) -> pl.DataFrame:
    """The items as rows of an items table that has the columns `named`; pictures lie in `folder`."""
    rows = []
    for number, item in enumerate(items):
        image = None
        if folder is not None and item.image is not None:
            image = f"{number}"
            (folder / image).write_bytes(item.image)
        rows.append(
            {
                schema.TITLE: item.title,
                schema.TEXT: item.text,
                schema.CATEGORY: list(item.category) or None,
                schema.IMAGE: image,
                **item.attributes,
            }
        )
    columns = dict.fromkeys([*named, *(name for row in rows for name in row)])
    frame = {name: [row.get(name) for row in rows] for name in columns}
    typed = dict.fromkeys([schema.TITLE, schema.TEXT, schema.IMAGE], pl.String)
    typed[schema.CATEGORY] = pl.List(pl.String)
    try:
        return pl.DataFrame(frame, schema_overrides=typed)
    except (pl.exceptions.PolarsError, TypeError) as error:
        raise RequestError(f"attributes of several types ({error})", where="items") from None

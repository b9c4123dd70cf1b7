"""Your own tables: CSV, TSV, Parquet or JSON lines with a mapping from our column names to theirs."""

from pathlib import Path
from typing import ClassVar, Literal

import polars as pl
from pydantic import Field, field_validator

from recsys import schema
from recsys.config import Config
from recsys.dataset import Dataset
from recsys.errors import nearest
from recsys.sources.base import Source, need
from recsys.sources.reading import (
    TimeUnit,
    covering,
    is_csv,
    need_columns,
    open_table,
    seconds,
    split_category,
    typed_free,
    typed_ids,
    with_images,
)

_INTERACTIONS = (
    schema.USER,
    schema.ITEM,
    schema.TIME,
    schema.WEIGHT,
    schema.EVENT,
    schema.ORDER,
    schema.TIME_HI,
)
_TEXTS = (schema.TITLE, schema.TEXT, schema.IMAGE, schema.CATEGORY)


class Columns(Config):
    """For each table: our column name = theirs. A column that already bears our name needs no entry."""

    interactions: dict[str, str] = Field(default_factory=dict)
    """Of user_id, item_id, timestamp, weight, event, order, timestamp_hi; other columns are not read."""
    items: dict[str, str] = Field(default_factory=dict)
    """item_id, title, text, image_path, category, or a free column under a new name; all others are kept."""
    users: dict[str, str] = Field(default_factory=dict)
    """user_id, or a free column under a new name; all others are kept."""

    @field_validator("interactions")
    @classmethod
    def _known(cls, mapping):
        for name in mapping:
            if name not in _INTERACTIONS:
                raise ValueError(f"columns of ours; {name!r} is none, {nearest(name, _INTERACTIONS)}")
        return mapping


class Tabular(Source):
    """A log of interactions and, where you have them, tables of items and users. Large files are streamed."""

    places: ClassVar[frozenset[str]] = frozenset({"interactions", "items", "users", "images"})

    interactions: str
    """The log: .csv, .tsv, .parquet or .jsonl (text also as .gz or .zst)."""
    items: str | None = None
    """One row an item; None = items are what occurs in the log."""
    users: str | None = None
    """One row a user."""
    columns: Columns = Columns()
    """Our column names = theirs, e.g. columns.interactions = {user_id = "customer", item_id = "sku"}."""
    ids: Literal["str", "auto"] = "str"
    """str: ids are text exactly as written, "007" keeps its zeros. auto: integers, where every id of that entity
    in every table is one as a computer writes it (7, not 007); else text."""
    time_unit: TimeUnit = "s"
    """Unit of numeric timestamps; text is read as ISO 8601, an hour without an offset is UTC."""
    missing_items: Literal["error", "add", "drop"] = "error"
    """Items that occur in the log but have no row: an error; add = a row without content; drop = their rows go."""
    separator: str | None = None
    """Between the fields of text files; None = a tab in .tsv and .tab, a comma elsewhere."""
    header: bool = True
    """Whether text files begin with column names; where not, they are column_1, column_2, ..."""
    category_separator: str | None = None
    """Cuts a category of text into a list, e.g. "|"."""
    images: str | None = None
    """Folder that image_path values are relative to; without such a column, ITEM_ID.jpg is looked up there."""
    licence: str = "unknown"
    """Terms of the data; stands in the Dataset and in every bundle."""

    def _files(self) -> dict[str, Path]:
        given = {"interactions": self.interactions, "items": self.items, "users": self.users}
        return {what: need(Path(path), what) for what, path in given.items() if path is not None}

    def inputs(self) -> list[Path]:
        return list(self._files().values())

    def image_folder(self) -> Path | None:
        return None if self.images is None else Path(self.images)

    def prepare(self, out: Path) -> Dataset:
        files = self._files()
        tables = {what: self._open(what, path) for what, path in files.items()}
        for entity, others in ((schema.USER, "users"), (schema.ITEM, "items")):
            held = [what for what in ("interactions", others) if what in tables]
            typed = typed_ids([(files[what], tables[what]) for what in held], self.ids, (entity,))
            tables.update(zip(held, typed, strict=True))
        items = tables.get("items")
        if self.images is not None:
            if items is None or self.missing_items == "add":
                items = covering(items, tables["interactions"])
            items = with_images(items, Path(self.images))
        return Dataset.from_frames(
            out,
            tables["interactions"],
            items,
            tables.get("users"),
            name=files["interactions"].name.partition(".")[0],
            source=", ".join(path.name for path in files.values()),
            licence=self.licence,
            missing_items=self.missing_items,
            media_root=self.images,
            origins=files,
        )

    def _open(self, what: str, path: Path) -> pl.LazyFrame:
        """One table with its columns named and typed, ids still as they are stored."""
        mapping = getattr(self.columns, what)
        table = open_table(path, what, mapping, separator=self.separator, header=self.header)
        if what == "interactions":
            return self._log(table, path)
        ids = schema.ITEM if what == "items" else schema.USER
        need_columns(table, [ids], path)
        if is_csv(path):
            fixed = (ids, *_TEXTS) if what == "items" else (ids,)
            names = [name for name in table.collect_schema().names() if name not in fixed]
            table = typed_free(table, names, path)
        return split_category(table, self.category_separator) if what == "items" else table

    def _log(self, table: pl.LazyFrame, path: Path) -> pl.LazyFrame:
        columns = table.collect_schema().names()
        time = () if schema.ORDER in columns and schema.TIME not in columns else (schema.TIME,)
        need_columns(table, [schema.USER, schema.ITEM, *time], path)
        table = table.select(name for name in _INTERACTIONS if name in columns)
        for name in (schema.TIME, schema.TIME_HI):
            if name in columns:
                table = seconds(table, name, self.time_unit, path)
        if is_csv(path):
            kinds = {schema.WEIGHT: pl.Float64, schema.ORDER: pl.Int64}
            table = table.cast({name: kind for name, kind in kinds.items() if name in columns})
        return table

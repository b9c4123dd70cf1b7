"""Metadata of items or users as typed fields: vocabularies and statistics come from the train part alone."""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
import polars as pl
from pydantic import Field

from recsys import schema
from recsys.config import Config
from recsys.dataset import Dataset
from recsys.errors import FeatureError, nearest
from recsys.features.base import ExtractorConfig, FittedExtractor
from recsys.features.columns import ColumnEncoder
from recsys.features.field_table import FieldTable
from recsys.features.table import Table
from recsys.splits import Split

VERSION = 1
Kind = Literal["categorical", "multi", "hashed", "numeric", "date"]
_CONTENT = {schema.ITEM, schema.USER, schema.TITLE, schema.TEXT, schema.IMAGE}


class ColumnConfig(Config):
    """How one column becomes a field."""

    kind: Kind
    """categorical: one value a row. multi: a list of values (genres, category paths). hashed: one value a row of very
    many, into `buckets` codes. numeric: a number. date: days as a number, and the month as a category of its own."""
    scale: Literal["quantile", "log", "standard"] = "quantile"
    """numeric and date: quantile = place among the train values, -1 to 1; log = log(1 + |x|) with its sign, then as
    standard; standard = (x - mean) / deviation."""
    min_count: Annotated[int, Field(ge=1)] = 1
    """categorical and multi: train rows that a value needs; rarer ones are unseen."""
    max_values: Annotated[int, Field(ge=1)] = 10_000
    """categorical and multi: the most frequent values that are kept."""
    buckets: Annotated[int, Field(ge=2)] = 1024
    """hashed: number of codes."""


class MetadataConfig(ExtractorConfig):
    """Which columns become fields."""

    columns: dict[str, ColumnConfig] = Field(default_factory=dict)
    """By name; empty = every column but ids and content, by its type: lists are multi, numbers numeric, dates date, and
    text that repeats (at most half as many values as rows) categorical."""
    fit_on: Literal["train", "all"] = "train"
    """Rows that vocabularies and statistics come from: train = items or users of the train part; all = every row, for a
    table that is deployed and never evaluated."""


class MetadataExtractor(FittedExtractor[MetadataConfig]):
    """Typed fields with an unseen state: code 0 where a value did not occur in training, null where there is none."""

    modality = "metadata"
    Config = MetadataConfig

    @property
    def needs_split(self) -> bool:
        return self.config.fit_on == "train"

    def identity(self) -> Mapping[str, Any]:
        shared = set(ExtractorConfig.model_fields)
        return {"extractor": "metadata", "version": VERSION} | self.config.model_dump(
            mode="json", exclude=shared
        )

    def table(
        self, name: str, dataset: Dataset, split: Split | None, tables: Mapping[str, Table]
    ) -> FieldTable:
        """Raises FeatureError for a column that is not there, of the wrong type, or a table without any field."""
        entity = self.config.entity
        rows = dataset.items if entity == "item" else dataset.scan("users").collect()
        id_column = schema.ITEM if entity == "item" else schema.USER
        columns = self.config.columns or guessed(rows)
        unknown = [column for column in columns if column not in rows.columns]
        if unknown or not columns:
            raise FeatureError(
                f"no column {unknown[0]!r} in the {entity}s table"
                if unknown
                else f"the {entity}s have no metadata",
                where=f"features.{name}",
                fix=nearest(unknown[0], rows.columns) if unknown else "leave the table out of the recipe",
            )
        fitted = rows
        if self.needs_split:
            fitted = rows.filter(pl.col(id_column).is_in(trained_ids(split, entity).implode()))
        encoders: dict[str, ColumnEncoder] = {}
        for column, config in columns.items():
            encoders |= ColumnEncoder.fit(column, fitted[column], config, where=f"features.{name}")
        frame = pl.DataFrame(
            [encoder(rows[encoder.column]).alias(field) for field, encoder in encoders.items()]
        )
        manifest = {"modality": self.modality} | dict(self.identity())
        manifest["fields"] = {field: encoder.state() for field, encoder in encoders.items()}
        if self.needs_split:
            manifest["split_id"] = split.id
        table = FieldTable(
            entity, name, rows[id_column], row_hashes(rows.select(list(columns)), frame), manifest, frame
        )
        if self.config.required and not table.present_E.any():
            raise FeatureError(
                f"no {entity} has metadata", where=f"features.{name}", fix="leave the table out of the recipe"
            )
        return table.hidden(self.config.hide, self.config.hide_seed) if self.config.hide else table


def encode(rows: pl.DataFrame, manifest: Mapping[str, Any]) -> pl.DataFrame:
    """Fields of new rows by the vocabularies and statistics of a table's manifest: what serving does with an item
    that it has never seen. A column that is missing from `rows` is absent everywhere."""
    encoders = {name: ColumnEncoder.from_state(state) for name, state in manifest["fields"].items()}
    return pl.DataFrame(
        [
            encoder(rows[encoder.column] if encoder.column in rows.columns else _nothing(len(rows))).alias(
                name
            )
            for name, encoder in encoders.items()
        ]
    )


def _nothing(rows: int) -> pl.Series:
    return pl.Series([None] * rows, dtype=pl.Null)


def trained_ids(split: Split, entity: Literal["item", "user"]) -> pl.Series:
    """Items or users with a row in the train part."""
    log = split.fit_log(("train",))
    found = np.unique(log.item_N if entity == "item" else log.user_N)
    return (split.item_ids if entity == "item" else split.user_ids).gather(found)


def guessed(rows: pl.DataFrame) -> dict[str, ColumnConfig]:
    """A kind for every column that has one by its type."""
    found: dict[str, ColumnConfig] = {}
    for name, kind in rows.schema.items():
        if name in _CONTENT or rows[name].null_count() == len(rows):
            continue
        if isinstance(kind, pl.List):
            found[name] = ColumnConfig(kind="multi")
        elif isinstance(kind, pl.Date | pl.Datetime):
            found[name] = ColumnConfig(kind="date")
        elif kind.is_numeric():
            found[name] = ColumnConfig(kind="numeric")
        elif kind == pl.Boolean or (kind == pl.String and 2 * rows[name].n_unique() <= len(rows)):
            found[name] = ColumnConfig(kind="categorical")
    return found


def row_hashes(raw: pl.DataFrame, fields: pl.DataFrame) -> tuple[str, ...]:
    """Content hash of every row's raw values, "" where no field came of them."""
    present = fields.select(pl.any_horizontal(pl.all().is_not_null())).to_series().to_list()
    return tuple(
        hashlib.sha256(json.dumps(row, default=str, sort_keys=True).encode()).hexdigest()[:32]
        if there
        else ""
        for row, there in zip(raw.iter_rows(named=True), present, strict=True)
    )

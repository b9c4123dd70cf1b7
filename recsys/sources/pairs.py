"""Item pairs without users: co-purchases, variants, substitutes; with photos and texts of the items."""

from pathlib import Path
from typing import Any, ClassVar, Literal

import polars as pl
from pydantic import Field, model_validator

from recsys import schema
from recsys.config import Config
from recsys.dataset import Dataset
from recsys.errors import DataError
from recsys.sources.base import Source, data_root, need
from recsys.sources.reading import (
    is_csv,
    need_columns,
    open_table,
    split_category,
    typed_free,
    typed_ids,
    with_images,
)

_ORIGINS = {"hm-items": "a sample of the Kaggle competition H&M Personalized Fashion Recommendations"}
_KNOWN: dict[str, dict[str, Any]] = {
    "hm-items": {
        "items": "articles.parquet",
        "pairs": "copurchase.parquet",
        "images": "images",
        "columns": {
            "items": {"item_id": "article_id", "title": "prod_name", "text": "detail_desc"},
            "pairs": {"item_id": "article_id", "other_id": "co_article_id"},
        },
        "category": ("product_group_name", "product_type_name"),
        "pair_kind": "co-purchase",
        "licence": "Kaggle H&M Personalized Fashion Recommendations: competition, research and other "
        "non-commercial use under the competition rules",
    },
}


class PairColumns(Config):
    """For each table: our column name = theirs."""

    items: dict[str, str] = Field(default_factory=dict)
    """item_id, title, text, image_path, category, or a free column under a new name; all others are kept."""
    pairs: dict[str, str] = Field(default_factory=dict)
    """item_id, other_id, and where there are such columns rank (from 1) and kind."""


class Pairs(Source):
    """A table of items and a table of pairs between them. The Dataset has no interactions."""

    places: ClassVar[frozenset[str]] = frozenset({"items", "pairs", "images"})

    name: Literal["hm-items"] | None = None
    """A set known by name, looked up in $RECSYS_DATA; or give `items` and `pairs`."""
    items: str | None = None
    """One row an item: .csv, .tsv, .parquet or .jsonl."""
    pairs: str | None = None
    """One row a pair, in the same formats. Without a rank column, the order of an item's rows is the rank."""
    images: str | None = None
    """Folder that image_path values are relative to; without such a column, ITEM_ID.jpg is looked up there."""
    columns: PairColumns = PairColumns()
    """Our column names = theirs, e.g. columns.pairs = {item_id = "sku", other_id = "bought_with"}."""
    category: tuple[str, ...] = ()
    """Columns of items that make up the category path, the widest first; they stay free columns too."""
    category_separator: str | None = None
    """Cuts a category of text into a list, e.g. "|"."""
    pair_kind: str = "related"
    """Kind of the pairs where the table has no such column."""
    ids: Literal["str", "auto"] = "str"
    """str: ids are text exactly as written, "007" keeps its zeros. auto: integers where all of them are such."""
    licence: str = "unknown"
    """Terms of the data; stands in the Dataset and in every bundle."""

    @model_validator(mode="after")
    def _either(self):
        if self.name is None and (self.items is None or self.pairs is None):
            raise ValueError("either name, or items and pairs")
        if self.name is not None and self.model_fields_set - {"name"}:
            raise ValueError("name alone: a known set brings its own settings")
        return self

    def _resolved(self) -> "Pairs":
        """Itself, or a known set with its paths and mapping filled in."""
        if self.name is None:
            return self
        root = data_root()
        if root is None:
            raise DataError(
                f"{self.name} is not at hand", where="$RECSYS_DATA", fix="set it, or give items and pairs"
            )
        known = dict(_KNOWN[self.name])
        for place in self.places:
            known[place] = str(root / self.name / known[place])
        return Pairs(**known)

    def _files(self) -> dict[str, Path]:
        chosen = self._resolved()
        given = {"items": chosen.items, "pairs": chosen.pairs}
        return {what: need(Path(path), what) for what, path in given.items() if path is not None}

    def inputs(self) -> list[Path]:
        return list(self._files().values())

    def image_folder(self) -> Path | None:
        images = self._resolved().images
        return None if images is None else Path(images)

    def prepare(self, out: Path) -> Dataset:
        chosen, files, images = self._resolved(), self._files(), self.image_folder()
        items = open_table(files["items"], "items", chosen.columns.items)
        need_columns(items, [schema.ITEM, *chosen.category], files["items"])
        pairs = open_table(files["pairs"], "pairs", chosen.columns.pairs)
        need_columns(pairs, [schema.ITEM, schema.OTHER], files["pairs"])
        held = [(files["items"], items), (files["pairs"], pairs)]
        items, pairs = typed_ids(held, self.ids, (schema.ITEM, schema.OTHER))
        if is_csv(files["items"]):
            ours = (schema.ITEM, schema.TITLE, schema.TEXT, schema.IMAGE, schema.CATEGORY, *chosen.category)
            free = [name for name in items.collect_schema().names() if name not in ours]
            items = typed_free(items, free, files["items"])
        if is_csv(files["pairs"]) and schema.RANK in pairs.collect_schema():
            pairs = pairs.cast({schema.RANK: pl.Int64})
        if schema.KIND not in pairs.collect_schema():
            pairs = pairs.with_columns(pl.lit(chosen.pair_kind).alias(schema.KIND))
        if chosen.category:
            path = pl.concat_list(pl.col(name).cast(pl.String) for name in chosen.category)
            items = items.with_columns(path.list.drop_nulls().alias(schema.CATEGORY))
        if images is not None:
            items = with_images(items, images)
        return Dataset.from_frames(
            out,
            items=split_category(items, chosen.category_separator),
            pairs=pairs,
            name=self.name or files["pairs"].name.partition(".")[0],
            source=_ORIGINS[self.name] if self.name else ", ".join(path.name for path in files.values()),
            licence=chosen.licence,
            media_root=images,
            origins=files,
        )

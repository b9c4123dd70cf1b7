"""Amazon review data of McAuley's group at UCSD: the releases of 2014, 2018 and 2023."""

import tempfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal

import polars as pl
from pydantic import model_validator

from recsys import schema
from recsys.dataset import Dataset, check_replaceable
from recsys.errors import DataError
from recsys.progress import track
from recsys.sources import amazon_records as records
from recsys.sources.base import Source, need
from recsys.sources.lines import Spool, read_records
from recsys.sources.reading import covering, with_images

_CHUNK_ROWS = 1 << 14


class Amazon(Source):
    """A reviews file and, where you have it, the metadata file of the same category; JSON lines, gzipped or not.

    Weight = the rating. Items: title, text (description and features), category, brand, price, image_url. An item
    that stands in the metadata more than once keeps its first row; an item with reviews and no metadata is a row
    without content. Files are read in a stream and spooled to Parquet beside the Dataset.
    """

    places: ClassVar[frozenset[str]] = frozenset({"reviews", "metadata", "images"})

    reviews: str
    """The reviews, e.g. reviews_Beauty_5.json.gz, Beauty_5.json or Beauty.jsonl."""
    metadata: str | None = None
    """The products, e.g. meta_Beauty.json.gz."""
    images: str | None = None
    """Folder with ASIN.jpg files that you fetched; without it, items have an image_url and no image."""
    release: Literal["auto", "2014", "2018", "2023"] = "auto"
    """auto: told for each file by the keys of its first record. Since 2023 items are parents (parent_asin)."""
    pairs: bool = False
    """Make the pairs also_bought and also_viewed of the metadata (2014, 2018) where both ends are items."""
    unreviewed: bool = True
    """Keep products of the metadata that nobody reviewed."""

    @model_validator(mode="after")
    def _pairs_need_metadata(self):
        if self.pairs and self.metadata is None:
            raise ValueError("metadata as well: the pairs stand there")
        return self

    def _files(self) -> dict[str, Path]:
        given = {"reviews": self.reviews, "metadata": self.metadata}
        return {what: need(Path(path), what) for what, path in given.items() if path is not None}

    def inputs(self) -> list[Path]:
        return list(self._files().values())

    def image_folder(self) -> Path | None:
        return None if self.images is None else Path(self.images)

    def prepare(self, out: Path) -> Dataset:
        files = self._files()
        check_replaceable(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        # beside `out`, on a disk that has room for it; a run sweeps away what begins with a dot
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.spool.") as folder:
            interactions, release = self._interactions(files["reviews"], Path(folder))
            items, pairs = None, None
            if "metadata" in files:
                items, pairs = self._products(files["metadata"], Path(folder), interactions)
            if self.images is not None:
                items = with_images(covering(items, interactions), Path(self.images))
            return Dataset.from_frames(
                out,
                interactions,
                items,
                pairs=pairs,
                name=files["reviews"].name.partition(".")[0],
                source=f"Amazon review data, release of {release}",
                licence="Amazon review data (McAuley, UCSD): academic use",
                missing_items="add",
                media_root=self.images,
            )

    def _interactions(self, path: Path, folder: Path) -> tuple[pl.LazyFrame, str]:
        spool = Spool(folder, "reviews", records.REVIEW)
        reader = _Reader(path, self.release)
        for rows in reader.chunks(records.review):
            spool.write(rows)
        return spool.scan(), reader.release

    def _products(
        self, path: Path, folder: Path, interactions: pl.LazyFrame
    ) -> tuple[pl.LazyFrame, pl.LazyFrame | None]:
        """(items, pairs). Ids are held in memory, content is not."""
        items, pairs = Spool(folder, "items", records.ITEM), Spool(folder, "pairs", records.PAIR)
        for products in _Reader(path, self.release).chunks(self._product):
            items.write([row for row, _ in products])
            pairs.write([pair for _, related in products for pair in related])
        ids = items.scan().select(schema.ITEM).collect()[schema.ITEM]
        reviewed = interactions.select(pl.col(schema.ITEM).unique()).collect()[schema.ITEM]
        keep = ids.is_first_distinct()
        if not self.unreviewed:
            keep &= ids.is_in(reviewed.implode())
        kept_rows = keep.arg_true().implode()
        kept = items.scan().with_row_index("row").filter(pl.col("row").is_in(kept_rows)).drop("row")
        if not self.pairs:
            return kept, None
        known = pl.concat([ids.filter(keep), reviewed]).unique().implode()
        both = pl.col(schema.ITEM).is_in(known) & pl.col(schema.OTHER).is_in(known)
        once = [schema.ITEM, schema.OTHER, schema.KIND]
        related = pairs.scan().filter(both).unique(once, keep="first", maintain_order=True)
        if related.head(1).collect().is_empty():
            raise DataError(
                "no also_bought or also_viewed has items of this Dataset at both ends",
                where=path,
                expected="metadata of 2014 or 2018, with the related products",
                fix="pairs = false",
            )
        return kept, related

    def _product(self, record: records.Record, release: records.Release) -> tuple[tuple, list[tuple]]:
        related = list(records.pairs(record, release)) if self.pairs else []
        return records.item(record, release), related


class _Reader:
    """The records of one file, of the release that its first one shows or that was given."""

    def __init__(self, path: Path, release: str):
        self.path, self.release = path, release

    def chunks(self, extract: Callable[[records.Record, records.Release], Any]) -> Iterator[list[Any]]:
        """extract(record, release) of every record; a malformed one is a DataError naming its line."""
        rows = self._rows(extract)
        chunks = iter(lambda: list(islice(rows, _CHUNK_ROWS)), [])
        return track(chunks, f"reading {self.path.name}")

    def _rows(self, extract: Callable[[records.Record, records.Release], Any]) -> Iterator[Any]:
        for number, record in read_records(self.path):
            try:
                if self.release == "auto":
                    self.release = records.release_of(record)
                yield extract(record, records.RELEASES[self.release])
            except records.Malformed as error:
                raise DataError(
                    f"line {number} {error}", where=self.path, fix="correct it, or set release"
                ) from None

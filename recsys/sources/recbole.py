"""RecBole atomic files: tab-separated, with `name:type` headers."""

from pathlib import Path

import polars as pl

from recsys.dataset import Dataset
from recsys.errors import DataError
from recsys.sources.base import Source, need

_TYPES = {"token": pl.String, "token_seq": pl.String, "float": pl.Float64, "float_seq": pl.String}


def read_atomic(path: Path) -> pl.DataFrame:
    """Columns without their type suffix; tokens stay text, sequences are left as they are.

    Raises DataError for a header without types.
    """
    need(path, "atomic file")
    frame = pl.read_csv(path, separator="\t", infer_schema=False, quote_char=None)
    renamed, casts = {}, []
    for column in frame.columns:
        name, colon, kind = column.rpartition(":")
        if not colon or kind not in _TYPES:
            raise DataError(
                f"header {column!r}", where=path, expected=f"name:type, type one of {', '.join(_TYPES)}"
            )
        renamed[column] = name
        casts.append(pl.col(name).cast(_TYPES[kind]))
    return frame.rename(renamed).with_columns(casts)


class RecBole(Source):
    """A folder NAME with NAME.inter and, where present, NAME.item and NAME.user."""

    root: str
    """The folder."""
    name: str | None = None
    """File stem; None = the folder's name."""
    user: str = "user_id"
    """Column of the user in .inter and .user."""
    item: str = "item_id"
    """Column of the item in .inter and .item."""
    weight: str | None = "rating"
    """Column that becomes the weight; where absent every weight is 1."""
    title: str | None = None
    """Column of .item that becomes the title."""

    def _path(self, ending: str) -> Path:
        folder = Path(self.root)
        return folder / f"{self.name or folder.name}.{ending}"

    def inputs(self) -> list[Path]:
        need(self._path("inter"), "interactions")
        return [path for path in map(self._path, ("inter", "item", "user")) if path.is_file()]

    def prepare(self, out: Path) -> Dataset:
        interactions = read_atomic(self._path("inter"))
        mapping = {self.user: "user_id", self.item: "item_id"}
        if self.weight in interactions.columns:
            mapping[self.weight] = "weight"
        interactions = interactions.rename(mapping, strict=False)
        items = users = None
        if self._path("item").is_file():
            items = read_atomic(self._path("item")).rename({self.item: "item_id"}, strict=False)
            if self.title is not None:
                items = items.rename({self.title: "title"}, strict=False)
        if self._path("user").is_file():
            users = read_atomic(self._path("user")).rename({self.user: "user_id"}, strict=False)
        if "timestamp" not in interactions.columns:
            interactions = interactions.with_row_index("order")
        return Dataset.from_frames(
            out, interactions, items, users, name=self.name or Path(self.root).name, source="RecBole atomic files",
            missing_items="add",
        )  # fmt: skip

"""RecBole atomic files: tab-separated, with `name:type` headers."""

from pathlib import Path
from typing import Any

import polars as pl

from recsys.dataset import Dataset
from recsys.errors import DataError
from recsys.normalise import reading
from recsys.sources.base import Source, need
from recsys.sources.reading import need_columns

_TYPES = {"token": pl.String, "token_seq": pl.String, "float": pl.Float64, "float_seq": pl.String}


def read_atomic(path: Path) -> pl.DataFrame:
    """Columns without their type suffix; tokens stay text, sequences are left as they are.

    Raises DataError for a header without types.
    """
    need(path, "atomic file")
    with reading(path):
        frame = pl.read_csv(path, separator="\t", infer_schema=False, quote_char=None)
        renamed: dict[str, str] = {}
        types: dict[str, Any] = {}
        for column in frame.columns:
            name, colon, kind = column.rpartition(":")
            if not colon or kind not in _TYPES:
                raise DataError(
                    f"header {column!r}",
                    where=path,
                    expected=f"name:type, type one of {', '.join(_TYPES)}",
                    fix="correct the first line",
                )
            renamed[column], types[name] = name, _TYPES[kind]
        return frame.rename(renamed).cast(types)


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
        log = self._path("inter")
        interactions = read_atomic(log)
        need_columns(interactions.lazy(), [self.user, self.item], log)
        mapping = {self.user: "user_id", self.item: "item_id"}
        if self.weight in interactions.columns:
            mapping[self.weight] = "weight"
        interactions = interactions.rename(mapping)
        items = users = None
        if self._path("item").is_file():
            items = read_atomic(self._path("item"))
            names = {self.item: "item_id"} | ({} if self.title is None else {self.title: "title"})
            need_columns(items.lazy(), list(names), self._path("item"))
            items = items.rename(names)
        if self._path("user").is_file():
            users = read_atomic(self._path("user"))
            need_columns(users.lazy(), [self.user], self._path("user"))
            users = users.rename({self.user: "user_id"})
        if "timestamp" not in interactions.columns:
            interactions = interactions.with_row_index("order")
        return Dataset.from_frames(
            out,
            interactions,
            items,
            users,
            name=self.name or Path(self.root).name,
            source="RecBole atomic files",
            missing_items="add",
        )

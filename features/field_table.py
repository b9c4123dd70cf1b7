"""FieldTable: typed attributes of the items or users by id, with provenance and a presence mask per field."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from recsys.errors import FeatureError
from recsys.features.table import FeatureTable, Table, check_values, drawn, read_header, read_rows
from recsys.fields import Categorical, Field, Fields, MultiValued, Numeric
from recsys.files import new_folder
from recsys.schema import Ragged


@dataclass(frozen=True)
class FieldTable(Table):
    """One column per field; null = absent.

    frame: Int64 codes of a categorical field, List(Int64) codes of a multi-valued one, Float32 of a numeric one.
    manifest["fields"]: name -> {kind: categorical | multi | numeric, size: number of codes, ...}.
    """

    frame: pl.DataFrame

    def __post_init__(self):
        described = self.manifest["fields"]
        if self.frame.columns != list(described):
            raise FeatureError(
                f"columns {self.frame.columns}", where=self.name, expected=f"the fields {list(described)}"
            )
        if not len(self.frame) == len(self.ids) == len(self.hashes_E):
            raise FeatureError("rows of ids, fields and hashes differ", where=self.name)

    @property
    def present_E(self) -> np.ndarray:
        """Rows with at least one field."""
        return self.frame.select(pl.any_horizontal(pl.all().is_not_null())).to_series().to_numpy()

    def align(self, ids: pl.Series) -> Fields:
        """Rows in the order of `ids`; every field of an id without a row is absent."""
        row_E = self.places(ids)
        rows = pl.select(pl.when(pl.lit(row_E) >= 0).then(pl.lit(row_E))).to_series().cast(pl.UInt32)
        return fields_of(self.frame.select(pl.all().gather(rows)), self.manifest["fields"])

    def hidden(self, share: float, seed: int) -> "FieldTable":
        """A copy with `share` of the present rows made absent, for missing-modality experiments."""
        gone_E = drawn(self.present_E, share, seed)
        frame = self.frame.select(pl.when(~pl.lit(pl.Series(gone_E))).then(pl.all()))
        hashes_E = tuple(np.where(gone_E, "", self.hashes_E).tolist())
        manifest = dict(self.manifest) | {"hidden": share, "hidden_seed": seed}
        return replace(self, frame=frame, hashes_E=hashes_E, manifest=manifest)

    def save(self, folder: str | Path) -> None:
        with new_folder(Path(folder)) as target:
            self.frame.write_parquet(target / "fields.parquet")
            rows = pl.DataFrame({"id": self.ids, "hash": list(self.hashes_E)})
            rows.write_parquet(target / "rows.parquet")
            self.write_header(target, "fields", "fields.parquet")

    @classmethod
    def load(cls, folder: str | Path) -> "FieldTable":
        """Raises FeatureError where the folder is no table of fields, or was changed."""
        folder = Path(folder)
        header = read_header(folder, "fields")
        check_values(folder / "fields.parquet", header)
        rows = read_rows(folder, "id", "hash")
        table = cls(
            header["entity"],
            header["name"],
            rows["id"],
            tuple(rows["hash"].to_list()),
            header["manifest"],
            pl.read_parquet(folder / "fields.parquet"),
        )
        table.check_fingerprint(folder, header["fingerprint"])
        return table


def fields_of(frame: pl.DataFrame, described: Mapping[str, Any]) -> Fields:
    """The columns of a table's frame as fields. described: the manifest's part on them."""
    return Fields({name: _field(frame[name], facts) for name, facts in described.items()})


def load_table(folder: str | Path) -> Table:
    """A FeatureTable or a FieldTable, whichever lies in `folder`."""
    folder = Path(folder)
    kinds: dict[str, type[FeatureTable] | type[FieldTable]] = {"dense": FeatureTable, "fields": FieldTable}
    kind = read_header(folder)["kind"]
    if kind not in list(kinds):  # which may be anything, of a damaged file
        raise FeatureError(f"a table of kind {kind!r}", where=folder, expected=" or ".join(kinds))
    return kinds[kind].load(folder)


def _field(column: pl.Series, described: Mapping[str, Any]) -> Field:
    kind: Literal["categorical", "multi", "numeric"] = described["kind"]
    present_E = column.is_not_null().to_numpy()
    if kind == "numeric":
        return Numeric(column.fill_null(np.nan).to_numpy().astype(np.float32), present_E)
    if kind == "categorical":
        return Categorical(column.fill_null(0).to_numpy().astype(np.int64), present_E, described["size"])
    lengths = column.list.len().fill_null(0).to_numpy().astype(np.int64)
    flat = column.explode().drop_nulls().to_numpy().astype(np.int64)
    return MultiValued(Ragged.from_lengths(flat, lengths), present_E, described["size"])

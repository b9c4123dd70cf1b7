"""FeatureTable: one modality of the items or users as vectors, with provenance and a presence mask."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from recsys.errors import FeatureError
from recsys.files import digest, file_sha256, new_folder, write_json
from recsys.schema import Dense
from recsys.splits import positions

VERSION = 3
_ESSENTIAL = {"entity", "name", "manifest", "values", "fingerprint"}


@dataclass(frozen=True)
class Table:
    """What tables of features share: rows by id, with provenance.

    ids: typed, verbatim. hashes_E: content hash of each row's source ("" where absent). manifest: extractor, weights
    hash, preprocessing, template; `split_id` where the table was fitted.
    """

    entity: Literal["item", "user"]
    name: str
    ids: pl.Series
    hashes_E: tuple[str, ...]
    manifest: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """Hash over who made it from what: manifest, ids, and the content hash of every row."""
        ids = [str(value) for value in self.ids.to_list()]
        return digest({"manifest": dict(self.manifest), "ids": ids, "rows": list(self.hashes_E)})

    def check_split(self, split_id: str) -> None:
        """Raises FeatureError where the table was fitted under another split."""
        fitted = self.manifest.get("split_id")
        if fitted is not None and fitted != split_id:
            raise FeatureError(
                f"table was fitted under split {fitted[:12]}",
                where=self.name,
                expected=split_id[:12],
                fix="extract it again",
            )

    def write_header(self, folder: Path, kind: Literal["dense", "fields"], values: str) -> None:
        """table.json beside the rows and the file `values`."""
        header = {
            "version": VERSION,
            "kind": kind,
            "entity": self.entity,
            "name": self.name,
            "manifest": dict(self.manifest),
            "values": file_sha256(folder / values),
            "fingerprint": self.fingerprint,
        }
        write_json(folder / "table.json", header)

    def check_fingerprint(self, folder: Path, expected: str) -> None:
        """Raises FeatureError where the rows are not those that were saved."""
        if self.fingerprint != expected:
            raise FeatureError("rows and fingerprint differ", where=folder, fix="extract the table again")

    def places(self, ids: pl.Series) -> np.ndarray:
        """Row of every id, -1 where there is none. Raises FeatureError for ids of another type."""
        if ids.dtype != self.ids.dtype:
            raise FeatureError(f"ids are {self.ids.dtype}", where=self.name, expected=str(ids.dtype))
        return positions(ids, self.ids)


@dataclass(frozen=True)
class FeatureTable(Table):
    """Vectors of one modality by id.

    values_EF: float32, absent rows hold NaN so that a forgotten mask fails the finite check of training.
    present_E: bool.
    """

    values_EF: np.ndarray
    present_E: np.ndarray

    def __post_init__(self):
        rows = len(self.ids)
        if not len(self.values_EF) == len(self.present_E) == len(self.hashes_E) == rows:
            raise FeatureError("rows of ids, values, mask and hashes differ", where=self.name)
        if not np.isfinite(self.values_EF[self.present_E]).all():
            raise FeatureError(
                "a present row holds NaN or infinity", where=self.name, fix="check the extractor"
            )
        if not np.isnan(self.values_EF[~self.present_E]).all():
            raise FeatureError("an absent row holds numbers", where=self.name, expected="NaN in absent rows")

    @property
    def width(self) -> int:
        return self.values_EF.shape[1]

    def align(self, ids: pl.Series) -> Dense:
        """Rows in the order of `ids`; an id without a row is absent."""
        row_E = self.places(ids)
        values_EF = np.full((len(ids), self.width), np.nan, np.float32)
        known_E = row_E >= 0
        values_EF[known_E] = self.values_EF[row_E[known_E]]
        present_E = np.zeros(len(ids), bool)
        present_E[known_E] = self.present_E[row_E[known_E]]
        return Dense(values_EF, present_E)

    def hidden(self, share: float, seed: int) -> "FeatureTable":
        """A copy with `share` of the present rows made absent, for missing-modality experiments."""
        gone_E = drawn(self.present_E, share, seed)
        values_EF, present_E = self.values_EF.copy(), self.present_E & ~gone_E
        values_EF[gone_E] = np.nan
        hashes_E = tuple(np.where(present_E, self.hashes_E, "").tolist())
        manifest = dict(self.manifest) | {"hidden": share, "hidden_seed": seed}
        return replace(self, values_EF=values_EF, present_E=present_E, hashes_E=hashes_E, manifest=manifest)

    def save(self, folder: str | Path) -> None:
        with new_folder(Path(folder)) as target:
            np.save(target / "values.npy", self.values_EF, allow_pickle=False)
            rows = pl.DataFrame({"id": self.ids, "present": self.present_E, "hash": list(self.hashes_E)})
            rows.write_parquet(target / "rows.parquet")
            self.write_header(target, "dense", "values.npy")

    @classmethod
    def load(cls, folder: str | Path) -> "FeatureTable":
        """Raises FeatureError where the folder is no table, or its rows or values were changed."""
        folder = Path(folder)
        header = read_header(folder, "dense")
        check_values(folder / "values.npy", header)
        rows = read_rows(folder, "id", "hash", "present")
        values_EF = np.load(folder / "values.npy", allow_pickle=False)
        table = cls(
            header["entity"],
            header["name"],
            rows["id"],
            tuple(rows["hash"].to_list()),
            header["manifest"],
            values_EF,
            rows["present"].to_numpy(),
        )
        table.check_fingerprint(folder, header["fingerprint"])
        return table


def drawn(present_E: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Mask of `share` of the present rows, at random."""
    present = np.flatnonzero(present_E)
    mask_E = np.zeros(len(present_E), bool)
    mask_E[np.random.default_rng(seed).permutation(present)[: round(share * len(present))]] = True
    return mask_E


def read_header(folder: Path, kind: str | None = None) -> dict[str, Any]:
    """table.json. Raises FeatureError where there is none, it is damaged, or the table is of another kind."""
    again = "recsys features extract"
    try:
        header = json.loads((folder / "table.json").read_text(encoding="utf-8"))
        found = header["kind"]
        if lacking := _ESSENTIAL - header.keys():
            raise KeyError(min(lacking))
    except (FileNotFoundError, NotADirectoryError):
        raise FeatureError("not a feature table (no table.json)", where=folder, fix=again) from None
    except (ValueError, KeyError, TypeError) as error:
        raise FeatureError(f"table.json is damaged ({error})", where=folder, fix=again) from None
    if kind not in (None, found):
        raise FeatureError(f"a table of kind {found!r}", where=folder, expected=repr(kind))
    return header


def read_rows(folder: Path, *columns: str) -> pl.DataFrame:
    """rows.parquet. Raises FeatureError where it is missing or damaged."""
    try:
        return pl.read_parquet(folder / "rows.parquet").select(columns)
    except (OSError, pl.exceptions.PolarsError):
        raise FeatureError(
            "rows.parquet is missing or damaged", where=folder, fix="extract the table again"
        ) from None


def check_values(path: Path, header: Mapping[str, Any]) -> None:
    """Raises FeatureError where the values file is missing or was changed."""
    if not path.is_file() or file_sha256(path) != header["values"]:
        raise FeatureError("the values were changed", where=path.parent, fix="extract the table again")

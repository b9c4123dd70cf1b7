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

VERSION = 2


@dataclass(frozen=True)
class FeatureTable:
    """Vectors of one modality by id.

    ids: typed, verbatim. values_EF: float32, absent rows hold NaN so that a forgotten mask fails the finite
    check of training. present_E: bool. hashes_E: content hash of each row's source ("" where absent).
    manifest: extractor, weights hash, preprocessing, template; `split_id` where the table was fitted.
    """

    entity: Literal["item", "user"]
    name: str
    ids: pl.Series
    values_EF: np.ndarray
    present_E: np.ndarray
    hashes_E: tuple[str, ...]
    manifest: Mapping[str, Any]

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

    def align(self, ids: pl.Series) -> Dense:
        """Rows in the order of `ids`; an id without a row is absent."""
        if ids.dtype != self.ids.dtype:
            raise FeatureError(f"ids are {self.ids.dtype}", where=self.name, expected=str(ids.dtype))
        rows = pl.DataFrame({"id": self.ids, "row": np.arange(len(self.ids))})
        found = ids.to_frame("id").join(rows, on="id", how="left", maintain_order="left")["row"]
        row_E = found.fill_null(-1).to_numpy()
        values_EF = np.full((len(ids), self.width), np.nan, np.float32)
        known_E = row_E >= 0
        values_EF[known_E] = self.values_EF[row_E[known_E]]
        present_E = np.zeros(len(ids), bool)
        present_E[known_E] = self.present_E[row_E[known_E]]
        return Dense(values_EF, present_E)

    def hidden(self, share: float, seed: int) -> "FeatureTable":
        """A copy with `share` of the present rows made absent, for missing-modality experiments."""
        present = np.flatnonzero(self.present_E)
        chosen = np.random.default_rng(seed).permutation(present)[: round(share * len(present))]
        values, mask = self.values_EF.copy(), self.present_E.copy()
        values[chosen], mask[chosen] = np.nan, False
        gone = set(chosen.tolist())
        hashes = tuple("" if row in gone else value for row, value in enumerate(self.hashes_E))
        manifest = dict(self.manifest) | {"hidden": share, "hidden_seed": seed}
        return replace(self, values_EF=values, present_E=mask, hashes_E=hashes, manifest=manifest)

    def save(self, folder: Path) -> None:
        with new_folder(folder) as target:
            np.save(target / "values.npy", self.values_EF, allow_pickle=False)
            rows = pl.DataFrame({"id": self.ids, "present": self.present_E, "hash": list(self.hashes_E)})
            rows.write_parquet(target / "rows.parquet")
            header = {
                "version": VERSION,
                "entity": self.entity,
                "name": self.name,
                "manifest": dict(self.manifest),
                "values": file_sha256(target / "values.npy"),
            }
            write_json(target / "table.json", header | {"fingerprint": self.fingerprint})

    @classmethod
    def load(cls, folder: Path) -> "FeatureTable":
        """Raises FeatureError where the folder is no table, or its rows or values were changed."""
        try:
            header = json.loads((folder / "table.json").read_text())
        except FileNotFoundError:
            raise FeatureError(
                "not a feature table (no table.json)", where=folder, fix="recsys features extract"
            ) from None
        if file_sha256(folder / "values.npy") != header["values"]:
            raise FeatureError("the values were changed", where=folder, fix="extract the table again")
        rows = pl.read_parquet(folder / "rows.parquet")
        values_EF = np.load(folder / "values.npy", allow_pickle=False)
        table = cls(
            header["entity"],
            header["name"],
            rows["id"],
            values_EF,
            rows["present"].to_numpy(),
            tuple(rows["hash"].to_list()),
            header["manifest"],
        )
        if table.fingerprint != header["fingerprint"]:
            raise FeatureError("rows and fingerprint differ", where=folder, fix="extract the table again")
        return table

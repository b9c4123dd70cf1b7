"""Dataset: a Parquet folder with items, interactions, optional users and pairs, and a fingerprint.

    items         item_id, title, text, image_path, category (list), any further columns
    interactions  user_id, item_id, timestamp (UTC s), weight, event; optional order, timestamp_hi
    users         user_id, any columns
    pairs         item_id, other_id, rank, kind

Ids stay verbatim and typed: "0108775015" keeps its zero and "42" is not 42.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import polars as pl

from recsys import schema
from recsys.errors import DataError
from recsys.files import digest, new_folder, write_json
from recsys.fingerprint import parquet_fingerprint
from recsys.normalise import (
    check_interactions,
    check_pairs,
    lazy,
    normal_interactions,
    normal_items,
    normal_pairs,
    normal_users,
    reading,
    require_unique,
)

TABLES = ("interactions", "items", "users", "pairs")
_ESSENTIAL = {"schema_version", "tables", "fingerprint"}


@dataclass(frozen=True)
class Dataset:
    """An opened Dataset folder. Tables are lazy Polars frames; nothing is read until asked for."""

    path: Path
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> "Dataset":
        """Raises DataError where the folder is missing, incomplete or from a newer schema."""
        folder = Path(path)
        try:
            manifest = json.loads((folder / "dataset.json").read_text())
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(
                "not a Dataset folder (no dataset.json)",
                where=folder,
                fix="make one with: recsys data prepare",
            ) from None
        except json.JSONDecodeError as error:
            raise DataError(
                f"dataset.json is damaged ({error})", where=folder, fix="prepare it again"
            ) from None
        if not isinstance(manifest, dict) or not manifest.keys() >= _ESSENTIAL:
            raise DataError("dataset.json is not that of a Dataset", where=folder, fix="prepare it again")
        if manifest["schema_version"] > schema.SCHEMA_VERSION:
            raise DataError(
                f"schema version {manifest['schema_version']}",
                where=folder,
                expected=f"at most {schema.SCHEMA_VERSION}",
                fix="upgrade recsys",
            )
        for table in manifest["tables"]:
            if not (folder / f"{table}.parquet").is_file():
                raise DataError(f"{table}.parquet is missing", where=folder, fix="prepare the Dataset again")
        return cls(folder, manifest)

    @classmethod
    def from_frames(
        cls,
        path: str | Path,
        interactions: Any = None,
        items: Any = None,
        users: Any = None,
        pairs: Any = None,
        *,
        name: str = "custom",
        source: str = "frames",
        licence: str = "unknown",
        licence_text: str | None = None,
        missing_items: Literal["error", "add", "drop"] = "error",
        media_root: str | Path | None = None,
        origins: Mapping[str, object] | None = None,
    ) -> "Dataset":
        """Write a Dataset folder from Polars (eager or lazy), pandas or Arrow frames and open it.

        items is synthesised where it is not given. Interactions of items without a row are an error
        unless missing_items is "add" (rows without content) or "drop" (the interactions go).
        image_path values are relative to media_root. Lazy frames are streamed, never held whole.
        origins: table -> file, named where a lazy frame turns out to be unreadable.
        An older Dataset at `path` is replaced; anything else there is an error.
        Raises DataError naming table, column and first offending value; then no folder is left behind.
        """
        if interactions is None and (items is None or pairs is None):
            raise DataError("nothing to make a Dataset from", fix="give interactions, or items and pairs")
        origins = origins or {}
        check_replaceable(Path(path))
        with new_folder(Path(path)) as folder:
            stored = _Tables(folder, origins)
            if interactions is not None:
                stored.write("interactions", lambda: normal_interactions(lazy(interactions, "interactions")))
                check_interactions(stored.scan("interactions"))
            if items is None:
                stored.write("items", lambda: normal_items(_distinct_items(stored).to_frame().lazy()))
            else:
                stored.write("items", lambda: normal_items(lazy(items, "items")))
                require_unique(stored.ids("items", schema.ITEM), "items")
                if interactions is not None:
                    _complete(stored, missing_items)
            if users is not None:
                stored.write("users", lambda: normal_users(lazy(users, "users")))
                require_unique(stored.ids("users", schema.USER), "users")
            if pairs is not None:
                stored.write("pairs", lambda: normal_pairs(lazy(pairs, "pairs")))
                check_pairs(stored.scan("pairs"), stored.ids("items", schema.ITEM))
            _check_user_types(stored)
            fingerprints = {table: parquet_fingerprint(folder / f"{table}.parquet") for table in stored.names}
            scans = {table: stored.scan(table) for table in stored.names}
            manifest = {
                "schema_version": schema.SCHEMA_VERSION,
                "name": name,
                "source": source,
                "licence": licence,
                "tables": stored.names,
                "counts": {table: scan.select(pl.len()).collect().item() for table, scan in scans.items()},
                "id_type": _id_types(scans),
                "has_time": _has_time(scans.get("interactions")),
                "media_root": str(Path(media_root).resolve()) if media_root is not None else None,
                "fingerprint": digest({"schema": schema.SCHEMA_VERSION, "tables": fingerprints}),
            }
            if licence_text is not None:
                (folder / "LICENCE.txt").write_text(licence_text, encoding="utf-8")
            write_json(folder / "dataset.json", manifest)
        return cls.open(path)

    @property
    def name(self) -> str:
        return self.manifest["name"]

    @property
    def fingerprint(self) -> str:
        return self.manifest["fingerprint"]

    @property
    def id_type(self) -> dict[str, str]:
        """{"user": "int" | "str", "item": "int" | "str"}"""
        return self.manifest["id_type"]

    @property
    def has_time(self) -> bool:
        return self.manifest["has_time"]

    @property
    def media_root(self) -> Path | None:
        root = self.manifest["media_root"]
        return Path(root) if root is not None else None

    def has(self, table: str) -> bool:
        return table in self.manifest["tables"]

    def scan(self, table: str) -> pl.LazyFrame:
        """Lazy frame of one table; raises DataError where the Dataset has none."""
        if not self.has(table):
            raise DataError(
                f"no {table} table", where=self.path, fix=f"it has: {', '.join(self.manifest['tables'])}"
            )
        return pl.scan_parquet(self.path / f"{table}.parquet")

    @property
    def interactions(self) -> pl.LazyFrame:
        return self.scan("interactions")

    @cached_property
    def items(self) -> pl.DataFrame:
        return self.scan("items").collect()

    @property
    def licence_text(self) -> str | None:
        path = self.path / "LICENCE.txt"
        return path.read_text(encoding="utf-8") if path.exists() else None


class _Tables:
    """The tables written so far to a folder that is being made."""

    def __init__(self, folder: Path, origins: Mapping[str, object]):
        self.folder, self.origins = folder, origins
        self.names: list[str] = []

    def write(self, table: str, frame: Callable[[], pl.LazyFrame]) -> None:
        """Stream a frame to TABLE.parquet in place of an older one; what its reader raises names the origin."""
        path, fresh = self.folder / f"{table}.parquet", self.folder / f"{table}.new"
        with reading(self.origins.get(table, table)):
            frame().sink_parquet(fresh, row_group_size=1 << 20)
        fresh.replace(path)
        if table not in self.names:
            self.names.append(table)

    def scan(self, table: str) -> pl.LazyFrame:
        return pl.scan_parquet(self.folder / f"{table}.parquet")

    def ids(self, table: str, column: str) -> pl.Series:
        return self.scan(table).select(column).collect()[column]


def check_replaceable(path: Path) -> None:
    """Raises DataError where something that is no Dataset lies at `path`: it would be deleted."""
    if path.is_dir():
        if (path / "dataset.json").is_file() or not any(path.iterdir()):
            return
        raise DataError("the folder holds something else", where=path, fix="give a new folder, or empty it")
    if path.exists():
        raise DataError("there is a file of this name", where=path, fix="give a new folder")


def _distinct_items(stored: _Tables) -> pl.Series:
    distinct = stored.scan("interactions").select(pl.col(schema.ITEM).unique().sort())
    return distinct.collect(engine="streaming")[schema.ITEM]


def _complete(stored: _Tables, missing_items: str) -> None:
    """Make items cover every interaction, or the interactions fit the items, as `missing_items` says."""
    item_ids, items = _distinct_items(stored), stored.scan("items")
    known = stored.ids("items", schema.ITEM)
    if known.dtype != item_ids.dtype:
        raise _two_types("items", "interactions", known.dtype, item_ids.dtype, schema.ITEM)
    missing = item_ids.filter(~item_ids.is_in(known.implode()))
    if missing.is_empty():
        return
    if missing_items == "add":
        stored.write("items", lambda: pl.concat([items, missing.to_frame().lazy()], how="diagonal"))
    elif missing_items == "drop":
        if len(missing) == len(item_ids):
            raise DataError(
                f"no item_id has a row in items (first: {missing[0]!r})",
                where="interactions",
                expected="the same ids in both tables",
                fix="compare how they are written (type, leading zeros)",
            )
        rows = stored.scan("interactions").filter(~pl.col(schema.ITEM).is_in(missing.implode()))
        stored.write("interactions", lambda: rows)
    else:
        raise DataError(
            f"{len(missing)} item_id values in interactions have no row (first: {missing[0]!r})",
            where="items",
            fix='pass missing_items="add" or "drop", or add the rows',
        )


def _check_user_types(stored: _Tables) -> None:
    if {"interactions", "users"} <= set(stored.names):
        kind, other_kind = (
            stored.scan(table).collect_schema()[schema.USER] for table in ("interactions", "users")
        )
        if kind != other_kind:
            raise _two_types("interactions", "users", kind, other_kind, schema.USER)


def _two_types(one: str, other: str, kind: pl.DataType, other_kind: pl.DataType, column: str) -> DataError:
    return DataError(
        f"{one}.{column} is {kind} but {other}.{column} is {other_kind}",
        expected="one type, ids are kept verbatim",
        fix="cast one of them",
    )


def _id_types(scans: dict[str, pl.LazyFrame]) -> dict[str, str]:
    types = {"item": scans["items"].collect_schema()[schema.ITEM]}
    if "interactions" in scans:
        types["user"] = scans["interactions"].collect_schema()[schema.USER]
    return {entity: "str" if kind == pl.String else "int" for entity, kind in types.items()}


def _has_time(interactions: pl.LazyFrame | None) -> bool:
    if interactions is None:
        return False
    nulls = interactions.select(pl.col(schema.TIME).null_count()).collect().item()
    return nulls == 0

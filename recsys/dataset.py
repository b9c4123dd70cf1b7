"""Dataset: a Parquet folder with items, interactions, optional users and pairs, and a fingerprint.

    items         item_id, title, text, image_path, category (list), any further columns
    interactions  user_id, item_id, timestamp (UTC s), weight, event; optional order, timestamp_hi
    users         user_id, any columns
    pairs         item_id, other_id, rank, kind

Ids stay verbatim and typed: "0108775015" keeps its zero and "42" is not 42.
"""

import json
from collections.abc import Mapping
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
    lazy,
    normal_interactions,
    normal_items,
    normal_pairs,
    normal_users,
    require_unique,
)

TABLES = ("interactions", "items", "users", "pairs")


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
        except FileNotFoundError:
            raise DataError(
                "not a Dataset folder (no dataset.json)",
                where=folder,
                fix="make one with: recsys data prepare",
            ) from None
        except json.JSONDecodeError as error:
            raise DataError(
                f"dataset.json is damaged ({error})", where=folder, fix="prepare it again"
            ) from None
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
    ) -> "Dataset":
        """Write a Dataset folder from Polars (eager or lazy), pandas or Arrow frames and open it.

        items is synthesised where it is not given. Interactions of items without a row are an error
        unless missing_items is "add" (rows without content) or "drop" (the interactions go).
        image_path values are relative to media_root. Lazy frames are streamed, never held whole.
        Raises DataError naming table, column and first offending value; then no folder is left behind.
        """
        if interactions is None and (items is None or pairs is None):
            raise DataError("nothing to make a Dataset from", fix="give interactions, or items and pairs")
        with new_folder(Path(path)) as folder:
            tables: list[str] = []
            if interactions is not None:
                frame = normal_interactions(lazy(interactions, "interactions"))
                frame.sink_parquet(folder / "interactions.parquet", row_group_size=1 << 20)
                tables.append("interactions")
                check_interactions(pl.scan_parquet(folder / "interactions.parquet"))
            item_ids = _distinct_items(folder) if interactions is not None else None
            if items is None:
                items_frame = normal_items(item_ids.to_frame().lazy())
            else:
                items_frame = normal_items(lazy(items, "items"))
                if item_ids is not None:
                    items_frame = _complete(folder, items_frame, item_ids, missing_items)
            items_eager = items_frame.collect()
            require_unique(items_eager, schema.ITEM, "items")
            items_eager.write_parquet(folder / "items.parquet")
            tables.append("items")
            if users is not None:
                users_eager = normal_users(lazy(users, "users")).collect()
                require_unique(users_eager, schema.USER, "users")
                users_eager.write_parquet(folder / "users.parquet")
                tables.append("users")
            if pairs is not None:
                normal_pairs(lazy(pairs, "pairs"), items_eager).write_parquet(folder / "pairs.parquet")
                tables.append("pairs")
            _check_id_types(folder, tables)
            fingerprints = {table: parquet_fingerprint(folder / f"{table}.parquet") for table in tables}
            scans = {table: pl.scan_parquet(folder / f"{table}.parquet") for table in tables}
            manifest = {
                "schema_version": schema.SCHEMA_VERSION,
                "name": name,
                "source": source,
                "licence": licence,
                "tables": tables,
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


def _distinct_items(folder: Path) -> pl.Series:
    scan = pl.scan_parquet(folder / "interactions.parquet")
    return scan.select(pl.col(schema.ITEM).unique().sort()).collect(engine="streaming")[schema.ITEM]


def _complete(folder: Path, items: pl.LazyFrame, item_ids: pl.Series, missing_items: str) -> pl.LazyFrame:
    """Make items cover every interaction, or the interactions fit the items, as `missing_items` says."""
    known = items.select(schema.ITEM).collect()[schema.ITEM]
    if known.dtype != item_ids.dtype:
        raise DataError(
            f"items.item_id is {known.dtype} but interactions.item_id is {item_ids.dtype}",
            expected="one type, ids are kept verbatim",
            fix="cast one of them",
        )
    missing = item_ids.filter(~item_ids.is_in(known.implode()))
    if missing.is_empty():
        return items
    if missing_items == "add":
        return pl.concat([items, missing.to_frame().lazy()], how="diagonal")
    if missing_items == "drop":
        path = folder / "interactions.parquet"
        kept = folder / "kept.parquet"
        pl.scan_parquet(path).filter(~pl.col(schema.ITEM).is_in(missing.implode())).sink_parquet(kept)
        kept.replace(path)
        return items
    raise DataError(
        f"{len(missing)} item_id values in interactions have no row (first: {missing[0]!r})",
        where="items",
        fix='pass missing_items="add" or "drop", or add the rows',
    )


def _check_id_types(folder: Path, tables: list[str]) -> None:
    for column, pair in {
        schema.USER: ("interactions", "users"),
        schema.ITEM: ("interactions", "items"),
    }.items():
        if not all(table in tables for table in pair):
            continue
        kinds = [pl.scan_parquet(folder / f"{table}.parquet").collect_schema()[column] for table in pair]
        if kinds[0] != kinds[1]:
            raise DataError(
                f"{pair[0]}.{column} is {kinds[0]} but {pair[1]}.{column} is {kinds[1]}",
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

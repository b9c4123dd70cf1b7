"""Tables in CSV, TSV, Parquet and JSON lines under a column mapping: what the table and pairs sources read with.

Text files carry no types, so every CSV column arrives as text and is converted by what it is for; nothing is
inferred from the first rows, and an id is never taken for a number by accident.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import polars as pl

from recsys import schema
from recsys.errors import DataError, nearest
from recsys.normalise import reading
from recsys.sources.base import image_names, need

FORMATS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".tab": "csv",
    ".txt": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "json lines",
    ".ndjson": "json lines",
}
_TABBED = (".tsv", ".tab")
_PACKED = (".gz", ".zst")
# what survives a round trip through a number: no leading zero, no plus
_INTEGER = r"^(0|-?[1-9][0-9]{0,17})$"
_DECIMAL = r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?$"
_ISO = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}"
UNITS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
TimeUnit = Literal["s", "ms", "us", "ns"]


def is_csv(path: Path) -> bool:
    return FORMATS.get(_ending(path)) == "csv"


def _ending(path: Path) -> str:
    ending = path.suffix.lower()
    return Path(path.stem).suffix.lower() if ending in _PACKED else ending


def _numbered(names: list[str]) -> list[str]:
    """Names of our own: whether Polars counts from 0 or 1 depends on its version."""
    return [f"column_{number}" for number in range(1, len(names) + 1)]


def open_table(
    path: Path, what: str, mapping: Mapping[str, str], *, separator: str | None = None, header: bool = True
) -> pl.LazyFrame:
    """The columns under our names: those of `mapping` (ours -> theirs) first, then the others as they are called.

    A column of theirs that already bears one of our mapped names gives way. Raises DataError for an unknown format,
    an unreadable file, or a mapped column that is not there.
    """
    need(path, what)
    ending = _ending(path)
    if ending not in FORMATS:
        raise DataError(
            f"unknown kind of file {ending!r} ({what})", where=path, expected=f"one of: {', '.join(FORMATS)}"
        )
    with reading(path):
        if FORMATS[ending] == "parquet":
            scan = pl.scan_parquet(path)
        elif FORMATS[ending] == "json lines":
            scan = pl.scan_ndjson(path, infer_schema_length=None)
        else:
            mark = separator or ("\t" if ending in _TABBED else ",")
            names = None if header else _numbered
            scan = pl.scan_csv(
                path, separator=mark, has_header=header, infer_schema=False, with_column_names=names
            )
        columns = scan.collect_schema().names()
    for ours, theirs in mapping.items():
        if theirs not in columns:
            raise DataError(
                f"column {theirs!r} (for {ours}) is missing", where=path, fix=nearest(theirs, columns)
            )
    rest = [name for name in columns if name not in mapping and name not in mapping.values()]
    return scan.select(*[pl.col(theirs).alias(ours) for ours, theirs in mapping.items()], *rest)


def need_columns(scan: pl.LazyFrame, names: Iterable[str], path: Path) -> None:
    """Raises DataError naming the file and the first of `names` that is not a column."""
    with reading(path):
        columns = scan.collect_schema().names()
    missing = [name for name in names if name not in columns]
    if missing:
        raise DataError(
            f"column {missing[0]!r} is missing",
            where=path,
            expected=f"columns {', '.join(names)}",
            fix=f"found: {', '.join(columns)}",
        )


def typed_ids(
    tables: Sequence[tuple[Path, pl.LazyFrame]], ids: Literal["str", "auto"], columns: tuple[str, ...]
) -> list[pl.LazyFrame]:
    """The tables with the id `columns` of one entity in one type.

    "str": text, verbatim. "auto": integers where every table holds integers, or text that is nothing but
    integers as a computer writes them ("7", not "007"); else text.
    """
    held = [(path, scan, _id_columns(path, scan, columns)) for path, scan in tables]
    integers = ids == "auto" and all(_integers_only(path, scan, names) for path, scan, names in held)
    kind = pl.Int64 if integers else pl.String
    return [scan.with_columns(pl.col(name).cast(kind) for name in names) for _, scan, names in held]


def _id_columns(path: Path, scan: pl.LazyFrame, columns: tuple[str, ...]) -> list[str]:
    kinds = {name: kind for name, kind in scan.collect_schema().items() if name in columns}
    for name, kind in kinds.items():
        if not (kind.is_integer() or kind == pl.String or isinstance(kind, pl.Categorical | pl.Enum)):
            raise DataError(
                f"column {name!r} has type {kind}",
                where=path,
                expected="integers or text as ids",
                fix="convert it (numbers with a point as ids usually mean missing values)",
            )
    return list(kinds)


def _integers_only(path: Path, scan: pl.LazyFrame, names: list[str]) -> bool:
    kinds = {name: scan.collect_schema()[name] for name in names}
    texts = [name for name, kind in kinds.items() if not kind.is_integer()]
    if not texts:
        return True
    with reading(path):
        plain = scan.select(pl.col(texts).cast(pl.String).str.contains(_INTEGER).all())
        return all(plain.collect(engine="streaming").row(0))


def seconds(scan: pl.LazyFrame, column: str, unit: TimeUnit, path: Path) -> pl.LazyFrame:
    """`column` as UTC seconds: numbers by `unit`, text as numbers or as ISO 8601 (by its first value; an hour without
    an offset is UTC). What cannot be read becomes null, which a Dataset refuses."""
    kind, value, divisor = scan.collect_schema()[column], pl.col(column), UNITS[unit]
    if kind.is_integer():
        return scan.with_columns(value.cast(pl.Int64) // divisor)
    if kind.is_float():
        return scan.with_columns((value / divisor).floor())
    if kind != pl.String:
        return scan
    with reading(path):
        first = scan.select(value).drop_nulls().head(1).collect(engine="streaming").to_series()
    if first.str.contains(_ISO).any():
        moment = value.str.to_datetime(strict=False, time_zone="UTC").dt.epoch("s")
        return scan.with_columns(pl.when(value.str.contains(_ISO)).then(moment))
    if first.cast(pl.Float64, strict=False).is_null().any():
        raise DataError(
            f"{column} is {first[0]!r}",
            where=path,
            expected="a number or an ISO 8601 moment (2024-05-31T10:00:00Z)",
            fix="convert the column first",
        )
    whole = value.cast(pl.Int64, strict=False) // divisor  # exact for nanoseconds, which float64 is not
    broken = (value.cast(pl.Float64, strict=False) / divisor).floor().cast(pl.Int64, strict=False)
    return scan.with_columns(pl.coalesce(whole, broken))


def typed_free(scan: pl.LazyFrame, names: Iterable[str], path: Path) -> pl.LazyFrame:
    """The text columns `names` that hold nothing but plain numbers, as numbers; "01234" keeps its column text."""
    names = list(names)
    if not names:
        return scan
    facts = [
        fact
        for name in names
        for fact in (
            pl.col(name).count().alias(f"{name}:count"),
            pl.col(name).str.contains(_INTEGER).all().alias(f"{name}:integer"),
            pl.col(name).str.contains(_DECIMAL).all().alias(f"{name}:decimal"),
        )
    ]
    with reading(path):
        found = scan.select(facts).collect(engine="streaming").row(0, named=True)
    numeric = [name for name in names if found[f"{name}:count"] and found[f"{name}:decimal"]]
    return scan.cast({name: pl.Int64 if found[f"{name}:integer"] else pl.Float64 for name in numeric})


def split_category(scan: pl.LazyFrame, separator: str | None) -> pl.LazyFrame:
    """A category of text cut at `separator` into a list without blank parts."""
    if separator is None or scan.collect_schema().get(schema.CATEGORY) != pl.String:
        return scan
    parts = pl.col(schema.CATEGORY).str.split(separator).list.eval(pl.element().str.strip_chars())
    return scan.with_columns(parts.list.eval(pl.element().filter(pl.element() != "")).alias(schema.CATEGORY))


def covering(items: pl.LazyFrame | None, log: pl.LazyFrame) -> pl.LazyFrame:
    """The items, and after them a row without content for each one that occurs in the log alone."""
    occurring = log.select(pl.col(schema.ITEM).unique().sort())
    if items is None:
        return occurring
    missing = occurring.join(items.select(schema.ITEM), on=schema.ITEM, how="anti").sort(schema.ITEM)
    return pl.concat([items, missing], how="diagonal")


def with_images(items: pl.LazyFrame, folder: Path) -> pl.LazyFrame:
    """image_path = ITEM_ID.jpg for the items that have one in `folder`; a column that is there is left alone."""
    if schema.IMAGE in items.collect_schema():
        return items
    names = pl.Series([name.removesuffix(".jpg") for name in image_names(folder)])
    text = pl.col(schema.ITEM).cast(pl.String)
    return items.with_columns(pl.when(text.is_in(names.implode())).then(text + ".jpg").alias(schema.IMAGE))

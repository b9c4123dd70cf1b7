"""From a user's frame to the Dataset's columns and types, with errors that name the first bad value."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import polars as pl

from recsys import schema
from recsys.errors import DataError

_MILLISECONDS = 100_000_000_000  # in seconds this is the year 5138, so such a value is milliseconds or finer


@contextmanager
def reading(where: object) -> Iterator[None]:
    """What a reader raises inside the block becomes a DataError of one line naming `where`."""
    try:
        yield
    except (pl.exceptions.PolarsError, OSError, UnicodeDecodeError) as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise DataError(
            f"cannot be read ({reason})", where=where, fix="correct the file or the column types"
        ) from error


def lazy(frame: Any, table: str) -> pl.LazyFrame:
    """Polars, pandas or Arrow to a lazy Polars frame."""
    if isinstance(frame, pl.LazyFrame):
        return frame
    if isinstance(frame, pl.DataFrame):
        return frame.lazy()
    try:
        return pl.DataFrame(frame).lazy()
    except Exception as error:
        raise DataError(
            f"cannot read a {type(frame).__name__} ({error})",
            where=table,
            expected="a Polars, pandas or Arrow frame",
        ) from error


def _need(columns: dict[str, pl.DataType], names: list[str], table: str) -> None:
    missing = [name for name in names if name not in columns]
    if missing:
        raise DataError(
            f"column {missing[0]!r} is missing",
            where=table,
            expected=f"columns {', '.join(names)}",
            fix=f"found: {', '.join(columns)}; rename one or give a column mapping",
        )


def _id(name: str, kind: pl.DataType, table: str) -> pl.Expr:
    """Integers as Int64, strings verbatim; anything else is no id."""
    if kind.is_integer():
        return pl.col(name).cast(pl.Int64)
    if kind == pl.String or isinstance(kind, pl.Categorical | pl.Enum):
        return pl.col(name).cast(pl.String)
    raise DataError(
        f"column {name!r} has type {kind}",
        where=table,
        expected="integers or strings",
        fix="cast it (floats as ids usually mean missing values)",
    )


def _time(name: str, kind: pl.DataType, table: str) -> pl.Expr:
    """Datetimes are taken as UTC; numbers are seconds."""
    if isinstance(kind, pl.Datetime | pl.Date):
        return pl.col(name).dt.epoch("s").cast(pl.Int64)
    if kind.is_numeric() or kind == pl.Null:
        return pl.col(name).cast(pl.Int64, strict=False)
    raise DataError(
        f"column {name!r} has type {kind}",
        where=table,
        expected="UTC seconds or datetimes",
        fix="parse it first",
    )


def _number(name: str, kind: pl.DataType, table: str) -> pl.Expr:
    if kind.is_numeric() or kind == pl.Boolean:
        return pl.col(name)
    raise DataError(f"column {name!r} has type {kind}", where=table, expected="numbers", fix="cast it")


def _integer(name: str, kind: pl.DataType, table: str) -> pl.Expr:
    if kind.is_integer():
        return pl.col(name).cast(pl.Int64)
    raise DataError(f"column {name!r} has type {kind}", where=table, expected="integers", fix="cast it")


def _text(name: str, kind: pl.DataType, table: str) -> pl.Expr:
    """Numbers become their digits (a film may be called 1917); blank text is missing text."""
    if kind.is_nested() or kind == pl.Binary:
        raise DataError(
            f"column {name!r} has type {kind}", where=table, expected="text", fix="join the parts"
        )
    return _no_blank(pl.col(name).cast(pl.String))


def normal_interactions(frame: pl.LazyFrame) -> pl.LazyFrame:
    """user_id, item_id, timestamp, weight, event and, where given, order and timestamp_hi, in source order."""
    columns = dict(frame.collect_schema())
    table = "interactions"
    _need(columns, [schema.USER, schema.ITEM], table)
    if schema.TIME not in columns and schema.ORDER not in columns:
        _need(columns, [schema.USER, schema.ITEM, schema.TIME], table)
    out = [_id(name, columns[name], table) for name in (schema.USER, schema.ITEM)]
    time = (
        _time(schema.TIME, columns[schema.TIME], table) if schema.TIME in columns else pl.lit(None, pl.Int64)
    )
    out.append(time.alias(schema.TIME))
    weight = pl.lit(1.0)
    if schema.WEIGHT in columns:
        weight = _number(schema.WEIGHT, columns[schema.WEIGHT], table)
    out.append(weight.cast(pl.Float32).alias(schema.WEIGHT))
    event = pl.lit(None, pl.String)
    if schema.EVENT in columns:
        event = _text(schema.EVENT, columns[schema.EVENT], table)
    out.append(event.alias(schema.EVENT))
    if schema.ORDER in columns:
        out.append(_integer(schema.ORDER, columns[schema.ORDER], table))
    if schema.TIME_HI in columns:
        out.append(_time(schema.TIME_HI, columns[schema.TIME_HI], table).alias(schema.TIME_HI))
    return frame.select(out)


def check_interactions(scan: pl.LazyFrame) -> None:
    """Empty tables, nulls, NaN, and times that are not seconds; one pass over the stored table."""
    user, item, time, weight = (
        pl.col(name) for name in (schema.USER, schema.ITEM, schema.TIME, schema.WEIGHT)
    )
    bad = {
        "user": user.is_null(),
        "item": item.is_null(),
        "weight": ~weight.is_finite() | weight.is_null(),
        "time": time.is_null(),
        "late": time.abs() >= _MILLISECONDS,
    }
    if schema.ORDER in scan.collect_schema():  # the order then stands in for the missing times
        bad["time"] = pl.col(schema.ORDER).is_null()
    counts = [condition.sum().alias(name) for name, condition in bad.items()]
    found = scan.select(pl.len().alias("rows"), *counts).collect(engine="streaming").row(0, named=True)
    where = "interactions"
    if found["rows"] == 0:
        raise DataError("the table is empty", where=where, expected="at least one row")

    def first(name: str) -> tuple[int, dict[str, Any]]:
        """Number (from 1) and values of the first bad row."""
        row = scan.with_row_index("row", offset=1).filter(bad[name]).head(1).collect().row(0, named=True)
        return row["row"], row

    for name, column in (("user", schema.USER), ("item", schema.ITEM)):
        if found[name]:
            raise DataError(
                f"{found[name]} rows have no {column} (first: row {first(name)[0]})",
                where=where,
                fix="drop or fill those rows",
            )
    if found["weight"]:
        raise DataError(
            f"{found['weight']} weights are NaN, infinite or null (first: row {first('weight')[0]})",
            where=where,
            expected="numbers",
            fix="fill or drop them",
        )
    if found["time"]:
        raise DataError(
            f"{found['time']} timestamps are null or unreadable (first: row {first('time')[0]})",
            where=where,
            expected="UTC seconds, or an `order` column without nulls",
            fix="fill them, drop the rows, or add `order`",
        )
    if found["late"]:
        row, values = first("late")
        raise DataError(
            f"timestamp {values[schema.TIME]} in row {row} looks like milliseconds or finer",
            where=where,
            expected="UTC seconds",
            fix='divide by 1000 (or 10**6, 10**9); a table source has time_unit = "ms"',
        )


def normal_items(frame: pl.LazyFrame) -> pl.LazyFrame:
    """item_id, title, text, image_path, category (list of strings), then the free columns."""
    columns = dict(frame.collect_schema())
    _need(columns, [schema.ITEM], "items")
    out = [_id(schema.ITEM, columns[schema.ITEM], "items")]
    for name in (schema.TITLE, schema.TEXT, schema.IMAGE):
        column = _text(name, columns[name], "items") if name in columns else pl.lit(None, pl.String)
        out.append(column.alias(name))
    kind = columns.get(schema.CATEGORY)
    if kind is None:
        category = pl.lit(None, pl.List(pl.String))
    elif isinstance(kind, pl.List | pl.Array) and not kind.inner.is_nested():
        category = pl.col(schema.CATEGORY).cast(pl.List(pl.String))
    else:
        value = _text(schema.CATEGORY, kind, "items")
        category = pl.when(value.is_null()).then(None).otherwise(pl.concat_list(value))
    out.append(category.alias(schema.CATEGORY))
    named = {schema.ITEM, schema.TITLE, schema.TEXT, schema.IMAGE, schema.CATEGORY}
    return frame.select(*out, *[_free(name, kind) for name, kind in columns.items() if name not in named])


def _free(name: str, kind: pl.DataType) -> pl.Expr:
    """As it is, but moments in microseconds: the unit of a moment is an accident of the frame it came in."""
    if isinstance(kind, pl.Datetime):
        return pl.col(name).dt.cast_time_unit("us")
    return pl.col(name)


def _no_blank(column: pl.Expr) -> pl.Expr:
    """Blank text is missing text."""
    return pl.when(column.str.strip_chars().str.len_chars() > 0).then(column)


def normal_users(frame: pl.LazyFrame) -> pl.LazyFrame:
    """user_id, then the free columns."""
    columns = dict(frame.collect_schema())
    _need(columns, [schema.USER], "users")
    free = [_free(name, kind) for name, kind in columns.items() if name != schema.USER]
    return frame.select(_id(schema.USER, columns[schema.USER], "users"), *free)


def normal_pairs(frame: pl.LazyFrame) -> pl.LazyFrame:
    """item_id, other_id, rank (from 1), kind."""
    columns = dict(frame.collect_schema())
    _need(columns, [schema.ITEM, schema.OTHER], "pairs")
    rank = pl.int_range(1, pl.len() + 1, dtype=pl.Int64).over(schema.ITEM)
    if schema.RANK in columns:
        rank = _integer(schema.RANK, columns[schema.RANK], "pairs")
    kind = pl.lit("related")
    if schema.KIND in columns:
        kind = _text(schema.KIND, columns[schema.KIND], "pairs")
    return frame.select(
        _id(schema.ITEM, columns[schema.ITEM], "pairs"),
        _id(schema.OTHER, columns[schema.OTHER], "pairs"),
        rank.alias(schema.RANK),
        kind.alias(schema.KIND),
    )


def check_pairs(scan: pl.LazyFrame, item_ids: pl.Series) -> None:
    """Both ends must be items, and the table not empty."""
    for column, kind in scan.select(schema.ITEM, schema.OTHER).collect_schema().items():
        if kind != item_ids.dtype:
            raise DataError(
                f"pairs.{column} is {kind} but items.item_id is {item_ids.dtype}",
                expected="one type, ids are kept verbatim",
                fix="cast one of them",
            )
    if scan.select(pl.len()).collect().item() == 0:
        raise DataError("the table is empty", where="pairs", expected="at least one row")
    for column in (schema.ITEM, schema.OTHER):
        unknown = scan.select(column).filter(~pl.col(column).is_in(item_ids.implode(), nulls_equal=True))
        found = unknown.select(pl.len().alias("count"), pl.first(column).alias("first")).collect()
        if found["count"][0]:
            raise DataError(
                f"{found['count'][0]} values of {column} are not items (first: {found['first'][0]!r})",
                where="pairs",
                fix="add the items or drop the pairs",
            )


def require_unique(ids: pl.Series, table: str) -> None:
    """Ids of items and users must be unique and not null, and the table not empty."""
    if ids.is_empty():
        raise DataError("the table is empty", where=table, expected="at least one row")
    if ids.null_count():
        raise DataError(f"{ids.null_count()} rows have no {ids.name}", where=table, fix="drop those rows")
    repeated = ids.filter(ids.is_duplicated())
    if not repeated.is_empty():
        raise DataError(
            f"{ids.name} {repeated[0]!r} stands in more than one row ({repeated.n_unique()} such ids)",
            where=table,
            expected="unique ids",
            fix="merge or drop the repeated rows",
        )

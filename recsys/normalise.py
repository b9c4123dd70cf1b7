"""From a user's frame to the Dataset's columns and types, with errors that name the first bad value."""

from typing import Any

import polars as pl

from recsys import schema
from recsys.errors import DataError

_MILLISECONDS = 100_000_000_000  # in seconds this is the year 5138, so such a value is milliseconds or finer


def lazy(frame: Any, table: str) -> pl.LazyFrame:
    """Polars, pandas or Arrow to a lazy Polars frame."""
    if isinstance(frame, pl.LazyFrame):
        return frame
    if isinstance(frame, pl.DataFrame):
        return frame.lazy()
    try:
        converted = pl.from_dataframe(frame) if hasattr(frame, "__dataframe__") else pl.DataFrame(frame)
    except Exception as error:
        raise DataError(
            f"cannot read a {type(frame).__name__} ({error})",
            where=table,
            expected="a Polars, pandas or Arrow frame",
        ) from error
    return converted.lazy()


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
    if schema.WEIGHT in columns and not (
        columns[schema.WEIGHT].is_numeric() or columns[schema.WEIGHT] == pl.Boolean
    ):
        raise DataError(
            f"column 'weight' has type {columns[schema.WEIGHT]}",
            where=table,
            expected="numbers",
            fix="cast it",
        )
    weight = pl.col(schema.WEIGHT) if schema.WEIGHT in columns else pl.lit(1.0)
    out.append(weight.cast(pl.Float32).alias(schema.WEIGHT))
    event = pl.col(schema.EVENT) if schema.EVENT in columns else pl.lit(None)
    out.append(event.cast(pl.String).alias(schema.EVENT))
    if schema.ORDER in columns:
        out.append(pl.col(schema.ORDER).cast(pl.Int64))
    if schema.TIME_HI in columns:
        out.append(_time(schema.TIME_HI, columns[schema.TIME_HI], table).alias(schema.TIME_HI))
    return frame.select(out)


def check_interactions(scan: pl.LazyFrame) -> None:
    """Empty tables, nulls, NaN, and times that are not seconds; one pass over the stored table."""
    has_order = schema.ORDER in scan.collect_schema()
    facts = [
        pl.len().alias("rows"),
        pl.col(schema.USER).null_count().alias("user_nulls"),
        pl.col(schema.ITEM).null_count().alias("item_nulls"),
        pl.col(schema.TIME).null_count().alias("time_nulls"),
        pl.col(schema.TIME).max().alias("time_max"),
        pl.col(schema.TIME).min().alias("time_min"),
        (pl.col(schema.WEIGHT).is_nan() | pl.col(schema.WEIGHT).is_null()).sum().alias("weight_bad"),
    ]
    if has_order:
        facts.append(pl.col(schema.ORDER).null_count().alias("order_nulls"))
    found = scan.select(facts).collect(engine="streaming").row(0, named=True)
    where = "interactions"
    if found["rows"] == 0:
        raise DataError("the table is empty", where=where, expected="at least one row")
    for column, key in ((schema.USER, "user_nulls"), (schema.ITEM, "item_nulls")):
        if found[key]:
            raise DataError(f"{found[key]} rows have no {column}", where=where, fix="drop or fill those rows")
    if found["weight_bad"]:
        raise DataError(
            f"{found['weight_bad']} weights are NaN or null",
            where=where,
            expected="numbers",
            fix="fill or drop them",
        )
    if found["time_nulls"] and (not has_order or found["order_nulls"]):
        raise DataError(
            f"{found['time_nulls']} timestamps are null or unreadable",
            where=where,
            expected="UTC seconds, or an `order` column without nulls",
            fix="fill them, drop the rows, or add `order`",
        )
    extreme = max(abs(found["time_max"] or 0), abs(found["time_min"] or 0))
    if extreme >= _MILLISECONDS:
        raise DataError(
            f"timestamp {extreme} looks like milliseconds or finer",
            where=where,
            expected="UTC seconds",
            fix="divide by 1000 (or 10**6, 10**9)",
        )


def normal_items(frame: pl.LazyFrame) -> pl.LazyFrame:
    """item_id, title, text, image_path, category (list of strings), then the free columns as they are."""
    columns = dict(frame.collect_schema())
    _need(columns, [schema.ITEM], "items")
    out = [_id(schema.ITEM, columns[schema.ITEM], "items")]
    for name in (schema.TITLE, schema.TEXT, schema.IMAGE):
        column = pl.col(name) if name in columns else pl.lit(None)
        out.append(_no_blank(column.cast(pl.String)).alias(name))
    kind = columns.get(schema.CATEGORY)
    if kind is None:
        category = pl.lit(None, pl.List(pl.String))
    elif isinstance(kind, pl.List | pl.Array):
        category = pl.col(schema.CATEGORY).cast(pl.List(pl.String))
    else:
        value = _no_blank(pl.col(schema.CATEGORY).cast(pl.String))
        category = pl.when(value.is_null()).then(None).otherwise(pl.concat_list(value))
    out.append(category.alias(schema.CATEGORY))
    named = {schema.ITEM, schema.TITLE, schema.TEXT, schema.IMAGE, schema.CATEGORY}
    return frame.select(*out, *[pl.col(name) for name in columns if name not in named])


def _no_blank(column: pl.Expr) -> pl.Expr:
    """Blank text is missing text."""
    return pl.when(column.str.strip_chars().str.len_chars() > 0).then(column)


def normal_users(frame: pl.LazyFrame) -> pl.LazyFrame:
    columns = dict(frame.collect_schema())
    _need(columns, [schema.USER], "users")
    return frame.with_columns(_id(schema.USER, columns[schema.USER], "users"))


def normal_pairs(frame: pl.LazyFrame, items: pl.DataFrame) -> pl.DataFrame:
    """item_id, other_id, rank (from 1), kind; both ends must be items."""
    columns = dict(frame.collect_schema())
    _need(columns, [schema.ITEM, schema.OTHER], "pairs")
    rank = pl.col(schema.RANK) if schema.RANK in columns else pl.int_range(pl.len()).over(schema.ITEM) + 1
    kind = pl.col(schema.KIND) if schema.KIND in columns else pl.lit("related")
    pairs = frame.select(
        _id(schema.ITEM, columns[schema.ITEM], "pairs"),
        _id(schema.OTHER, columns[schema.OTHER], "pairs"),
        rank.cast(pl.Int64).alias(schema.RANK),
        kind.cast(pl.String).alias(schema.KIND),
    ).collect()
    if pairs.is_empty():
        raise DataError("the table is empty", where="pairs", expected="at least one row")
    known = items[schema.ITEM]
    for column in (schema.ITEM, schema.OTHER):
        unknown = pairs.filter(~pl.col(column).is_in(known.implode()))
        if not unknown.is_empty():
            raise DataError(
                f"{len(unknown)} values of {column} are not items (first: {unknown[column][0]!r})",
                where="pairs",
                fix="add the items or drop the pairs",
            )
    return pairs


def require_unique(frame: pl.DataFrame, column: str, table: str) -> None:
    """Ids of items and users must be unique and not null, and the table not empty."""
    if frame.is_empty():
        raise DataError("the table is empty", where=table, expected="at least one row")
    nulls = frame[column].null_count()
    if nulls:
        raise DataError(f"{nulls} rows have no {column}", where=table, fix="drop those rows")
    repeated = frame.filter(pl.col(column).is_duplicated())
    if not repeated.is_empty():
        raise DataError(
            f"{column} {repeated[column][0]!r} stands in more than one row ({repeated[column].n_unique()} such ids)",
            where=table,
            expected="unique ids",
            fix="merge or drop the repeated rows",
        )

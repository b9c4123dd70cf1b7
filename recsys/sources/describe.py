"""What a Dataset holds, in words: the table that `recsys data inspect` prints."""

from datetime import UTC, datetime

import polars as pl

from recsys import schema
from recsys.dataset import Dataset

_CONTENT = (schema.TITLE, schema.TEXT, schema.IMAGE, schema.CATEGORY)
_SHOWN_WEIGHTS = 10


def describe(dataset: Dataset) -> list[tuple[str, str]]:
    """(name, value) lines: counts, times, density, weights, repeats, coverage of content, origin."""
    lines = [("name", dataset.name)]
    lines += [(table, f"{count:,}") for table, count in dataset.manifest["counts"].items()]
    if dataset.has("interactions"):
        lines += _log(dataset)
    lines += _coverage(dataset)
    columns = [
        name for name in dataset.scan("items").collect_schema() if name not in (schema.ITEM, *_CONTENT)
    ]
    if columns:
        lines.append(("further item columns", ", ".join(columns)))
    lines.append(("ids", ", ".join(f"{entity}: {kind}" for entity, kind in dataset.id_type.items())))
    lines += [("source", dataset.manifest["source"]), ("licence", dataset.manifest["licence"])]
    if dataset.media_root is not None:
        lines.append(("images lie in", str(dataset.media_root)))
    return [*lines, ("fingerprint", dataset.fingerprint)]


def _log(dataset: Dataset) -> list[tuple[str, str]]:
    log = dataset.interactions
    facts = log.select(
        pl.len().alias("rows"),
        pl.col(schema.USER).n_unique().alias("users"),
        pl.col(schema.ITEM).n_unique().alias("items"),
        pl.col(schema.TIME).min().alias("first"),
        pl.col(schema.TIME).max().alias("last"),
        pl.col(schema.TIME).null_count().alias("untimed"),
    )
    found = facts.collect(engine="streaming").row(0, named=True)
    rows, users, items = found["rows"], found["users"], found["items"]
    distinct = log.select(pl.struct(schema.USER, schema.ITEM).n_unique()).collect(engine="streaming").item()
    lines = [
        ("users with interactions", f"{users:,}, {rows / users:.1f} rows each"),
        ("items with interactions", f"{items:,}, {rows / items:.1f} rows each"),
        ("density", f"{distinct / (users * items):.3%} of user-item pairs"),
        ("repeated user-item pairs", f"{rows - distinct:,} rows ({(rows - distinct) / rows:.1%})"),
    ]
    if found["first"] is None:
        lines.append(("time", "no timestamps; the order of each user's rows is given"))
    else:
        lines.append(("time", f"{_utc(found['first'])} to {_utc(found['last'])}"))
    if found["first"] is not None and found["untimed"]:
        lines.append(("rows without timestamp", f"{found['untimed']:,}"))
    lines.append(("weights", _weights(log, rows)))
    events = _counts(log, schema.EVENT)
    if events[schema.EVENT].null_count() < len(events):
        shown = [f"{event or 'none'}: {count / rows:.1%}" for event, count in events.head(8).iter_rows()]
        lines.append(("events", ", ".join(shown)))
    return lines


def _utc(seconds: int) -> str:
    """Moments outside of years 1 to 9999 cannot be written as a date."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (ValueError, OverflowError, OSError):
        return f"{seconds} s"


def _counts(log: pl.LazyFrame, column: str) -> pl.DataFrame:
    """Values of a column and how often they occur, the most frequent first."""
    counted = log.group_by(column).len().collect(engine="streaming")
    return counted.sort("len", column, descending=[True, False], nulls_last=True)


def _weights(log: pl.LazyFrame, rows: int) -> str:
    counts = _counts(log, schema.WEIGHT).sort(schema.WEIGHT)
    if len(counts) == 1:
        return f"all {counts[schema.WEIGHT][0]:g}"
    if len(counts) <= _SHOWN_WEIGHTS:
        return ", ".join(f"{weight:g}: {count / rows:.1%}" for weight, count in counts.iter_rows())
    middle = log.select(pl.col(schema.WEIGHT).median()).collect(engine="streaming").item()
    low, high = counts[schema.WEIGHT][0], counts[schema.WEIGHT][-1]
    return f"{len(counts):,} values from {low:g} to {high:g}, median {middle:g}"


def _coverage(dataset: Dataset) -> list[tuple[str, str]]:
    """Share of the items, and of the interactions, whose item has each kind of content."""
    has_content = [pl.col(name).is_not_null().alias(name) for name in _CONTENT[:-1]]
    has_content.append((pl.col(schema.CATEGORY).list.len() > 0).fill_null(False).alias(schema.CATEGORY))
    items = dataset.scan("items").select(schema.ITEM, *has_content)
    shares = items.select(pl.col(_CONTENT).mean()).collect(engine="streaming").row(0, named=True)
    weighted = None
    if dataset.has("interactions"):
        counts = dataset.interactions.group_by(schema.ITEM).len()
        joined = items.join(counts, on=schema.ITEM)
        total = pl.col("len").sum()
        sums = [((pl.col(name) * pl.col("len")).sum() / total).alias(name) for name in _CONTENT]
        weighted = joined.select(sums).collect(engine="streaming").row(0, named=True)
    lines = []
    for name in _CONTENT:
        value = f"{_share(shares[name])} of items"
        if weighted is not None:
            value += f", {_share(weighted[name])} of interactions"
        lines.append((f"with {name}", value))
    return lines


def _share(share: float) -> str:
    """Only what is complete reads 100 %, and only what is not there 0 %."""
    if 0 < share < 1:
        share = min(max(share, 0.001), 0.999)
    return f"{share:.1%}"

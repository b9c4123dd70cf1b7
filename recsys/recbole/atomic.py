"""Atomic files, RecBole's format: a Dataset with its ids, and a split as benchmark files that keep its parts."""

from pathlib import Path

import numpy as np
import polars as pl

from recsys import schema
from recsys.dataset import Dataset
from recsys.errors import DataError
from recsys.files import new_folder
from recsys.schema import Ragged
from recsys.splits import Split

PARTS = ("train", "valid", "test")


def write_dataset(dataset: Dataset, folder: Path) -> None:
    """FOLDER/NAME.inter, .item and .user, NAME being the folder's: what `RecBole` of `recsys.sources` reads back.

    Raises DataError for an id that the format cannot hold. Runs of white space in texts become one blank.
    """
    with new_folder(folder) as target:
        log = dataset.interactions.collect()
        columns = [_token(log, schema.USER), _token(log, schema.ITEM), _number(log, schema.WEIGHT, "rating")]
        time = schema.TIME if dataset.has_time else schema.ORDER
        _write(log, [*columns, _number(log, time, "timestamp")], target / f"{folder.name}.inter")
        items = dataset.items
        columns = [_token(items, schema.ITEM)]
        columns += [_words(name) for name in (schema.TITLE, schema.TEXT) if name in items.columns]
        if schema.CATEGORY in items.columns:
            joined = (
                pl.col(schema.CATEGORY).list.eval(pl.element().str.replace_all(r"\s+", "_")).list.join(" ")
            )
            columns.append(joined.fill_null("").alias(f"{schema.CATEGORY}:token_seq"))
        _write(items, columns, target / f"{folder.name}.item")


def write_benchmark(split: Split, folder: Path, *, sequential: bool, window: int = 50) -> None:
    """FOLDER/NAME.train.inter, .valid.inter and .test.inter: the split's own parts, for `benchmark_filename`.

    Users are named u0, u1, ... and items i0, i1, ... by their index; every item of the catalogue is in NAME.item.
    sequential: each row has the items before it, at most `window` (`item_id_list`), as sequence models want it; a row
    without any is left out. Raises DataError for a split without these three parts, or with dropped rows among them.
    """
    if split.config.parts != PARTS:
        raise DataError(f"a split into {', '.join(split.config.parts)}", expected="train, valid and test")
    log, inside = split.log, split.log.item_N >= 0
    with new_folder(folder) as target:
        items = pl.DataFrame({"item_id:token": [f"i{item}" for item in range(split.num_items)]})
        items.write_csv(target / f"{folder.name}.item", separator="\t")
        for code, part in enumerate(PARTS):
            rows = np.flatnonzero((split.part_N == code) & inside)
            if sequential:
                first = log.indptr_U1[log.user_N[rows]]
                before = Ragged(log.item_N, np.maximum(first, rows - window), rows)
                kept = before.lengths > 0
                rows, before = rows[kept], before.take(kept)
                lists = [" ".join(f"i{item}" for item in before[row]) for row in range(len(rows))]
                more = {"item_id_list:token_seq": lists}
            else:
                more = {"timestamp:float": log.time_N[rows].astype(float)}
            frame = {
                "user_id:token": [f"u{user}" for user in log.user_N[rows].tolist()],
                "item_id:token": [f"i{item}" for item in log.item_N[rows].tolist()],
            }
            pl.DataFrame(frame | more).write_csv(target / f"{folder.name}.{part}.inter", separator="\t")


def _token(frame: pl.DataFrame, name: str) -> pl.Expr:
    ids = frame[name].cast(pl.String)
    bad = ids.filter(ids.str.contains(r'[\t\n\r"]') | (ids.str.len_chars() == 0))
    if len(bad):
        raise DataError(
            f"{name} {bad[0]!r}", expected="no tab, line end or quote: atomic files cannot hold it"
        )
    return pl.col(name).cast(pl.String).alias(f"{name}:token")


def _number(frame: pl.DataFrame, name: str, shown: str) -> pl.Expr:
    column = pl.col(name) if name in frame.columns else pl.lit(1.0)
    return column.cast(pl.Float64).alias(f"{shown}:float")


def _words(name: str) -> pl.Expr:
    cleaned = pl.col(name).str.replace_all('"', "'").str.replace_all(r"\s+", " ").str.strip_chars()
    return cleaned.fill_null("").alias(f"{name}:token_seq")


def _write(frame: pl.DataFrame, columns: list[pl.Expr], path: Path) -> None:
    frame.select(columns).write_csv(path, separator="\t", quote_style="never")

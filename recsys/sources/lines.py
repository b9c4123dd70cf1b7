"""Files of one record a line, read in a stream: JSON or Python literals, gzipped or not, spooled to Parquet."""

import ast
import gzip
import json
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from recsys.errors import DataError

_GZIP = b"\x1f\x8b"


def read_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, record) of every line that is not blank; never more than a line is held.

    A line that is not JSON may be a Python literal, as in Amazon's files of 2014; it is read as data, never
    evaluated. Raises DataError naming the line that is neither, or where a gzip stream breaks off.
    """
    with open(path, "rb") as file:
        packed = file.read(2) == _GZIP
    number = 0
    with gzip.open(path) if packed else open(path, "rb") as lines:
        while True:
            try:
                line = lines.readline()
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise DataError(
                    f"the gzip stream breaks off after line {number} ({error})",
                    where=path,
                    expected="a whole file",
                    fix="download it again",
                ) from None
            if not line:
                return
            number += 1
            if line.strip():
                yield number, _record(line, number, path)


def _record(line: bytes, number: int, path: Path) -> dict[str, Any]:
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        record = _lenient(line)
    if not isinstance(record, dict):
        shown = line[:60].decode("utf-8", errors="replace").strip()
        raise DataError(
            f"line {number} is no record: {shown!r}",
            where=path,
            expected="a JSON object a line",
            fix='correct or remove the line; a CSV file is read by kind = "table"',
        )
    return record


def _lenient(line: bytes) -> Any:
    """JSON with NaN or lone surrogates, or a Python literal; None for anything else."""
    for parse in (json.loads, _literal):
        try:
            return parse(line.decode("utf-8").strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    return None


def _literal(text: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd escapes in a broken line
        return ast.literal_eval(text)


class Spool:
    """Chunks of rows that go to Parquet files, and come back as one lazy frame in the order they went."""

    def __init__(self, folder: Path, name: str, columns: dict[str, Any]):
        self._folder, self._name, self._columns = folder, name, columns
        self._files: list[Path] = []

    def write(self, rows: Sequence[Sequence[Any]]) -> None:
        path = self._folder / f"{self._name}-{len(self._files):06d}.parquet"
        pl.DataFrame(rows, schema=self._columns, orient="row").write_parquet(path)
        self._files.append(path)

    def scan(self) -> pl.LazyFrame:
        if not self._files:
            self.write([])
        return pl.scan_parquet(self._files)

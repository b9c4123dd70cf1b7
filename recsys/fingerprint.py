"""A fingerprint over logical rows: the same values give the same hash whatever the file looks like."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.errors import DataError
from recsys.files import digest


class _Column:
    """Hashes one column batch by batch; where a batch ends leaves no trace in the result."""

    def __init__(self):
        self.valid, self.lengths, self.data = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
        self.children: list[_Column] = []

    def update(self, array: pa.Array) -> None:
        if pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        kind = array.type
        self.valid.update(_bytes(pc.is_valid(array), "u1"))
        if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
            self.lengths.update(_bytes(pc.fill_null(pc.list_value_length(array), 0), "<i8"))
            self._descend([pc.list_flatten(array)])
        elif pa.types.is_struct(kind):
            self._descend(array.flatten())
        elif pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_decimal(kind):
            self._text(array.cast(pa.large_string()))
        elif pa.types.is_floating(kind):
            self.data.update(_bytes(pc.fill_null(array.cast(pa.float64()), 0.0), "<f8"))
        elif pa.types.is_boolean(kind):
            self.data.update(_bytes(pc.fill_null(array, False), "u1"))
        else:
            if pa.types.is_date32(kind) or pa.types.is_time32(kind):  # Arrow casts these to 32 bits only
                array = array.cast(pa.int32())
            self.data.update(_bytes(pc.fill_null(array.cast(pa.int64(), safe=False), 0), "<i8"))

    def _descend(self, parts: list[pa.Array]) -> None:
        self.children = self.children or [_Column() for _ in parts]
        for child, part in zip(self.children, parts, strict=True):
            child.update(part)

    def _text(self, array: pa.Array) -> None:
        filled = pc.fill_null(array, "")
        self.lengths.update(_bytes(pc.binary_length(filled), "<i8"))
        offsets = np.frombuffer(filled.buffers()[1], "<i8")[filled.offset : filled.offset + len(filled) + 1]
        if len(filled) and offsets[-1] > offsets[0]:
            self.data.update(memoryview(filled.buffers()[2])[offsets[0] : offsets[-1]])

    def result(self) -> list:
        own = [self.valid.hexdigest(), self.lengths.hexdigest(), self.data.hexdigest()]
        return own + [child.result() for child in self.children]


def _bytes(array: pa.Array, dtype: str) -> bytes:
    return np.ascontiguousarray(array.to_numpy(zero_copy_only=False), dtype=dtype).tobytes()


def parquet_fingerprint(path: Path, *, batch_rows: int = 1 << 18) -> str:
    """sha256 over column names and values, in row order; string and list widths (32 or 64 bit) do not matter."""
    file = pq.ParquetFile(path)
    columns = {name: _Column() for name in file.schema_arrow.names}
    for batch in file.iter_batches(batch_size=batch_rows):
        for name, column in columns.items():
            try:
                column.update(batch.column(name))
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
                raise DataError(
                    f"column {name!r} has type {batch.column(name).type}",
                    where=path.stem,
                    expected="numbers, text, moments, or lists and structs of these",
                    fix="cast or drop it",
                ) from None
    return digest({name: column.result() for name, column in columns.items()})

"""Item vectors in a file: one contiguous [I, increment] block per width, so that the head of the file is the narrower
model; in int8 each block's codes follow a scale per row."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from recsys.schema import Form

VectorType = Literal["float32", "int8"]
"""How item vectors are stored. Serving computes in float32 either way."""


def quantise(part_ID: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(scales [I], float32; codes [I, D], int8): part = scale * code, off by at most scale / 2 a value.

    A row's scale is its own largest value / 127. Each width's increment is quantised apart: a scale of the whole row
    would be ruled by its largest columns, wherever they lie, and the narrow widths would pay for it.
    """
    part_ID = np.asarray(part_ID, np.float32)
    scales_I = np.abs(part_ID).max(axis=1) / np.float32(127)
    codes_ID = np.rint(part_ID / np.where(scales_I > 0, scales_I, 1)[:, None])
    return scales_I, np.clip(codes_ID, -127, 127).astype(np.int8)


def write_vectors(path: Path, form: Form, kind: VectorType) -> list[dict[str, Any]]:
    """items.bin, and where each width's own block lies in it."""
    if form.item_vectors_ID is None:
        return []
    blocks, offset = [], 0
    with open(path, "wb") as handle:
        for start, end in zip((0, *form.widths[:-1]), form.widths, strict=True):
            part = form.item_vectors_ID[:, start:end]
            block: dict[str, Any] = {"width": end, "shape": list(part.shape)}
            if kind == "int8":
                scales_I, codes_ID = quantise(part)
                head, body = np.ascontiguousarray(scales_I, "<f4").tobytes(), codes_ID.tobytes()
                block |= {"dtype": "|i1", "scales": {"offset": offset, "dtype": "<f4"}}
            else:
                head, body = b"", np.ascontiguousarray(part, "<f4").tobytes()
                block |= {"dtype": "<f4"}
            handle.write(head + body)
            block |= {"offset": offset + len(head), "sha256": hashlib.sha256(head + body).hexdigest()}
            blocks.append(block)
            offset += len(head) + len(body)
    return blocks


def block_bytes(block: Mapping[str, Any]) -> int:
    """Of the block in items.bin, its scales included."""
    rows, columns = block["shape"]
    scales = rows * np.dtype(block["scales"]["dtype"]).itemsize if "scales" in block else 0
    return scales + rows * columns * np.dtype(block["dtype"]).itemsize


def read_block(handle: BinaryIO, block: Mapping[str, Any]) -> np.ndarray:
    """[I, increment] float32 of the block that comes next in the file."""
    data, shape = handle.read(block_bytes(block)), block["shape"]
    if "scales" not in block:
        return np.frombuffer(data, block["dtype"]).reshape(shape)
    scales_I = np.frombuffer(data, block["scales"]["dtype"], count=shape[0])
    codes_ID = np.frombuffer(data, block["dtype"], offset=scales_I.nbytes).reshape(shape)
    return scales_I[:, None] * codes_ID

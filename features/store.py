"""Vectors by the hash of what they were made from: chunks on disk that are written whole or not at all."""

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from recsys.errors import FeatureError
from recsys.files import digest, locked, write_bytes

logger = logging.getLogger("recsys")
_FORMAT = 1


class Store:
    """All vectors that one extractor has made, a chunk a file.

    A chunk is one [n, F] tensor; its header names the content hash of every row, and the contents that the extractor
    could not read. Opening reads the headers alone; vectors are read chunk by chunk, where they are asked for.
    A damaged chunk is named, removed, and so made again.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._scan()

    @classmethod
    @contextlib.contextmanager
    def opened(cls, folder: Path) -> Iterator["Store"]:
        """The store under its lock: of two extractions at once the second is told to wait (LockedError)."""
        with locked(folder):
            for leftover in folder.glob(".*.safetensors.*"):  # a killed extraction was writing it
                leftover.unlink()
            yield cls(folder)

    def __contains__(self, content: str) -> bool:
        return content in self._places

    def __len__(self) -> int:
        return len(self._places)

    def commit(
        self, contents: Sequence[str], vectors: np.ndarray, unreadable: Mapping[str, str], *, where: str
    ) -> None:
        """Add a chunk. vectors: float32 [n, F], one a content; unreadable: content -> reason."""
        if self.width is not None and len(vectors) and vectors.shape[1] != self.width:
            raise FeatureError(
                f"vectors of width {vectors.shape[1]}",
                where=where,
                expected=f"{self.width}, as in {self.folder}",
            )
        vectors = np.ascontiguousarray(vectors, np.float32)
        header = {
            "format": _FORMAT,
            "contents": list(contents),
            "unreadable": dict(unreadable),
            "sha256": _sha256(vectors),
        }
        # the name says what is inside: whoever encodes the same chunk writes the same file
        name = digest([sorted(contents), sorted(unreadable)])[:32]
        path = self.folder / f"{name}.safetensors"
        write_bytes(path, save({"vectors": vectors}, {"header": json.dumps(header)}))
        self._add(path, header, vectors.shape)

    def read(self, contents: Sequence[str]) -> tuple[np.ndarray, np.ndarray] | None:
        """(values_EF, present_E): the vector of every content, NaN where there is none ("" is none).

        None where a chunk turned out to be damaged: its contents are no longer in the store.
        """
        place_E = np.fromiter(
            (self._places.get(content, -1) for content in contents), np.int64, len(contents)
        )
        present_E = place_E >= 0
        values_EF = np.full((len(contents), self.width or 1), np.nan, np.float32)
        rows = np.flatnonzero(present_E)
        rows = rows[np.argsort(place_E[rows], kind="stable")]
        chunks, first = np.unique(
            np.searchsorted(self._starts, place_E[rows], side="right") - 1, return_index=True
        )
        damaged = False
        for chunk, (start, end) in zip(chunks.tolist(), pairwise([*first.tolist(), len(rows)]), strict=True):
            inside = rows[start:end]
            vectors = _vectors(self._files[chunk])
            if vectors is None:
                damaged = True
            else:
                values_EF[inside] = vectors[place_E[inside] - self._starts[chunk]]
        if damaged:
            self._scan()
            return None
        return values_EF, present_E

    def _scan(self) -> None:
        self.width: int | None = None
        """Values of a vector; None while there is none."""
        self.unreadable: dict[str, str] = {}
        """Contents that could not be read the last time -> why."""
        self._places: dict[str, int] = {}  # content -> number of the row, counted over all files
        self._files: list[Path] = []
        self._starts: list[int] = []
        self._rows = 0
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                with safe_open(path, "np") as chunk:
                    header = json.loads(chunk.metadata()["header"])
                    shape = tuple(chunk.get_slice("vectors").get_shape())
                known = header["format"] == _FORMAT and len(header["contents"]) == shape[0]
                known &= not shape[0] or self.width in (None, shape[1])
            except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
                _remove(path, error)
                continue
            if not known:
                _remove(path, "its header is not ours")
            else:
                self._add(path, header, shape)

    def _add(self, path: Path, header: Mapping, shape: tuple[int, ...]) -> None:
        contents = header["contents"]
        for content in contents:
            self.unreadable.pop(content, None)
        self.unreadable |= {
            content: why for content, why in header["unreadable"].items() if content not in self._places
        }
        if contents:
            self.width = shape[1]
            self._files.append(path)
            self._starts.append(self._rows)
            self._places |= zip(contents, range(self._rows, self._rows + len(contents)), strict=True)
            self._rows += len(contents)


def _vectors(path: Path) -> np.ndarray | None:
    """The tensor of a chunk; None, and the file is gone, where it is not what was written."""
    try:
        with safe_open(path, "np") as chunk:
            header, vectors = json.loads(chunk.metadata()["header"]), chunk.get_tensor("vectors")
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        _remove(path, error)
        return None
    if _sha256(vectors) != header["sha256"]:
        _remove(path, "its values were changed")
        return None
    return vectors


def _remove(path: Path, why: object) -> None:
    logger.warning("%s is damaged (%s): it is made again", path, why)
    path.unlink(missing_ok=True)


def _sha256(vectors: np.ndarray) -> str:
    return hashlib.sha256(vectors.data).hexdigest()

"""A file extractor without weights: a file is the random direction that its bytes give.

Reached from a recipe as "hash_file:HashFile". `encoded` names the files read since it was last cleared.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import polars as pl
from pydantic import Field

from recsys.features.base import Extractor, ExtractorConfig, UnreadableContent

BAD = b"bad"
"""A file that begins so cannot be decoded."""


class HashFileConfig(ExtractorConfig):
    """Which files, and how wide."""

    column: str = "image_path"
    """Paths below the Dataset's media root."""
    width: Annotated[int, Field(ge=1)] = 4
    """Values of a vector."""


class HashFile(Extractor[HashFileConfig]):
    """One random vector a file."""

    modality = "image"
    Config = HashFileConfig
    chunk_rows = 8
    encoded: ClassVar[list[str]] = []

    def identity(self) -> Mapping[str, Any]:
        return {"extractor": "hash_file", "width": self.config.width}

    def contents(self, rows: pl.DataFrame, media_root: Path | None) -> list[str | Path | None]:
        paths = [None if path is None else media_root / path for path in rows[self.config.column].to_list()]
        return [path if path is not None and path.is_file() else None for path in paths]

    def encode(self, contents: list[str | Path]) -> np.ndarray:
        read = [Path(path).read_bytes() for path in contents]
        bad = [position for position, data in enumerate(read) if data.startswith(BAD)]
        if bad:
            raise UnreadableContent(bad[:1], f"{Path(contents[bad[0]]).name}: cannot be decoded")
        self.encoded.extend(Path(path).name for path in contents)
        return np.stack([self._direction(data) for data in read])

    def _direction(self, data: bytes) -> np.ndarray:
        seed = int.from_bytes(hashlib.sha256(data).digest()[:8], "big")
        return np.random.default_rng(seed).standard_normal(self.config.width).astype(np.float32)

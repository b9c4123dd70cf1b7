"""A text extractor without weights: every word has a fixed random direction, a text is the sum of its words.

Reached from a recipe as "hash_text:HashText". `encoded` counts what was encoded since it was last cleared.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import polars as pl
from pydantic import Field

from recsys.features.base import Extractor, ExtractorConfig, UnreadableContent
from recsys.features.text.extractor import fill, template_columns

UNREADABLE = "unreadable"
"""A text with this word cannot be decoded, as a damaged file could not."""


class HashTextConfig(ExtractorConfig):
    """Which text is encoded, and how wide."""

    template: str = "{title}"
    """Columns in braces."""
    width: Annotated[int, Field(ge=1)] = 16
    """Values of a vector."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Texts encoded at once; no part of a vector."""


class HashText(Extractor[HashTextConfig]):
    """Sums of hashed word vectors."""

    modality = "text"
    Config = HashTextConfig
    chunk_rows = 8
    encoded: ClassVar[list[str]] = []

    def identity(self) -> Mapping[str, Any]:
        return {"extractor": "hash_text", "width": self.config.width, "template": self.config.template}

    def contents(self, rows: pl.DataFrame, media_root: Path | None) -> list[str | Path | None]:
        columns = template_columns(self.config.template)
        return [fill(self.config.template, row) for row in rows.select(columns).iter_rows(named=True)]

    def encode(self, contents: list[str | Path]) -> np.ndarray:
        bad = [position for position, text in enumerate(contents) if UNREADABLE in str(text)]
        if bad:
            raise UnreadableContent(bad[:1], f"{contents[bad[0]]}: cannot be decoded")
        self.encoded.extend(map(str, contents))
        return np.stack([sum(map(self._word, str(text).split())) for text in contents]).astype(np.float32)

    def _word(self, word: str) -> np.ndarray:
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big")
        return np.random.default_rng(seed).standard_normal(self.config.width)


class LengthText(HashText):
    """Another extractor: the lengths of the words."""

    def identity(self) -> Mapping[str, Any]:
        return dict(super().identity()) | {"extractor": "length_text"}

    def _word(self, word: str) -> np.ndarray:
        return np.full(self.config.width, len(word), float)

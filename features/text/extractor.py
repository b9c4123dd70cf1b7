"""Text extractor: a template over the item's columns, encoded by whatever the encoder string names."""

import logging
import math
import string
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import polars as pl
from pydantic import Field, field_validator

from recsys.errors import FeatureError
from recsys.features.base import Content, Extractor
from recsys.features.text.base import TextEncoder, TextEncoderConfig
from recsys.features.text.classes import class_vectors
from recsys.features.text.clean import clean_text
from recsys.features.text.encoder import encoding_facts, finished, open_encoder
from recsys.features.text.windows import Cut, encode_texts

logger = logging.getLogger("recsys")


class TextConfig(TextEncoderConfig):
    """Which text is encoded, and by what."""

    template: str = "{title}. {category}"
    """Columns in braces; a missing column's piece is left out, and a row with none of them is absent."""
    clean_html: bool = False
    """Values are HTML: tags are taken out, entities replaced."""
    long: Literal["truncate", "average"] = "truncate"
    """A text of more than `max_tokens`: only its head is encoded; or windows of that length, and the mean of their
    vectors weighted by their tokens."""
    overlap: Annotated[int, Field(ge=0)] = 32
    """Tokens that a window shares with the one before it (long = "average"); fewer where a word would be cut."""
    max_windows: Annotated[int, Field(ge=2)] = 32
    """Windows of one text (long = "average"); what lies behind them is not read, and the log counts such texts."""

    @field_validator("template")
    @classmethod
    def _plain_columns(cls, template: str) -> str:
        for _, column, layout, conversion in string.Formatter().parse(template):
            if column == "" or layout or conversion:
                raise ValueError("plain {column} fields; {{ and }} for braces")
        if not template_columns(template):
            raise ValueError("a template with at least one {column}")
        return template


def template_columns(template: str) -> list[str]:
    return [column for _, column, _, _ in string.Formatter().parse(template) if column]


def fill(template: str, row: Mapping[str, Any], *, markup: bool = False) -> str | None:
    """The template with a row's values; None where every named column is missing.

    Values are cleaned (`clean_text`), and missing where nothing is left. The literal text before a missing column goes
    with it; lists are joined by commas.
    """
    pieces: list[str] = []
    for literal, column, _, _ in string.Formatter().parse(template):
        if column is None:
            if pieces:
                pieces.append(literal)
            continue
        value = row[column]
        entries = value if isinstance(value, list) else [value]
        texts = [clean_text(str(entry), markup=markup) for entry in entries if not _missing(entry)]
        found = ", ".join(text for text in texts if text)
        if found:
            pieces.append((literal if pieces else literal.lstrip(" .,;:-")) + found)
    return "".join(pieces).strip() or None


def _missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


class TextExtractor(Extractor[TextConfig]):
    """Vectors of a filled template."""

    modality = "text"
    Config = TextConfig

    @property
    def unit(self) -> bool:
        return self.config.normalise

    @cached_property
    def encoder(self) -> TextEncoder:
        return open_encoder(self.config)

    def identity(self) -> Mapping[str, Any]:
        config = self.config
        long = {"long": config.long}
        if config.long == "average":
            long |= {"overlap": config.overlap, "max_windows": config.max_windows}
        return {
            "extractor": "text",
            **self.encoder.identity(),
            "template": config.template,
            "clean_html": config.clean_html,
            **long,
            **encoding_facts(config),
        }

    def contents(self, rows: pl.DataFrame, media_root: Path | None) -> list[str | None]:
        columns = template_columns(self.config.template)
        missing = [column for column in columns if column not in rows.columns]
        if missing:
            raise FeatureError(
                f"template names column {missing[0]!r}, which the {self.config.entity}s table lacks",
                expected=f"one of: {', '.join(rows.columns)}",
                fix="change features.<name>.template",
            )
        filled = partial(fill, self.config.template, markup=self.config.clean_html)
        return [filled(row) for row in rows.select(columns).iter_rows(named=True)]

    def encode(self, contents: Sequence[Content]) -> np.ndarray:
        config = self.config
        cut = Cut(config.max_windows, config.overlap) if config.long == "average" else Cut()
        vectors, unread = encode_texts(
            self.encoder, [str(content) for content in contents], config.batch_size, cut
        )
        if unread:
            level = logging.WARNING if config.long == "average" else logging.INFO
            logger.log(level, "%d of %d texts are read in part: they are too long", unread, len(contents))
        return finished(vectors, config, self._centre_F)

    @cached_property
    def _centre_F(self) -> np.ndarray | None:
        return class_vectors(self.encoder).mean(0) if self.config.centre else None

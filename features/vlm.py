"""Multimodal embedders as they come: an item's text and picture read together by a vision-language model.

For models in the manner of Qwen3-VL-Embedding, GME, VLM2Vec and mmE5: a chat or plain prompt with an instruction, and
the state of the last token, or the mean, as the vector. Nothing is trained here.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import polars as pl
from pydantic import Field, field_validator

from recsys import schema
from recsys.errors import FeatureError, require
from recsys.features.base import Content, Extractor, ExtractorConfig, UnreadableContent
from recsys.features.image.decode import Geometry, decode
from recsys.features.pretrained import Pretrained, explained, load_transformers
from recsys.features.text.base import tokenizer_digest
from recsys.features.text.extractor import TextConfig, TextExtractor
from recsys.features.text.transformers import pool
from recsys.files import digest, file_sha256

if TYPE_CHECKING:
    pass


class MultimodalConfig(ExtractorConfig):
    """Which model reads what, and how its vector is taken."""

    encoder: str
    """"transformers:NAME_OR_FOLDER" of a vision-language model, e.g. Qwen/Qwen3-VL-Embedding-2B,
    Alibaba-NLP/gme-Qwen2-VL-2B-Instruct, VLM2Vec/VLM2Vec-V2.0, intfloat/mmE5-mllama-11b-instruct."""
    template: str | None = "{title}. {category}"
    """The text: columns in braces; None = the picture alone."""
    column: str | None = schema.IMAGE
    """Column with the picture's path, relative to the Dataset's media root; None = the text alone."""
    instruction: str | None = None
    """What the vector is for, in the words that the model was trained with; in the system turn of a chat, else before
    the rest."""
    prompt: Literal["chat", "plain"] = "chat"
    """chat: the processor's own template. plain: instruction, picture and text, one after the other."""
    generation_prompt: bool = True
    """Open the assistant's turn behind the item (chat)."""
    ending: str = ""
    """Put behind everything, e.g. "<|endoftext|>" where a model's vector is the state of that token."""
    pooling: Literal["last", "mean"] = "last"
    """The last token's state, or the mean of all tokens."""
    width: Annotated[int, Field(ge=1)] | None = None
    """Keep the first so many values, for models with nested vectors; None = all."""
    normalise: bool = True
    """Vectors of length 1."""
    max_side: Annotated[int, Field(ge=16)] = 768
    """Pictures are brought to at most this square's pixels, in their own shape, before the model's processor."""
    device: str = "cpu"
    """Where the model runs; no part of a vector."""
    batch_size: Annotated[int, Field(ge=1)] = 8
    """Items encoded at once."""

    @field_validator("encoder")
    @classmethod
    def _of_transformers(cls, encoder: str) -> str:
        library, _, name = encoder.partition(":")
        if library != "transformers" or not name:
            raise ValueError("'transformers:NAME_OR_FOLDER' of a vision-language model")
        return encoder


class MultimodalExtractor(Extractor[MultimodalConfig]):
    """One vector for an item's text and picture; an item that lacks one of them is read by the other."""

    modality = "multimodal"
    Config = MultimodalConfig
    chunk_rows = 64

    @property
    def unit(self) -> bool:
        return self.config.normalise

    def identity(self) -> Mapping[str, Any]:
        config, processor = self.config, self._processor
        images = json.loads(processor.image_processor.to_json_string())
        talk = processor.chat_template if config.prompt == "chat" else None
        settings = config.model_dump(
            mode="json", exclude={*ExtractorConfig.model_fields, "encoder", "device", "batch_size"}
        )
        return {
            "extractor": "multimodal",
            **self._pretrained.facts,
            "tokenizer": tokenizer_digest(processor.tokenizer),
            "preprocessing": digest([images, talk, self._canvas.facts()])[:16],
            **settings,
        }

    def contents(self, rows: pl.DataFrame, media_root: Path | None) -> list[str | None]:
        """JSON of text, picture and the picture's sha256: a picture that changes is another content."""
        config = self.config
        texts: Sequence[str | None] = [None] * len(rows)
        if config.template is not None:
            texts = TextExtractor(TextConfig(template=config.template)).contents(rows, media_root)
        paths: Sequence[str | None] = [None] * len(rows)
        if config.column is not None:
            if config.column not in rows.columns:
                raise FeatureError(
                    f"no column {config.column!r}", expected=f"one of: {', '.join(rows.columns)}"
                )
            paths = rows[config.column].to_list()
        self._root = media_root
        return [self._content(text, path) for text, path in zip(texts, paths, strict=True)]

    def _content(self, text: str | None, path: str | None) -> str | None:
        found = None if path is None or self._root is None else self._root / path
        seen = found is not None and found.is_file()
        if text is None and not seen:
            return None
        image = [path, file_sha256(found)] if seen else None
        return json.dumps({"text": text, "image": image}, ensure_ascii=False)

    def encode(self, contents: Sequence[Content]) -> np.ndarray:
        items = [json.loads(str(content)) for content in contents]
        pictures = [
            None if item["image"] is None else decode(self._root / item["image"][0], self._canvas)
            for item in items
        ]
        bad = [place for place, pixels in enumerate(pictures) if isinstance(pixels, str)]
        if bad:
            raise UnreadableContent(bad, str(pictures[bad[0]]))
        vectors: list[np.ndarray | None] = [None] * len(items)
        # processors take batches in which all have a picture, or none
        for with_picture in (True, False):
            places = [place for place, pixels in enumerate(pictures) if (pixels is not None) == with_picture]
            for start in range(0, len(places), self.config.batch_size):
                some = places[start : start + self.config.batch_size]
                made = self._vectors(
                    [items[place]["text"] for place in some], [pictures[place] for place in some]
                )
                for place, vector in zip(some, made, strict=True):
                    vectors[place] = vector
        return np.stack(vectors)

    def _vectors(self, texts: Sequence[str | None], pictures: Sequence[np.ndarray | None]) -> np.ndarray:
        """[B, F] of items that all have a picture, or none."""
        import torch
        from PIL import Image

        seen = [Image.fromarray(pixels) for pixels in pictures if pixels is not None]
        prompts = [self._prompt(text, bool(seen)) for text in texts]
        given = self._processor(
            text=prompts, images=seen or None, padding=True, return_tensors="pt", **self._added
        ).to(self.config.device)
        with torch.inference_mode():
            states_BLD = self._model(**given).last_hidden_state
            vectors_BF = pool(states_BLD, given["attention_mask"], self.config.pooling).float()
        if (self.config.width or 0) > vectors_BF.shape[1]:
            raise FeatureError(f"width = {self.config.width}", expected=f"at most {vectors_BF.shape[1]}")
        vectors_BF = vectors_BF[:, : self.config.width]
        if self.config.normalise:
            vectors_BF = torch.nn.functional.normalize(vectors_BF, dim=1)
        return vectors_BF.cpu().numpy()

    def _prompt(self, text: str | None, seen: bool) -> str:
        config, processor = self.config, self._processor
        if config.prompt == "plain":
            image = processor.image_token if seen else ""
            return " ".join(filter(None, (config.instruction, image, text))) + config.ending
        item = ([{"type": "image"}] if seen else []) + ([{"type": "text", "text": text}] if text else [])
        talk = [{"role": "user", "content": item}]
        if config.instruction:
            talk.insert(0, {"role": "system", "content": [{"type": "text", "text": config.instruction}]})
        written = processor.apply_chat_template(
            talk, add_generation_prompt=config.generation_prompt, tokenize=False
        )
        return written + config.ending

    @property
    def _added(self) -> dict[str, Any]:
        """A chat's template writes the special tokens itself."""
        return {"add_special_tokens": False} if self.config.prompt == "chat" else {}

    @property
    def _canvas(self) -> Geometry:
        side = self.config.max_side
        return Geometry((side, side), (side, side), "patches", patch=1, max_patches=side * side)

    @cached_property
    def _model(self) -> Any:
        return self._pretrained.model.to(self.config.device)

    @cached_property
    def _pretrained(self) -> Pretrained:
        return load_transformers(self._name)

    @cached_property
    def _processor(self) -> Any:
        transformers = require("transformers", "train", purpose=f"the encoder {self.config.encoder!r}")
        folder = Path(self._name).expanduser()
        with explained(
            self.config.encoder, "give a folder that holds the model with its processor and tokenizer"
        ):
            processor = transformers.AutoProcessor.from_pretrained(
                str(folder) if folder.is_dir() else self._name
            )
        needed = (
            "tokenizer",
            "image_processor",
            *(("image_token",) if self.config.prompt == "plain" else ()),
        )
        if not all(hasattr(processor, name) for name in needed):
            raise FeatureError("does not read text and pictures together", where=self.config.encoder)
        if self.config.prompt == "chat" and getattr(processor, "chat_template", None) is None:
            raise FeatureError(
                "the processor has no chat template", where=self.config.encoder, fix="prompt = 'plain'"
            )
        processor.tokenizer.padding_side = "right"
        if processor.tokenizer.pad_token is None:  # padding is masked: any token will do
            processor.tokenizer.pad_token = processor.tokenizer.eos_token
        return processor

    @property
    def _name(self) -> str:
        return self.config.encoder.partition(":")[2]

"""Text towers of open_clip: the text vector of the space that they share with images."""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from recsys.features.pretrained import OpenClip, load_open_clip
from recsys.features.text.base import TextEncoder, tokenizer_digest
from recsys.features.text.windows import pieces

_LONG_WORD = re.compile(r"\S{100}")


class OpenClipEncoder(TextEncoder):
    """open_clip's tokenizer fills every text up to the length that the tower was built for."""

    def identity(self) -> Mapping[str, Any]:
        inner = self._inner_tokenizer
        return dict(self._loaded.facts) | ({"tokenizer": tokenizer_digest(inner)} if inner else {})

    @property
    def limit(self) -> float:
        return self._tokenizer.context_length

    @cached_property
    def special(self) -> int:
        inner = self._inner_tokenizer
        # a start and an end; one form of tokenizer adds a class token
        ends = len(inner("")["input_ids"]) if inner else 2
        ends += getattr(self._tokenizer, "tokenizer_mode", "") == "clips"
        return ends + sum(self.count([self._instruction]))

    def count(self, texts: Sequence[str]) -> list[int]:
        if self._inner_tokenizer is None:
            # CLIP's own tokenizer takes time that grows with the square of a word's length
            parts = [pieces(text) if _LONG_WORD.search(text) else [text] for text in texts]
            return [sum(len(self._tokenizer.encode(part)) for part in some) for some in parts]
        found = self._inner_tokenizer(list(texts), add_special_tokens=False, verbose=False)
        return [len(tokens) for tokens in found["input_ids"]]

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        import torch

        with torch.inference_mode():
            tokens = self._tokenizer([self._instruction + text for text in texts])
            return self._loaded.model.encode_text(tokens).float().numpy()

    @cached_property
    def _loaded(self) -> OpenClip:
        return load_open_clip(self.name, self.config.weights, self.config.random_weights)

    @cached_property
    def _tokenizer(self) -> Any:
        return self._loaded.tokenizer()

    @property
    def _inner_tokenizer(self) -> Any:
        """The tokenizer of transformers that most wrap; None for CLIP's own."""
        return getattr(self._tokenizer, "tokenizer", None)

    @property
    def _instruction(self) -> str:
        return self.config.instruction or ""

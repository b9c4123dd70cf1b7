"""Text encoders of transformers: token states pooled, or the projected text vector of a CLIP or SigLIP model."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from recsys.errors import FeatureError, require
from recsys.features.pretrained import Pretrained, explained, load_transformers
from recsys.features.text.base import TextEncoder, chosen_limit, positions, tokenizer_digest

if TYPE_CHECKING:
    from torch import Tensor

_USUAL_TOKENS = 512
"""Unless more are asked for: a decoder's own limit can be millions, and cost grows with the square."""
_PADDED = "siglip"
"""Models of this family were trained on texts filled up to their full length, padding unmasked: so they are read."""


def pool(states_BLD: "Tensor", mask_BL: "Tensor", how: Literal["mean", "cls", "last"]) -> "Tensor":
    """[B, D] of token states. Padding (mask 0) may lie on either side; every row has a token."""
    import torch

    if how == "mean":
        weights_BL1 = mask_BL.unsqueeze(-1).to(states_BLD.dtype)
        return (states_BLD * weights_BL1).sum(1) / weights_BL1.sum(1)
    place_L = torch.arange(1, mask_BL.shape[1] + 1, device=mask_BL.device)
    place_BL = place_L * mask_BL if how == "last" else place_L.flip(0) * mask_BL
    return states_BLD[torch.arange(len(states_BLD), device=mask_BL.device), place_BL.argmax(1)]


class TransformersEncoder(TextEncoder):
    """A folder or hub name that `AutoModel` reads. Padding goes to the right whatever the tokenizer says: a token then
    has the same position in every batch, and what follows it is masked or, in a decoder, out of sight."""

    def identity(self) -> Mapping[str, Any]:
        pooling = "projected" if _joint(self._pretrained.model) else self._pooling
        return dict(self._pretrained.facts) | {
            "tokenizer": tokenizer_digest(self._tokenizer),
            "pooling": pooling,
        }

    @cached_property
    def limit(self) -> float:
        most = positions(self._pretrained.model)
        stated = self._tokenizer.model_max_length  # 1e30 where nothing is stated
        return chosen_limit(self.config.max_tokens, min(most, stated, _USUAL_TOKENS), most)

    @cached_property
    def special(self) -> int:
        return len(self._tokenizer("")["input_ids"]) + sum(self.count([self._instruction]))

    def count(self, texts: Sequence[str]) -> list[int]:
        found = self._tokenizer(list(texts), add_special_tokens=False, verbose=False)
        return [len(tokens) for tokens in found["input_ids"]]

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        import torch

        tokens = self._tokenizer(
            [self._instruction + text for text in texts], truncation=True, max_length=int(self.limit)
        )
        with torch.inference_mode():
            vectors_BD = self._projected(tokens) if _joint(self._pretrained.model) else self._pooled(tokens)
        return vectors_BD.float().numpy()

    def _projected(self, tokens: Mapping[str, Any]) -> "Tensor":
        model = self._pretrained.model
        call = getattr(model, "get_text_features", model)  # a text tower saved alone is called itself
        if model.config.model_type.startswith(_PADDED):
            found = call(input_ids=self._padded(tokens, "max_length", int(positions(model)))["input_ids"])
        else:
            batch = self._padded(tokens)
            found = call(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        for name in ("text_embeds", "pooler_output"):
            if hasattr(found, name):
                return getattr(found, name)
        return found  # a tensor before transformers 5

    def _pooled(self, tokens: Mapping[str, Any]) -> "Tensor":
        batch = self._padded(tokens)
        states_BLD = getattr(self._token_encoder(**batch), "last_hidden_state", None)
        if states_BLD is None:
            raise FeatureError(
                "gives no token states", where=self.config.encoder, expected="an encoder or decoder of text"
            )
        return pool(states_BLD, batch["attention_mask"], self._pooling)

    def _padded(
        self, tokens: Mapping[str, Any], padding: bool | str = True, length: int | None = None
    ) -> Any:
        return self._tokenizer.pad(
            tokens, padding=padding, max_length=length, return_attention_mask=True, return_tensors="pt"
        )

    @cached_property
    def _pretrained(self) -> Pretrained:
        found = load_transformers(self.name, pooler=False)
        if self.config.pooling is not None and _joint(found.model):
            raise FeatureError(
                f"pooling = {self.config.pooling!r}",
                where=self.config.encoder,
                fix="leave it out: this model has a text vector of its own",
            )
        return found

    @cached_property
    def _token_encoder(self) -> Any:
        model = self._pretrained.model
        return model.get_encoder() if model.config.is_encoder_decoder else model

    @property
    def _pooling(self) -> Literal["mean", "cls", "last"]:
        return self.config.pooling or "mean"

    @property
    def _instruction(self) -> str:
        return self.config.instruction or ""

    @cached_property
    def _tokenizer(self) -> Any:
        transformers = require("transformers", "train", purpose=f"the encoder {self.config.encoder!r}")
        folder = Path(self.name).expanduser()
        with explained(self.config.encoder, "give a folder that holds the model with its tokenizer"):
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                str(folder) if folder.is_dir() else self.name
            )
        tokenizer.padding_side = tokenizer.truncation_side = "right"
        if tokenizer.pad_token is None:  # padding is masked: any token will do
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
        return tokenizer


def _joint(model: Any) -> bool:
    """Whether texts have a vector in a space that they share with images."""
    tower = type(model).__name__.endswith("WithProjection") or model.config.model_type.startswith(_PADDED)
    return tower or hasattr(model, "get_text_features")

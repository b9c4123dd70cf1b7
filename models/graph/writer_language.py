"""The causal language model inside a writer: frozen, with adapters or new gated layers, and neighbours led in."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from recsys.ego_graph import ABSENT
from recsys.errors import ModelError, require
from recsys.models.decoder import layers_of
from recsys.models.graph.attention import Block
from recsys.models.graph.writer_config import WriterConfig
from recsys.models.graph.writer_tokens import NeighbourTokens

NO_LABEL = -100


@dataclass(frozen=True)
class CausalModel:
    """A causal language model of transformers, with its head, and its tokenizer. facts: what a manifest says of it."""

    model: Any
    tokenizer: Any
    facts: Mapping[str, Any]


Open = Callable[[], CausalModel]
"""Loads it anew: adapters and new layers change the model that comes."""


class WriterNetwork(nn.Module):
    """Batches are dicts of tensors: ids, mask [B, L], padded on the left; labels [B, T], those of the last T places;
    and what `NeighbourTokens` reads. Its state is what learns: the frozen language model stays out of checkpoints."""

    def __init__(self, config: WriterConfig, language: CausalModel, widths: Mapping[str, int]):
        """widths: of the tables' whitened rows. Raises ModelError for a model without a list of layers."""
        super().__init__()
        self.config = config
        words_VD = language.model.get_input_embeddings().weight
        width, length = words_VD.shape[1], words_VD.detach().float().square().mean().sqrt().item()
        language.model.requires_grad_(False)
        layers = layers_of(language.model)  # adapters change them in place
        self.language = _adapted(language.model, config.lora_rank) if config.lora_rank else language.model
        self.tokens = self.cross = None
        self.memory: tuple[torch.Tensor, torch.Tensor] | None = None
        if config.entry != "none":
            self.tokens = NeighbourTokens(config, widths, width, length)
        if config.entry == "cross":
            after = layers[config.every - 1 :: config.every]
            if not after:
                raise ModelError(f"every = {config.every}", expected=f"at most {len(layers)}, its layers")
            heads = language.model.config.num_attention_heads
            self.cross = nn.ModuleList(Block(width, heads, gated=True) for _ in after)
            for layer, block in zip(after, self.cross, strict=True):
                layer.register_forward_hook(self._reading(block))

    def _reading(self, block: Block) -> Callable:
        def hook(layer: nn.Module, inputs: Any, output: Any) -> Any:
            memory_BSD, bias_B1S = self.memory
            if isinstance(output, tuple):
                return (block(output[0], memory_BSD, bias_B1S), *output[1:])
            return block(output, memory_BSD, bias_B1S)

        return hook

    def learnt(self) -> dict[str, nn.Parameter]:
        return {name: value for name, value in self.named_parameters() if value.requires_grad}

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return dict(self.learnt())

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
        """Raises ModelError where the state is of another model."""
        own = self.learnt()
        wrong = sorted(own.keys() ^ state.keys())
        wrong += [name for name in own.keys() & state.keys() if own[name].shape != state[name].shape]
        if wrong:
            raise ModelError(f"the weights do not fit: {len(wrong)} differ, first {wrong[0]!r}")
        for name, value in own.items():
            value.copy_(state[name])

    def _inputs(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Words, with neighbours before them or in `memory`, and the mask of both."""
        x_BLD, mask_BL = self.language.get_input_embeddings()(batch["ids"]), batch["mask"]
        if self.tokens is not None:
            tokens_BSD, there_BS = self.tokens(batch)
            if self.cross is not None:
                self.memory = tokens_BSD, torch.where(there_BS, 0.0, ABSENT)[:, None]
            else:
                x_BLD = torch.cat([tokens_BSD.to(x_BLD.dtype), x_BLD], dim=1)
                mask_BL = torch.cat([there_BS.to(mask_BL.dtype), mask_BL], dim=1)
        return {"inputs_embeds": x_BLD, "attention_mask": mask_BL}

    def forward(self, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        """(mean loss a token of the texts, no parts)."""
        labels_BT = batch["labels"]
        logits_BTV = self.logits(batch)
        loss = F.cross_entropy(logits_BTV.flatten(0, 1), labels_BT.flatten(), ignore_index=NO_LABEL)
        return loss, {}

    def logits(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """[B, T, V] of the places that `labels` names, each made before it is read."""
        inputs = self._inputs(batch)
        # absent tokens take no place, or what is masked would move the words
        places_BL = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
        kept = batch["labels"].shape[1] + 1
        out = self.language(**inputs, position_ids=places_BL, use_cache=False, logits_to_keep=kept)
        return out.logits[:, :-1].float()

    def generate(self, batch: Mapping[str, torch.Tensor], end: int | None, pad: int) -> torch.Tensor:
        """[B, T] ids of what the model would write on, the likeliest at each place."""
        settings = type(self.language.generation_config)(
            max_new_tokens=self.config.max_text_tokens, do_sample=False, eos_token_id=end, pad_token_id=pad,
            no_repeat_ngram_size=self.config.no_repeat or None,
        )  # fmt: skip
        with warnings.catch_warnings():  # that no_repeat holds for what is written alone, as it is meant
            warnings.filterwarnings("ignore", message="Passing `no_repeat_ngram_size`")
            return self.language.generate(**self._inputs(batch), generation_config=settings)


def _adapted(model: Any, rank: int) -> nn.Module:
    peft = require("peft", "llm", purpose="lora_rank above 0")
    return peft.get_peft_model(
        model,
        peft.LoraConfig(
            r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )

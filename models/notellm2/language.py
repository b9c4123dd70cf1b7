"""The language model inside: cut to its first layers, and made to learn in part, by adapters, or in full."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from recsys.errors import ModelError, require
from recsys.models.decoder import layers_of
from recsys.models.notellm2.config import NoteLLM2Config


@dataclass(frozen=True)
class LanguageModel:
    """A headless decoder of transformers in float32 and its tokenizer. facts: what a manifest says of it."""

    model: Any
    tokenizer: Any
    facts: Mapping[str, Any]


Open = Callable[[], LanguageModel]
"""Loads it anew: the model that comes is changed by training."""


def prepared(language: LanguageModel, config: NoteLLM2Config) -> nn.Module:
    """The decoder with `requires_grad` where it learns. Raises ModelError where it has too few layers."""
    decoder = language.model
    layers = layers_of(decoder)
    if config.layers is not None:
        if config.layers > len(layers):
            raise ModelError(
                f"layers = {config.layers}", expected=f"at most {len(layers)}, which this model has"
            )
        del layers[config.layers :]
        decoder.config.num_hidden_layers = config.layers
    decoder.requires_grad_(config.tune == "full")
    if config.tune == "last":
        if config.last_layers > len(layers):
            raise ModelError(f"last_layers = {config.last_layers}", expected=f"at most {len(layers)}")
        for layer in layers[len(layers) - config.last_layers :]:
            layer.requires_grad_(True)
    if config.tune == "lora":
        decoder = _adapted(decoder, config)
    if config.gradient_checkpointing:
        decoder.gradient_checkpointing_enable({"use_reentrant": False})
    return decoder


def _adapted(decoder: Any, config: NoteLLM2Config) -> nn.Module:
    import torch

    peft = require("peft", "llm", purpose="tune = 'lora'")
    if config.frozen_dtype == "bfloat16":
        decoder = decoder.to(torch.bfloat16)
    adapters = peft.LoraConfig(
        r=config.lora_rank, lora_alpha=2 * config.lora_rank, lora_dropout=0.0, target_modules="all-linear",
        task_type="FEATURE_EXTRACTION",
    )  # fmt: skip
    return peft.get_peft_model(decoder, adapters)

"""The network: prompts and visual features in, the multimodal and the visual vector out."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import nn

from recsys.models.notellm2.config import NoteLLM2Config
from recsys.models.notellm2.language import LanguageModel, prepared
from recsys.models.notellm2.parts import Gate, Places, QFormer


class Vectors(NamedTuple):
    """joint_RD: multimodal vectors (n_m); visual_RD: visual ones (n_v), None where the prompt has one note.
    Neither is normalised: a width's vector is its first values, brought to length 1."""

    joint_RD: torch.Tensor
    visual_RD: torch.Tensor | None


class NoteNetwork(nn.Module):
    """Batches are dicts of tensors: ids, mask [R, L], visual_at, joint_at [R], image [R, V, F], seen [R].

    The first visual token is the global feature (a class token, or pooled), which the gate takes. seen is False where a
    note has no picture; a learnt input stands in its places, and the gate is shut.
    """

    def __init__(self, config: NoteLLM2Config, language: LanguageModel, image_shape: tuple[int, int]):
        """image_shape: (visual tokens, their width)."""
        super().__init__()
        self.config = config
        decoder = prepared(language, config)
        self.decoder = decoder
        rows = decoder.get_input_embeddings().weight
        self.vocabulary, width = rows.shape
        tokens, features = image_shape
        # ids behind the vocabulary: the picture's places, whose rows are the connector's, and the word
        self.word_D = nn.Parameter(rows.detach().float().mean(0))
        if config.sees:
            self.absent_ND = nn.Parameter(rows.detach().float().mean(0).repeat(config.visual_tokens, 1))
            self.connector = self._connector(features, tokens, width)
        if config.fuses:
            self.gate = Gate(
                features, width, residual=config.variant == "residual", balance=config.balance_norms
            )
        # what standardises the visual features: no gradient, but part of the state
        self.register_buffer("mean_F", torch.zeros(features))
        self.register_buffer("scale_F", torch.ones(features))
        self.head = nn.Linear(width, config.widths[-1], bias=False)

    def _connector(self, features: int, tokens: int, width: int) -> nn.Module:
        config = self.config
        if config.connector == "qformer":
            return QFormer(
                features,
                config.visual_tokens,
                width,
                layers=config.qformer_layers,
                inner=config.qformer_width,
            )
        return Places(features, tokens, config.visual_tokens, width, hidden=config.connector == "mlp")

    def pretrained(self) -> list[nn.Parameter]:
        """What learns inside the language model."""
        return [value for value in self.decoder.parameters() if value.requires_grad]

    def learnt(self) -> dict[str, nn.Parameter]:
        """Everything that learns, by name: the state beside the frozen language model."""
        return {name: value for name, value in self.named_parameters() if value.requires_grad}

    def forward(self, batch: Mapping[str, torch.Tensor]) -> Vectors:
        if self.config.compute == "float32":
            return self._vectors(batch)
        with torch.autocast(batch["ids"].device.type, torch.bfloat16):
            return self._vectors(batch)

    def _vectors(self, batch: Mapping[str, torch.Tensor]) -> Vectors:
        ids_RL = batch["ids"]
        rows = self.decoder.get_input_embeddings()
        known_RL = ids_RL < self.vocabulary
        inputs_RLD = rows(torch.where(known_RL, ids_RL, 0)).clone()
        inputs_RLD[ids_RL == self.vocabulary + 1] = self.word_D.to(inputs_RLD.dtype)
        image_RVF, seen_R = (batch["image"] - self.mean_F) * self.scale_F, batch["seen"]
        if self.config.sees:
            places_RND = self.connector(image_RVF)
            places_RND = torch.where(seen_R[:, None, None], places_RND, self.absent_ND.to(places_RND.dtype))
            inputs_RLD[ids_RL == self.vocabulary] = places_RND.flatten(0, 1).to(inputs_RLD.dtype)
        out = self.decoder(inputs_embeds=inputs_RLD, attention_mask=batch["mask"], use_cache=False)
        states_RLD = out.last_hidden_state
        at_R = torch.arange(len(ids_RL), device=ids_RL.device)
        joint_RD = self._read(states_RLD[at_R, batch["joint_at"]], image_RVF, seen_R)
        if not self.config.micl:
            return Vectors(joint_RD, None)
        return Vectors(joint_RD, self._read(states_RLD[at_R, batch["visual_at"]], image_RVF, seen_R))

    def _read(self, state_RD: torch.Tensor, image_RVF: torch.Tensor, seen_R: torch.Tensor) -> torch.Tensor:
        state_RD = state_RD.to(self.head.weight.dtype)
        if self.config.fuses:
            state_RD = self.gate(image_RVF[:, 0], state_RD, seen_R)
        return self.head(state_RD).to(self.head.weight.dtype)  # of mixed precision

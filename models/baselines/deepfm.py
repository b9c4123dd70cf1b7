"""DeepFM: a factorisation machine and a network over the fields of a user and an item.

After Guo et al., "DeepFM: A Factorization-Machine based Neural Network for CTR Prediction" (IJCAI 2017), equations 1 to
4. Departure: it is trained on interactions and items drawn at random, in place of shown and clicked ones.
"""

import itertools
from collections.abc import Mapping
from typing import Annotated, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from recsys.config import Config
from recsys.models.base import FitContext
from recsys.models.field_vectors import FieldVectors
from recsys.models.pairs import PairBatches
from recsys.models.trunk import Share
from recsys.pairwise import deepfm_scores
from recsys.schema import Form, Queries, legal_width


class DeepFMConfig(Config):
    """Settings of DeepFM."""

    tables: tuple[str, ...] = ()
    """Tables of users and of items: typed fields, or vectors, each of which counts as one field."""
    width: Annotated[int, Field(ge=1)] = 16
    """Width of a field's vector."""
    hidden: Annotated[tuple[int, ...], Field(min_length=1)] = (64, 32)
    """Units of the network's layers."""
    dropout: Share = 0.2
    """Dropout on the network's layers."""
    whiten: Annotated[int, Field(ge=1)] = 64
    """Most whitened dimensions kept of a table of vectors."""
    batch_size: Annotated[int, Field(ge=1)] = 1024
    """Interactions a step."""
    negatives: Annotated[int, Field(ge=1)] = 4
    """Items drawn for each interaction, in proportion to (training count)^negative_power."""
    negative_power: Annotated[float, Field(ge=0)] = 0.0
    """0 = uniformly."""


class DeepFMModule(nn.Module):
    """Both sides' field vectors, one value wider than asked for: the last one is the field's linear weight."""

    def __init__(self, config: DeepFMConfig, ctx: FitContext):
        super().__init__()
        self.config, width = config, config.width
        counts_I = ctx.train.item_counts()
        known = {"user": np.diff(ctx.train.indptr_U1) > 0, "item": counts_I > 0}
        sides = {
            entity: FieldVectors(
                [ctx.tables[entity, name] for name in config.tables if (entity, name) in ctx.tables],
                known[entity],
                width + 1,
                config.whiten,
            )
            for entity in ("user", "item")
        }
        self.sides = nn.ModuleDict(sides)
        sizes = [*config.hidden, 1]
        self.first = nn.ModuleDict(
            {
                entity: nn.Linear(len(side) * width, sizes[0], bias=entity == "item")
                for entity, side in sides.items()
            }
        )
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        power_I = np.where(counts_I > 0, np.maximum(counts_I, 1) ** config.negative_power, 0.0)
        self.register_buffer("draw_I", torch.from_numpy(power_I).float(), persistent=False)

    def side(self, entity: str, rows_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(constant [N], factor [N, D], share of the first hidden layer [N, H]): the machine's products within a side
        are a constant of it, those between sides the product of the sums."""
        vectors_NME = self.sides[entity](rows_N)
        linear_NM, vectors_NMD = vectors_NME[..., -1], vectors_NME[..., :-1]
        factor_ND = vectors_NMD.sum(1)
        within_N = (factor_ND.square() - vectors_NMD.square().sum(1)).sum(1) / 2
        return linear_NM.sum(1) + within_N, factor_ND, self.first[entity](vectors_NMD.flatten(1))

    def forward(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        positive_P = batch["item_P"]
        drawn = torch.multinomial(self.draw_I, len(positive_P) * self.config.negatives, replacement=True)
        items_PC = torch.cat([positive_P[:, None], drawn.view(len(positive_P), -1)], dim=1)
        user_P, user_PD, user_PH = self.side("user", batch["user_P"])
        rows, place_PC = items_PC.unique(return_inverse=True)
        item_N, item_ND, item_NH = self.side("item", rows)
        hidden = user_PH[:, None] + item_NH[place_PC]
        for layer in self.layers:
            hidden = layer(F.dropout(F.relu(hidden), self.config.dropout, self.training))
        dots_PC = torch.einsum("pd,pcd->pc", user_PD, item_ND[place_PC])
        logits_PC = user_P[:, None] + item_N[place_PC] + dots_PC + hidden[..., 0]
        target_PC = torch.zeros_like(logits_PC)
        target_PC[:, 0] = 1
        weight_PC = (
            items_PC != positive_P[:, None]
        ).float()  # a drawn item that is the positive does not count
        weight_PC[:, 0] = 1
        loss = F.binary_cross_entropy_with_logits(logits_PC, target_PC, weight_PC, reduction="sum")
        return loss / weight_PC.sum(), {}


class DeepFM(PairBatches[DeepFMConfig]):
    """Users and items without a training row are scored by their attributes alone."""

    Config = DeepFMConfig
    uses_history = False

    @property
    def scores_cold_items(self) -> bool:
        return bool(self.config.tables)

    def setup(self, ctx: FitContext) -> None:
        for name in self.config.tables:
            if ("user", name) not in ctx.tables:
                ctx.item_table(name)  # says which tables there are
        self.module = DeepFMModule(self.config, ctx)
        self.take_pairs(ctx)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What `recsys.pairwise.deepfm_scores` takes, as it stands now."""
        return self.once(self._learnt) if hasattr(self, "module") else self.loaded

    @torch.inference_mode()
    def _learnt(self) -> dict[str, np.ndarray]:
        module, found = self.module.eval(), {}
        for entity in ("user", "item"):
            rows = module.sides[entity].rows + (
                entity == "user"
            )  # the row after the last is of an unknown user
            rows_N = torch.arange(rows, device=module.draw_I.device)
            side = zip(("constant", "factor", "hidden"), module.side(entity, rows_N), strict=True)
            found |= {f"{entity}_{name}": value.cpu().numpy() for name, value in side}
        for number, layer in enumerate(module.layers):
            found[f"hidden.{number}.weight"] = layer.weight.cpu().numpy().copy()
            found[f"hidden.{number}.bias"] = layer.bias.cpu().numpy().copy()
        return found

    def score(
        self, queries: Queries, candidates: np.ndarray | None = None, width: int | None = None
    ) -> np.ndarray:
        legal_width(width, self.widths)
        return deepfm_scores(self.arrays, queries, candidates)

    def state(self) -> dict[str, np.ndarray]:
        return self.arrays

    @classmethod
    def from_state(cls, config: DeepFMConfig, state: Mapping[str, np.ndarray]) -> Self:
        model = cls(config)
        model.loaded = dict(state)
        return model

    def serving_form(self) -> Form:
        return Form("deepfm", self.arrays)

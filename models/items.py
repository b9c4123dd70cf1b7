"""Item vectors of a sequence model: one projection per modality and a learnt vector per item, summed."""

from collections.abc import Mapping
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import nn

from recsys.models.trunk import Share, TrunkConfig

Features = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""name -> (whitened rows [N, K], presence mask [N])."""


class ItemsConfig(TrunkConfig):
    """Settings of item vectors."""

    tables: tuple[str, ...] = ()
    """Item feature tables that enter the item vectors; none = ids alone."""
    whiten: Annotated[int, Field(ge=1)] = 256
    """Most whitened dimensions kept of each table."""
    modality_dropout: Share = 0.0
    """Share of items whose content in a table is taken for missing in a training step, each table for itself."""
    id_vectors: bool = True
    """Add a learnt vector per item; off = content only."""
    id_dropout: Share = 0.1
    """Share of items whose id vector is zero in a training step, so that content alone learns to score."""
    item_bias: bool = True
    """A learnt popularity bias per item, in every width's scores; zero for items never trained on."""


class ItemEncoder(nn.Module):
    """Item vectors and biases. A modality that an item lacks is a learnt vector of its own."""

    def __init__(self, config: ItemsConfig, features: Features, trained_I: np.ndarray):
        super().__init__()
        width = config.widths[-1]
        self.id_dropout, self.modality_dropout = config.id_dropout, config.modality_dropout
        for name, (whitened_IK, present_I) in features.items():
            self.register_buffer(f"whitened_{name}", torch.from_numpy(whitened_IK))
            self.register_buffer(f"present_{name}", torch.from_numpy(present_I))
        self.projections = nn.ModuleDict(
            {name: nn.Linear(rows.shape[1], width, bias=False) for name, (rows, _) in features.items()}
        )
        self.missing = nn.ParameterDict({name: nn.Parameter(torch.zeros(width)) for name in features})
        for projection in self.projections.values():
            nn.init.normal_(projection.weight, std=0.1 / projection.in_features**0.5)
        self.register_buffer("trained_I", torch.from_numpy(trained_I.astype(np.float32)))
        self.ids = nn.Embedding(len(trained_I), width) if config.id_vectors else None
        if self.ids is not None:
            nn.init.normal_(self.ids.weight, std=0.02)
        self.own_bias = nn.Parameter(torch.zeros(len(trained_I))) if config.item_bias else None

    def content(self, features: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor | float:
        """[N, D] from whitened rows and presence masks; 0 where the model has no tables."""
        total: torch.Tensor | float = 0.0
        for name, projection in self.projections.items():
            whitened_NK, present_N = features[name]
            if self.training and self.modality_dropout:
                present_N = present_N & (
                    torch.rand(len(present_N), device=present_N.device) >= self.modality_dropout
                )
            total = total + torch.where(present_N[:, None], projection(whitened_NK), self.missing[name])
        return total

    def forward(self, rows_N: torch.Tensor | None = None) -> torch.Tensor:
        """[N, D] vectors of these items, each once, or of the catalogue; an item never trained on has no id vector."""
        own = {
            name: (self._rows(f"whitened_{name}", rows_N), self._rows(f"present_{name}", rows_N))
            for name in self.missing
        }
        items_ND = self.content(own)
        if self.ids is not None:
            keep_N = self._rows("trained_I", rows_N)
            if self.training and self.id_dropout:
                keep_N = keep_N * (torch.rand_like(keep_N) >= self.id_dropout)
            ids_ND = self.ids.weight if rows_N is None else self.ids(rows_N)
            items_ND = items_ND + keep_N[:, None] * ids_ND
        return items_ND

    def _rows(self, buffer: str, rows_N: torch.Tensor | None) -> torch.Tensor:
        whole = self.get_buffer(buffer)
        return whole if rows_N is None else whole[rows_N]

    def bias(self) -> torch.Tensor:
        """[I]; zero for items never trained on, and everywhere without `item_bias`."""
        return torch.zeros_like(self.trained_I) if self.own_bias is None else self.own_bias * self.trained_I

"""LightGCN: vectors smoothed over the graph of users and items.

After He et al., "LightGCN: Simplifying and Powering Graph Convolution Network for Recommendation" (SIGIR 2020),
equations 3, 4 and 7. Departure: decay of the weights is the loop's (decoupled, every row at every step).
"""

from typing import Annotated

import torch
from pydantic import Field

from recsys.models.graph.propagation import UserItems
from recsys.models.pairs import PairsConfig, PairsModel, PairsModule
from recsys.schema import Log


class LightGCNConfig(PairsConfig):
    """Settings of LightGCN."""

    layers: Annotated[int, Field(ge=1)] = 3
    """Times that vectors are smoothed; the result is the mean over all of them and the vectors themselves."""
    item_bias: bool = False
    """A learnt popularity bias per item."""


class LightGCNModule(PairsModule):
    """e(l + 1) = A e(l) over users and items together, A = D^-1/2 (0 R; R' 0) D^-1/2; e = mean of e(0) .. e(layers)."""

    def __init__(self, config: LightGCNConfig, log: Log):
        super().__init__(config, log)
        self.graph = UserItems(log)

    def vectors(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.graph(*super().vectors(), self.config.layers)


class LightGCN(PairsModel[LightGCNConfig]):
    """Matrix factorisation whose vectors are smoothed over the training graph."""

    Config = LightGCNConfig
    Module = LightGCNModule

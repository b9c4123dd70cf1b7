"""LightGCN: vectors smoothed over the graph of users and items.

After He et al., "LightGCN: Simplifying and Powering Graph Convolution Network for Recommendation" (SIGIR 2020),
equations 3, 4 and 7. Departure: decay of the weights is the loop's (decoupled, every row at every step).
"""

from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from recsys.models.pairs import PairsConfig, PairsModel, PairsModule
from recsys.models.sparse import csr, symmetric_product
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
        pairs_2N = np.unique(np.stack([log.user_N, log.item_N + log.num_users]), axis=1)
        edges_2N = torch.from_numpy(np.concatenate([pairs_2N, pairs_2N[::-1]], axis=1))
        size = log.num_users + log.num_items
        edges_2N, weights_N = gcn_norm(edges_2N, num_nodes=size, add_self_loops=False)
        self.register_buffer("graph_NN", csr(edges_2N, weights_N, size), persistent=False)

    def vectors(self) -> tuple[torch.Tensor, torch.Tensor]:
        users_UD, items_ID = super().vectors()
        layer_ND = total_ND = torch.cat([users_UD, items_ID])
        for _ in range(self.config.layers):
            layer_ND = symmetric_product(self.graph_NN, layer_ND)
            total_ND = total_ND + layer_ND
        mean_ND = total_ND / (self.config.layers + 1)
        return mean_ND.split([len(users_UD), len(items_ID)])


class LightGCN(PairsModel[LightGCNConfig]):
    """Matrix factorisation whose vectors are smoothed over the training graph."""

    Config = LightGCNConfig
    Module = LightGCNModule

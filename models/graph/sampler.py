"""Neighbours of a batch of nodes as dense [B, f] blocks, drawn from a graph in CSR form by plain tensor operations."""

import numpy as np
import torch
from torch import nn

from recsys.item_graph import Relation


class Sampler(nn.Module):
    """At most `fanout` neighbours of each node, in order of weight.

    A node of no more than that has them all. Of a longer row, evaluation takes the strongest, and training draws with
    replacement: start + floor(rand * degree). Absent places hold node -1 and weight 0.
    """

    def __init__(self, relation: Relation, fanout: int):
        super().__init__()
        self.fanout = fanout
        for name, array in {
            "indptr": relation.indptr_I1.astype(np.int64),
            "indices": np.append(relation.indices_E, -1),  # what an absent place reads
            "weight": np.append(relation.weight_E, np.float32(0)),
        }.items():
            self.register_buffer(name, torch.from_numpy(array), persistent=False)

    def forward(self, rows_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(nodes [B, f], weights [B, f])."""
        start_B1 = self.indptr[rows_B][:, None]
        degree_B1 = self.indptr[rows_B + 1][:, None] - start_B1
        place_BF = torch.arange(self.fanout, device=rows_B.device).expand(len(rows_B), -1)
        if self.training:
            drawn_BF = (torch.rand(place_BF.shape, device=rows_B.device) * degree_B1).long()
            drawn_BF = torch.minimum(drawn_BF, degree_B1 - 1)  # rand may round up to 1 in float32
            place_BF = torch.where(degree_B1 > self.fanout, drawn_BF.sort(dim=1).values, place_BF)
        edge_BF = torch.where(place_BF < degree_B1, start_B1 + place_BF, len(self.indices) - 1)
        return self.indices[edge_BF], self.weight[edge_BF]

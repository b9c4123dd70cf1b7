"""Attention among the tokens of an item and its neighbours."""

import torch
import torch.nn.functional as F
from torch import nn

from recsys.ego_graph import ABSENT


class Attention(nn.Module):
    """Queries x attend to a memory. Keys and values of the memory are never made: the query is carried into the
    memory's own space, and what it finds there out of it, so the cost per token of the memory is one product."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x_BPD: torch.Tensor, memory_BSD: torch.Tensor, bias_BPS: torch.Tensor) -> torch.Tensor:
        """[B, P, D]; zeros for a query that nothing is there for. bias_BPS: added to the logits, P may be 1."""
        count, queries, width = x_BPD.shape
        per_head = (self.heads, width // self.heads, width)
        query = self.query(x_BPD).view(count, queries, *per_head[:2])
        asked = torch.einsum("bphd,hde->bphe", query, self.key.weight.view(per_head))
        logits = torch.einsum("bphe,bse->bphs", asked, memory_BSD) / per_head[1] ** 0.5 + bias_BPS[:, :, None]
        found = torch.einsum("bphs,bse->bphe", logits.softmax(-1), memory_BSD)
        values = torch.einsum("bphe,hde->bphd", found, self.value.weight.view(per_head))
        anyone = (bias_BPS > ABSENT / 2).any(-1, keepdim=True)
        return self.out(values.flatten(2)) * anyone


class Block(nn.Module):
    """Attention, then two layers on each token; both residual. gated: each times tanh of a gate that starts at 0, so
    that the block begins as the identity (Flamingo's way into a trained model)."""

    def __init__(self, width: int, heads: int, *, gated: bool):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.gates = nn.Parameter(torch.zeros(2)) if gated else None

    def forward(
        self, x_BPD: torch.Tensor, memory_BSD: torch.Tensor | None, bias_BPS: torch.Tensor
    ) -> torch.Tensor:
        """memory_BSD: None = the queries themselves."""
        own = self.norm1(x_BPD)
        attended = self.attention(own, own if memory_BSD is None else memory_BSD, bias_BPS)
        first, second = (1.0, 1.0) if self.gates is None else self.gates.tanh()
        x_BPD = x_BPD + first * attended
        return x_BPD + second * self.down(F.relu(self.up(self.norm2(x_BPD))))

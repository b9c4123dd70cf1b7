"""Nested (Matryoshka) layers: the first m outputs depend on the first m inputs only, for every width m.

Hence a model cut down to width m computes exactly the first m values of the big one (fMRLRec,
arXiv 2409.16627, section on full-scale Matryoshka weights).
"""

import itertools
import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

_GROUPED_FROM = 512
"""Input width from which a product per block is quicker than one with the zeros multiplied too."""


def increments(widths: tuple[int, ...]) -> list[tuple[int, int]]:
    """(start, end) of each width's own values."""
    return list(itertools.pairwise((0, *widths)))


def ascending(widths: tuple[int, ...]) -> tuple[int, ...]:
    """The widths, if they are legal; raises ValueError otherwise. For configs."""
    if not widths or widths[0] < 2 or any(b <= a for a, b in itertools.pairwise(widths)):
        raise ValueError("ascending widths from 2 on")
    return widths


class NestedLinear(nn.Module):
    """A linear map whose weight is block-lower-triangular: out block i sees in blocks 0..i.

    Initial weights follow each block row's own fan-in, as separate layers would.
    """

    def __init__(self, in_widths: tuple[int, ...], out_widths: tuple[int, ...], *, bias: bool = True):
        super().__init__()
        weight = torch.empty(out_widths[-1], in_widths[-1])
        mask = torch.zeros_like(weight)
        self.blocks = list(zip(increments(out_widths), in_widths, strict=True))
        for (start, end), fan_in in self.blocks:
            bound = 1 / math.sqrt(fan_in)
            weight[start:end].uniform_(-bound, bound)
            mask[start:end, :fan_in] = 1
        self.weight = nn.Parameter(weight * mask)
        self.bias = nn.Parameter(torch.zeros(out_widths[-1])) if bias else None
        self.register_buffer("mask", mask, persistent=False)

    def masked_weight(self) -> torch.Tensor:
        return self.weight * self.mask

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[-1] < _GROUPED_FROM or len(self.blocks) == 1:
            return F.linear(x, self.masked_weight(), self.bias)
        parts = [F.linear(x[..., :fan_in], self.weight[a:b, :fan_in]) for (a, b), fan_in in self.blocks]
        out = torch.cat(parts, dim=-1)
        return out if self.bias is None else out + self.bias


class BlockNorm(nn.Module):
    """An independent LayerNorm on each increment: a joint one would let late values change early ones."""

    def __init__(self, widths: tuple[int, ...], eps: float = 1e-5):
        super().__init__()
        self.blocks, self.eps = increments(widths), eps
        self.weight = nn.Parameter(torch.ones(widths[-1]))
        self.bias = nn.Parameter(torch.zeros(widths[-1]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [
            F.layer_norm(x[..., a:b], (b - a,), self.weight[a:b], self.bias[a:b], self.eps)
            for a, b in self.blocks
        ]
        return torch.cat(parts, dim=-1)


class NestedFFN(nn.Module):
    """Gated feed-forward: W2 (SiLU(Wg x) * (W1 x)), every matrix nested."""

    def __init__(self, widths: tuple[int, ...], multiple: int, dropout: float):
        super().__init__()
        hidden = tuple(multiple * width for width in widths)
        self.gate, self.up = NestedLinear(widths, hidden), NestedLinear(widths, hidden)
        self.down = NestedLinear(hidden, widths)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.dropout(F.silu(self.gate(x)) * self.up(x)))

    def arrays(self) -> dict[str, torch.Tensor]:
        """Weights for `recsys.serving.network.Network`."""
        return _arrays({"gate": self.gate, "up": self.up, "down": self.down})


class PlainFFN(nn.Module):
    """Feed-forward of two layers: W2 f(W1 x), both matrices nested.

    f: gelu as in BERT and S3-Rec, which drop nothing between the layers; relu as in SASRec, with dropout there.
    """

    def __init__(
        self, widths: tuple[int, ...], multiple: int, dropout: float, activation: Literal["gelu", "relu"]
    ):
        super().__init__()
        hidden = tuple(multiple * width for width in widths)
        self.up, self.down = NestedLinear(widths, hidden), NestedLinear(hidden, widths)
        self.activation = activation
        self.dropout = nn.Dropout(dropout if activation == "relu" else 0.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = F.gelu(self.up(x)) if self.activation == "gelu" else F.relu(self.up(x))
        return self.down(self.dropout(hidden))

    def arrays(self) -> dict[str, torch.Tensor]:
        """As of `NestedFFN`; the first layer is named after what follows it."""
        return _arrays({self.activation: self.up, "down": self.down})


def _arrays(linears: dict[str, NestedLinear]) -> dict[str, torch.Tensor]:
    found = {}
    for name, linear in linears.items():
        found |= {name: linear.masked_weight(), f"{name}_bias": linear.bias}
    return found

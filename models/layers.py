"""Nested (Matryoshka) layers: the first m outputs depend on the first m inputs only, for every width m.

Hence a model cut down to width m computes exactly the first m values of the big one (fMRLRec,
arXiv 2409.16627, section on full-scale Matryoshka weights).
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from recsys.models.recurrence import packed_scan


def increments(widths: tuple[int, ...]) -> list[tuple[int, int]]:
    """(start, end) of each width's own values."""
    return list(zip((0, *widths[:-1]), widths, strict=True))


class NestedLinear(nn.Module):
    """A dense linear map times a block-lower-triangular mask: out block i sees in blocks 0..i.

    Below a width of about 512 one masked matrix product is quicker than a product per block. Initial
    weights follow each block row's own fan-in, as separate layers would.
    """

    def __init__(self, in_widths: tuple[int, ...], out_widths: tuple[int, ...], *, bias: bool = True):
        super().__init__()
        weight = torch.empty(out_widths[-1], in_widths[-1])
        mask = torch.zeros_like(weight)
        for (row_start, row_end), (_, fan_in) in zip(
            increments(out_widths), increments(in_widths), strict=True
        ):
            bound = 1 / math.sqrt(fan_in)
            weight[row_start:row_end].uniform_(-bound, bound)
            mask[row_start:row_end, :fan_in] = 1
        self.weight = nn.Parameter(weight * mask)
        self.bias = nn.Parameter(torch.zeros(out_widths[-1])) if bias else None
        self.register_buffer("mask", mask, persistent=False)

    def masked_weight(self) -> torch.Tensor:
        return self.weight * self.mask

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.masked_weight(), self.bias)


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


class NestedLRU(nn.Module):
    """Linear recurrent unit (Orvieto et al., ICML 2023), nested: y_t = Re(C h_t) + c,
    h_t = lambda h_(t-1) + gamma (B x_t + b), lambda = exp(-exp(nu) + i exp(theta)).

    Departures: no D term (the residual takes its place); moduli start uniform on the ring
    [r_min, r_max] and gamma is free after initialisation, as in LRURec.
    """

    def __init__(self, widths: tuple[int, ...], r_min: float, r_max: float):
        super().__init__()
        width = widths[-1]
        radius = torch.rand(width) * (r_max**2 - r_min**2) + r_min**2
        modulus = radius.sqrt()
        self.nu_log = nn.Parameter(torch.log(-torch.log(modulus)))
        self.theta_log = nn.Parameter(torch.log(2 * math.pi * torch.rand(width).clamp_min(1e-4)))
        self.gamma_log = nn.Parameter(torch.log(torch.sqrt(1 - modulus**2)))
        self.in_re, self.in_im = NestedLinear(widths, widths), NestedLinear(widths, widths)
        self.out_re, self.out_im = NestedLinear(widths, widths), NestedLinear(widths, widths, bias=False)

    def transition(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Real and imaginary part of lambda."""
        modulus, angle = torch.exp(-torch.exp(self.nu_log)), torch.exp(self.theta_log)
        return modulus * torch.cos(angle), modulus * torch.sin(angle)

    def forward(self, x_PD: torch.Tensor, counts: list[int]) -> torch.Tensor:
        gamma_D = torch.exp(self.gamma_log)
        v_re_PD, v_im_PD = gamma_D * self.in_re(x_PD), gamma_D * self.in_im(x_PD)
        h_re_PD, h_im_PD = packed_scan(v_re_PD, v_im_PD, *self.transition(), counts)
        return self.out_re(h_re_PD) - self.out_im(h_im_PD)


class NestedBlock(nn.Module):
    """LRU and gated feed-forward, each with residual and post-norm."""

    def __init__(self, widths: tuple[int, ...], multiple: int, dropout: float, r_min: float, r_max: float):
        super().__init__()
        hidden = tuple(multiple * width for width in widths)
        self.lru = NestedLRU(widths, r_min, r_max)
        self.norm1, self.norm2 = BlockNorm(widths), BlockNorm(widths)
        self.gate, self.up = NestedLinear(widths, hidden), NestedLinear(widths, hidden)
        self.down = NestedLinear(hidden, widths)
        self.dropout = nn.Dropout(dropout)

    def forward(self, u_PD: torch.Tensor, counts: list[int]) -> torch.Tensor:
        u_PD = self.norm1(u_PD + self.dropout(self.lru(u_PD, counts)))
        hidden = self.dropout(F.silu(self.gate(u_PD)) * self.up(u_PD))
        return self.norm2(u_PD + self.dropout(self.down(hidden)))

"""Selective state spaces as mixers: Mamba and Mamba-2.

Legend: P tokens, D width, C channels (expand * D), K taps, H heads, d channels of a head, N values of state per
channel, E channels the convolution covers.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from recsys.errors import ModelError
from recsys.models.mixers.kernels import selective_scan, ssd
from recsys.models.mixers.layout import earlier

EPS = 1e-5
"""Of the norm in Mamba-2; `recsys.serving.mixers` has the same."""


class CausalConv(nn.Module):
    """Depthwise convolution over a row's last `taps` tokens, then SiLU; nothing stands before the first token."""

    def __init__(self, channels: int, taps: int):
        super().__init__()
        bound = 1 / math.sqrt(taps)
        self.weight = nn.Parameter(torch.empty(channels, taps).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(channels).uniform_(-bound, bound))

    def forward(self, x_PE: torch.Tensor, counts: list[int]) -> torch.Tensor:
        y_PE = torch.addcmul(self.bias, self.weight[:, -1], x_PE)
        for lag in range(1, min(self.weight.shape[1], len(counts))):
            before = x_PE.index_select(0, earlier(counts, lag, x_PE.device))
            y_PE[len(y_PE) - len(before) :] += self.weight[:, -1 - lag] * before
        return F.silu(y_PE)


def step_bias(size: int) -> torch.Tensor:
    """Bias under a softplus whose values are log-uniform in [.001, .1]: how far a step moves the state at first."""
    step = torch.exp(torch.empty(size).uniform_(math.log(0.001), math.log(0.1)))
    return step + torch.log(-torch.expm1(-step))


class Mamba(nn.Module):
    """Selective state space mixer (Gu and Dao, arXiv 2312.00752, section 3.4; Mamba4Rec, arXiv 2403.03900):
    x, z = W x; x = SiLU(conv(x)); y of `selective_scan`, whose Delta, B and C are linear in x; W (y SiLU(z)).

    The initial values are the published ones. The bias of Delta is a parameter of its own, and no Linear's,
    so that no rule on Linears resets it.
    """

    def __init__(self, width: int, *, state: int = 32, conv: int = 4, expand: int = 2):
        """state: values of state per channel. conv: taps, tokens. expand: channels as a multiple of the width."""
        super().__init__()
        channels, rank = expand * width, math.ceil(width / 16)
        self.parts = (rank, state, state)
        self.in_proj = nn.Linear(width, 2 * channels, bias=False)
        self.conv = CausalConv(channels, conv)
        self.select = nn.Linear(channels, sum(self.parts), bias=False)
        self.dt_weight = nn.Parameter(torch.empty(channels, rank).uniform_(-(rank**-0.5), rank**-0.5))
        self.dt_bias = nn.Parameter(step_bias(channels))
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, state + 1)).repeat(channels, 1))
        self.A_log.no_decay = True
        self.D = nn.Parameter(torch.ones(channels))
        self.out_proj = nn.Linear(channels, width, bias=False)

    def forward(self, x_PD: torch.Tensor, counts: list[int]) -> torch.Tensor:
        """[P, D] of packed tokens (see `recsys.models.packing`)."""
        x_PC, z_PC = self.in_proj(x_PD).chunk(2, dim=-1)
        x_PC = self.conv(x_PC, counts)
        rank_PR, B_PN, C_PN = self.select(x_PC).split(self.parts, dim=-1)
        dt_PC, A_CN = F.linear(rank_PR, self.dt_weight), -torch.exp(self.A_log)
        y_PC = selective_scan(x_PC, dt_PC, self.dt_bias, A_CN, B_PN, C_PN, self.D, counts)
        return self.out_proj(y_PC * F.silu(z_PC))

    def arrays(self) -> dict[str, torch.Tensor]:
        """Weights of `recsys.serving.mixers.Mamba`; A is folded."""
        return {
            "in": self.in_proj.weight,
            "conv": self.conv.weight,
            "conv_bias": self.conv.bias,
            "select": self.select.weight,
            "dt": self.dt_weight,
            "dt_bias": self.dt_bias,
            "A": -torch.exp(self.A_log),
            "D": self.D,
            "out": self.out_proj.weight,
        }


class Mamba2(nn.Module):
    """State space duality mixer (Dao and Gu, arXiv 2405.21060, section 7), one group:
    z, x, B, C, dt = W x; x, B, C = SiLU(conv(x, B, C)); y of `ssd`; W RMSNorm(y SiLU(z)).

    A is one number a head, at first uniform in [-16, -1], as published.
    """

    def __init__(self, width: int, *, state: int = 32, head: int = 32, conv: int = 4, expand: int = 2):
        """state: values of state per channel. head: channels of a head, which divides expand * width. conv: taps,
        tokens. expand: channels as a multiple of the width."""
        super().__init__()
        channels = expand * width
        if channels % head:
            raise ModelError(
                f"heads of {head} do not divide {channels} channels ({expand} * width)",
                fix=f"choose a width that is a multiple of {head // math.gcd(head, expand)}",
            )
        heads = channels // head
        self.head, self.covered = head, (channels, state, state)
        self.parts = (channels, sum(self.covered), heads)
        self.in_proj = nn.Linear(width, sum(self.parts), bias=False)
        self.conv = CausalConv(sum(self.covered), conv)
        self.dt_bias = nn.Parameter(step_bias(heads))
        self.A_log = nn.Parameter(torch.log(torch.empty(heads).uniform_(1, 16)))
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = nn.Parameter(torch.ones(channels))
        self.out_proj = nn.Linear(channels, width, bias=False)

    def forward(self, x_PD: torch.Tensor, counts: list[int]) -> torch.Tensor:
        """[P, D] of packed tokens (see `recsys.models.packing`)."""
        z_PC, covered_PE, dt_PH = self.in_proj(x_PD).split(self.parts, dim=-1)
        x_PC, B_PN, C_PN = self.conv(covered_PE, counts).split(self.covered, dim=-1)
        x_PHd, A_H = x_PC.unflatten(-1, (-1, self.head)), -torch.exp(self.A_log)
        y_PHd = ssd(x_PHd, dt_PH, self.dt_bias, A_H, B_PN, C_PN, self.D, counts)
        gated_PC = y_PHd.flatten(1) * F.silu(z_PC)
        return self.out_proj(F.rms_norm(gated_PC, gated_PC.shape[1:], self.norm, EPS))

    def arrays(self) -> dict[str, torch.Tensor]:
        """Weights of `recsys.serving.mixers.Mamba2`; A is folded, and the norm's gain into the map after it."""
        return {
            "in": self.in_proj.weight,
            "conv": self.conv.weight,
            "conv_bias": self.conv.bias,
            "dt_bias": self.dt_bias,
            "A": -torch.exp(self.A_log),
            "D": self.D,
            "out": self.out_proj.weight * self.norm,
        }

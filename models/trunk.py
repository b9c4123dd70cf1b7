"""The trunk of a sequence model: start vector, positions, input norm, and blocks of mixer and feed-forward."""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from recsys.config import Config
from recsys.models.layers import BlockNorm, NestedFFN, PlainFFN
from recsys.models.mixers.attention import Attention, EndPositions
from recsys.models.mixers.gru import GRUMixer
from recsys.models.mixers.lru import NestedLRU
from recsys.models.mixers.mamba import Mamba, Mamba2

Share = Annotated[float, Field(ge=0, lt=1)]
Mixer = Literal["lru", "mamba", "mamba2", "attention", "bidirectional", "gru"]
ATTENTION = ("attention", "bidirectional")
"""Mixers that look at a window of a history and have heads."""
Norm = Literal["post", "pre"]
Positions = Literal["mixer", "input"]
Feed = Literal["gated", "gelu", "relu"]


class TrunkConfig(Config):
    """Settings of a trunk."""

    trunk: Mixer = "lru"
    """What mixes the steps of a history. Only lru is nested: the others take a single width. bidirectional: attention
    to the whole row; training then hides items of it and asks for those."""
    widths: tuple[int, ...] = (16, 32, 64, 128)
    """Nested widths, ascending; the last is the full one."""
    blocks: Annotated[int, Field(ge=1)] = 2
    """Blocks of mixer and feed-forward."""
    ffn_multiple: Annotated[int, Field(ge=1)] = 1
    """Hidden units of the feed-forward, as a multiple of the width."""
    ffn: Feed = "gated"
    """Feed-forward: SiLU-gated; or two layers with gelu between them, or with relu and dropout."""
    norm: Norm = "post"
    """LayerNorm after each residual sum, or before each mixer and feed-forward."""
    input_norm: bool = True
    """LayerNorm on the item vectors that enter the trunk."""
    dropout: Share = 0.2
    """Dropout in the trunk and on its input."""
    radius: tuple[Share, Share] = (0.3, 0.9)
    """lru: ring of the initial |lambda|, how much of the past a state starts out keeping."""
    state: Annotated[int, Field(ge=1)] = 32
    """mamba, mamba2: values of state per channel."""
    heads: Annotated[int, Field(ge=1)] = 1
    """attention, bidirectional: heads, which divide the width."""
    positions: Positions = "mixer"
    """attention, bidirectional: learnt positions are added to every mixer's input, counted from a row's first token; or
    once to the item vectors before the input norm, counted back from its last token, so that the newest is always 0."""
    window: Annotated[int, Field(ge=2)] = 100
    """Longest stretch of a history in one training row. Recurrent trunks score with histories whole, attention with
    their last window - 1 items."""


class Block(nn.Module):
    """Mixer and feed-forward, each with residual and norm."""

    def __init__(self, config: TrunkConfig):
        super().__init__()
        self.pre = config.norm == "pre"
        self.mixer = make_mixer(config)
        sizes = config.widths, config.ffn_multiple, config.dropout
        self.ffn = NestedFFN(*sizes) if config.ffn == "gated" else PlainFFN(*sizes, config.ffn)
        self.norm1, self.norm2 = BlockNorm(config.widths), BlockNorm(config.widths)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, u_PD: torch.Tensor, counts: list[int], asked: torch.Tensor | None = None
    ) -> torch.Tensor:
        """asked: tokens whose values are wanted, None = all. The mixer reads every token, the feed-forward these."""
        if self.pre:
            u_PD = u_PD + self.dropout(self.mixer(self.norm1(u_PD), counts))
        else:
            u_PD = self.norm1(u_PD + self.dropout(self.mixer(u_PD, counts)))
        u_PD = u_PD if asked is None else u_PD[asked]
        if self.pre:
            return u_PD + self.dropout(self.ffn(self.norm2(u_PD)))
        return self.norm2(u_PD + self.dropout(self.ffn(u_PD)))


def make_mixer(config: TrunkConfig) -> nn.Module:
    """`mixer(x_PD, counts)` gives [P, D] of a packed batch (see `recsys.models.packing`)."""
    width = config.widths[-1]
    match config.trunk:
        case "lru":
            return NestedLRU(config.widths, *config.radius)
        case "attention" | "bidirectional":
            return Attention(
                width,
                heads=config.heads,
                window=config.window,
                dropout=config.dropout,
                causal=config.trunk == "attention",
                positions=config.positions == "mixer",
            )
        case "gru":
            return GRUMixer(width)
        case "mamba":
            return Mamba(width, state=config.state)
        case "mamba2":
            return Mamba2(width, state=config.state, head=math.gcd(32, 2 * width))


class Trunk(nn.Module):
    """Packed tokens to query vectors: the value at a token scores what comes after it, or, where the trunk looks both
    ways, at a hidden one what stood there; the start vector then stands for what is hidden."""

    def __init__(self, config: TrunkConfig):
        super().__init__()
        self.start = nn.Parameter(torch.randn(config.widths[-1]) * 0.02)
        at_input = config.positions == "input"
        self.positions = EndPositions(config.widths[-1], config.window) if at_input else None
        self.in_norm = BlockNorm(config.widths) if config.input_norm else None
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.blocks)])

    def forward(
        self,
        items_ID: torch.Tensor,
        tokens_P: torch.Tensor,
        counts: list[int],
        asked: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """tokens_P: item of every token, -1 = start or hidden. Returns [P, D], or the rows of the tokens asked for."""
        u_PD = torch.where(tokens_P[:, None] < 0, self.start, items_ID[tokens_P.clamp_min(0)])
        u_PD = u_PD if self.positions is None else self.positions(u_PD, counts)
        u_PD = self.dropout(u_PD if self.in_norm is None else self.in_norm(u_PD))
        for block in self.blocks[:-1]:
            u_PD = block(u_PD, counts)
        return self.blocks[-1](u_PD, counts, asked)

    def arrays(self) -> dict[str, torch.Tensor]:
        """Weights of `recsys.serving.network.Network`."""
        arrays = {"start": self.start}
        if self.positions is not None:
            arrays["position"] = self.positions.vectors
        if self.in_norm is not None:
            arrays |= {"in.weight": self.in_norm.weight, "in.bias": self.in_norm.bias}
        for number, block in enumerate(self.blocks):
            arrays |= {f"{number}.mix.{name}": value for name, value in block.mixer.arrays().items()}
            for name, norm in {"norm1": block.norm1, "norm2": block.norm2}.items():
                arrays |= {f"{number}.{name}.weight": norm.weight, f"{number}.{name}.bias": norm.bias}
            arrays |= {f"{number}.{name}": value for name, value in block.ffn.arrays().items()}
        return arrays

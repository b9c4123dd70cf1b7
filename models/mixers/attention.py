"""Self-attention as a mixer."""

import torch
import torch.nn.functional as F
from torch import nn

from recsys.errors import ModelError
from recsys.models.mixers.layout import places, row_blocks, to_packed, to_padded


class Attention(nn.Module):
    """Multi-head attention of every token to itself and those before it, or to its whole row (Vaswani et al., 2017;
    SASRec, ICDM 2018; BERT4Rec, CIKM 2019): softmax(q k / sqrt(D / heads)) v, then a linear map.

    Departures from SASRec: positions count from a row's first token, so that the same history gives the same
    keys as it grows, and are added in every mixer, to its input (`EndPositions` are SASRec's own); the heads' outputs
    pass a linear map.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int = 1,
        window: int = 100,
        dropout: float = 0.0,
        causal: bool = True,
        positions: bool = True,
    ):
        """heads divide the width. window: longest row, tokens. dropout: share of attention weights. causal: to the past
        alone. positions: those of its own, to be left out where the tokens have theirs."""
        super().__init__()
        if width % heads:
            raise ModelError(f"{heads} heads do not divide the width {width}", fix="choose heads that do")
        self.heads, self.window, self.dropout, self.causal = heads, window, dropout, causal
        self.position = _position_vectors(window, width) if positions else None
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x_PD: torch.Tensor, counts: list[int]) -> torch.Tensor:
        """[P, D] of packed tokens (see `recsys.models.packing`). Raises ModelError for a row past the window."""
        _check_length(counts, self.window)
        row_P, step_P = places(counts, x_PD.device)
        if self.position is not None:
            x_PD = x_PD + self.position.index_select(0, step_P)
        qkv_PE = self.qkv(x_PD)
        blocks = row_blocks(counts)
        if len(blocks) == 1:
            return self.out(self._mixed(qkv_PE, counts))
        tokens, mixed = [], []
        for first, end, steps in blocks:  # padded together, most of what is attended to would be padding
            tokens.append(((row_P >= first) & (row_P < end)).nonzero()[:, 0])
            rows = [min(max(count, first), end) - first for count in counts[:steps]]
            mixed.append(self._mixed(qkv_PE.index_select(0, tokens[-1]), rows))
        back_P = torch.cat(tokens).argsort()
        return self.out(torch.cat(mixed).index_select(0, back_P))

    def _mixed(self, qkv_PE: torch.Tensor, counts: list[int]) -> torch.Tensor:
        """[P, D] what the tokens of a packed batch attend to."""
        q, k, v = to_padded(qkv_PE, counts).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        # rows are aligned at their first token: padding comes after every real token, where a causal one never looks
        real_B11L = None
        if not self.causal:
            everything = torch.ones(len(qkv_PE), dtype=torch.bool, device=qkv_PE.device)
            real_B11L = to_padded(everything, counts)[:, None, None]
        mixed_BHLd = F.scaled_dot_product_attention(
            q, k, v, real_B11L, dropout_p=self.dropout if self.training else 0.0, is_causal=self.causal
        )
        return to_packed(mixed_BHLd.transpose(1, 2).flatten(2), counts)

    def arrays(self) -> dict[str, torch.Tensor]:
        """Weights of `recsys.serving.mixers.Attention`; the shape of qkv, [3, heads, D / heads, D], tells the heads."""
        own = {} if self.position is None else {"position": self.position}
        return own | {
            "qkv": self.qkv.weight.unflatten(0, (3, self.heads, -1)),
            "qkv_bias": self.qkv.bias.unflatten(0, (3, self.heads, -1)),
            "out": self.out.weight,
            "out_bias": self.out.bias,
        }


class EndPositions(nn.Module):
    """A learnt vector for each distance to a row's last token, added once to the tokens that enter a trunk.

    So do SASRec and S3-Rec, who pad rows on the left: the newest token has the same vector in a row of any length.
    """

    def __init__(self, width: int, window: int):
        """window: longest row, tokens."""
        super().__init__()
        self.vectors = _position_vectors(window, width)

    def forward(self, x_PD: torch.Tensor, counts: list[int]) -> torch.Tensor:
        """[P, D] of packed tokens. Raises ModelError for a row past the window."""
        _check_length(counts, len(self.vectors))
        row_P, step_P = places(counts, x_PD.device)
        length_B = row_P.bincount()
        return x_PD + self.vectors.index_select(0, length_B[row_P] - 1 - step_P)


def _position_vectors(window: int, width: int) -> nn.Parameter:
    vectors = nn.Parameter(torch.randn(window, width) * 0.02)
    vectors.no_decay = True
    return vectors


def _check_length(counts: list[int], window: int) -> None:
    if len(counts) > window:
        raise ModelError(
            f"a row of {len(counts)} tokens", expected=f"at most window = {window}", fix="cut it"
        )

"""What stands between visual features and the language model: connectors, and the late-fusion gate."""

import torch
from torch import nn


class Places(nn.Module):
    """A connector that makes the picture's places from all visual features at once: one matrix, or two with GELU."""

    def __init__(self, features: int, tokens: int, places: int, width: int, *, hidden: bool):
        super().__init__()
        # one place for every visual token where they are as many; else all places from all tokens
        self.places, self.each = places, tokens == places
        before, after = (features, width) if self.each else (tokens * features, places * width)
        layers = (
            [nn.Linear(before, width), nn.GELU(), nn.Linear(width, after)]
            if hidden
            else [nn.Linear(before, after)]
        )
        self.net = nn.Sequential(*layers)

    def forward(self, visual_RVF: torch.Tensor) -> torch.Tensor:
        """[R, places, D]."""
        if self.each:
            return self.net(visual_RVF)
        return self.net(visual_RVF.flatten(1)).unflatten(1, (self.places, -1))


class QFormer(nn.Module):
    """BLIP-2's Q-Former from scratch, then two matrices with GELU: learnt queries look at all visual tokens."""

    def __init__(self, features: int, places: int, width: int, *, layers: int, inner: int):
        super().__init__()
        from transformers import Blip2QFormerConfig, Blip2QFormerModel

        config = Blip2QFormerConfig(
            vocab_size=0, hidden_size=inner, num_hidden_layers=layers, num_attention_heads=max(inner // 64, 1),
            intermediate_size=4 * inner, encoder_hidden_size=features, cross_attention_frequency=1, pad_token_id=None,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        self.former = Blip2QFormerModel(config)
        self.queries_ND = nn.Parameter(torch.randn(places, inner) * 0.02)
        self.net = nn.Sequential(nn.Linear(inner, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, visual_RVF: torch.Tensor) -> torch.Tensor:
        queries_RND = self.queries_ND.expand(len(visual_RVF), -1, -1)
        seen = self.former(query_embeds=queries_RND, encoder_hidden_states=visual_RVF)
        return self.net(seen.last_hidden_state)


class Gate(nn.Module):
    """Late fusion: z = sigmoid(W [v; h]), out = z * v + (1 - z) * h, with v a bias-free projection of the global visual
    feature. residual: v is added once more. balance: v and h have one length before (root mean square 1).

    A note without a picture keeps its h.
    """

    def __init__(self, features: int, width: int, *, residual: bool, balance: bool):
        super().__init__()
        self.residual, self.balance = residual, balance
        self.project = nn.Linear(features, width, bias=False)
        self.mix = nn.Linear(2 * width, width, bias=False)
        nn.init.xavier_normal_(self.mix.weight)

    def forward(self, visual_RF: torch.Tensor, state_RD: torch.Tensor, seen_R: torch.Tensor) -> torch.Tensor:
        """[R, D]. seen_R: bool, whether there is a picture."""
        v_RD = self.project(visual_RF).to(state_RD.dtype)
        if self.balance:
            v_RD, state_RD = (nn.functional.rms_norm(one, one.shape[-1:]) for one in (v_RD, state_RD))
        z_RD = torch.sigmoid(self.mix(torch.cat([v_RD, state_RD], -1)))
        out_RD = z_RD * v_RD + (1 - z_RD) * state_RD
        if self.residual:
            out_RD = out_RD + v_RD
        return torch.where(seen_R[:, None], out_RD, state_RD)

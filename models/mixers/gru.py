"""The gated recurrent unit as a mixer."""

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence


class GRUMixer(nn.Module):
    """Gated recurrent unit (Cho et al., EMNLP 2014; GRU4Rec, ICLR 2016), torch's, with the state as output:
    h_t = (1 - z) n + z h_(t-1), n = tanh(W_n x_t + b_n + r (U_n h_(t-1) + c_n)), r and z sigmoids.

    Departure from GRU4Rec: no layer after it, as the block's feed-forward takes its place.
    """

    def __init__(self, width: int):
        super().__init__()
        self.gru = nn.GRU(width, width)

    def forward(self, x_PD: torch.Tensor, counts: list[int]) -> torch.Tensor:
        """[P, D] of packed tokens (see `recsys.models.packing`)."""
        if not counts:
            return x_PD
        # the packed layout is torch's own: no sorting, no copying
        return self.gru(PackedSequence(x_PD, torch.tensor(counts)))[0].data

    def arrays(self) -> dict[str, torch.Tensor]:
        """Weights of `recsys.serving.mixers.GRU`: rows in the order r, z, n. The gates' two biases are one; n's
        second stands apart, inside the product with r."""
        own, gates = dict(self.gru.named_parameters()), slice(2 * self.gru.hidden_size)
        in_bias = own["bias_ih_l0"].clone()
        in_bias[gates] += own["bias_hh_l0"][gates]
        return {
            "in": own["weight_ih_l0"],
            "in_bias": in_bias,
            "hidden": own["weight_hh_l0"],
            "hidden_bias": own["bias_hh_l0"][gates.stop :],
        }

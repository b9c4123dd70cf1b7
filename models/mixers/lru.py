"""The linear recurrent unit, nested."""

import math

import torch
from torch import nn

from recsys.models.layers import NestedLinear
from recsys.models.recurrence import packed_scan


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
        modulus = radius.sqrt().clamp(1e-4, 1 - 1e-4)
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

    def arrays(self) -> dict[str, torch.Tensor]:
        """Weights of `recsys.serving.mixers.LRU`; gamma is folded into B."""
        gamma_D = torch.exp(self.gamma_log)
        lambda_re, lambda_im = self.transition()
        return {
            "lambda_re": lambda_re,
            "lambda_im": lambda_im,
            "B_re": gamma_D[:, None] * self.in_re.masked_weight(),
            "B_im": gamma_D[:, None] * self.in_im.masked_weight(),
            "b_re": gamma_D * self.in_re.bias,
            "b_im": gamma_D * self.in_im.bias,
            "C_re": self.out_re.masked_weight(),
            "C_im": self.out_im.masked_weight(),
            "c": self.out_re.bias,
        }

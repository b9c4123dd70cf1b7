"""The state space recurrences of Mamba and Mamba-2: mamba_ssm's CUDA kernels where they are, else our scan.

Legend: P tokens, C channels, H heads, d channels of a head, N values of state per channel, B rows, L steps.
"""

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F

from recsys.models.mixers.layout import to_packed, to_padded
from recsys.models.mixers.scan import real_packed_scan

CHUNK = 64
"""Steps that Mamba-2's kernel takes at once: a power of two; histories are short."""


@cache
def _selective_scan_fn() -> Callable | None:
    try:
        from mamba_ssm.ops import selective_scan_interface
    except ImportError:
        return None
    # built without its CUDA part, mamba_ssm imports all the same and fails at the first call
    compiled = getattr(selective_scan_interface, "selective_scan_cuda", None) is not None
    return selective_scan_interface.selective_scan_fn if compiled else None


@cache
def _mamba_chunk_scan_combined() -> Callable | None:
    try:
        from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
    except ImportError:
        return None
    return mamba_chunk_scan_combined


def selective_scan_kernel(x: torch.Tensor) -> Callable | None:
    """mamba_ssm's kernel of Mamba for this tensor's device, if there is one."""
    return _selective_scan_fn() if x.is_cuda else None


def ssd_kernel(x: torch.Tensor) -> Callable | None:
    """mamba_ssm's kernel of Mamba-2 for this tensor's device, if there is one."""
    return _mamba_chunk_scan_combined() if x.is_cuda else None


def _widened(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """At least float32: under autocast the products arrive in half precision, which a recurrence does not bear."""
    return [x.to(torch.promote_types(x.dtype, torch.float32)) for x in tensors]


def selective_scan(
    x_PC: torch.Tensor,
    dt_PC: torch.Tensor,
    dt_bias_C: torch.Tensor,
    A_CN: torch.Tensor,
    B_PN: torch.Tensor,
    C_PN: torch.Tensor,
    D_C: torch.Tensor,
    counts: list[int],
) -> torch.Tensor:
    """y_PC of h_t = exp(Delta_t A) h_(t-1) + Delta_t B_t x_t, y_t = C_t h_t + D x_t, Delta = softplus(dt + bias)."""
    x_PC, dt_PC, B_PN, C_PN = _widened(x_PC, dt_PC, B_PN, C_PN)
    kernel = selective_scan_kernel(x_PC)
    if kernel is not None:
        x_BCL, dt_BCL, B_BNL, C_BNL = (
            to_padded(part, counts).transpose(1, 2) for part in (x_PC, dt_PC, B_PN, C_PN)
        )
        y_BCL = kernel(x_BCL, dt_BCL, A_CN, B_BNL, C_BNL, D=D_C, delta_bias=dt_bias_C, delta_softplus=True)
        return to_packed(y_BCL.transpose(1, 2), counts)
    delta_PC = F.softplus(dt_PC + dt_bias_C)
    a_PCN = torch.exp(delta_PC[:, :, None] * A_CN)
    v_PCN = (delta_PC * x_PC)[:, :, None] * B_PN[:, None]
    h_PCN = real_packed_scan(a_PCN, v_PCN, counts)
    # by hand: on a CPU a batched matrix-vector product takes twice as long
    return (h_PCN * C_PN[:, None]).sum(-1) + D_C * x_PC


def ssd(
    x_PHd: torch.Tensor,
    dt_PH: torch.Tensor,
    dt_bias_H: torch.Tensor,
    A_H: torch.Tensor,
    B_PN: torch.Tensor,
    C_PN: torch.Tensor,
    D_H: torch.Tensor,
    counts: list[int],
) -> torch.Tensor:
    """y_PHd of `selective_scan`'s recurrence with one A and one Delta for all channels and values of a head."""
    x_PHd, dt_PH, B_PN, C_PN = _widened(x_PHd, dt_PH, B_PN, C_PN)
    kernel = ssd_kernel(x_PHd)
    if kernel is not None:
        x_BLHd, dt_BLH, B_BL1N, C_BL1N = (
            to_padded(part, counts) for part in (x_PHd, dt_PH, B_PN[:, None], C_PN[:, None])
        )
        y_BLHd = kernel(
            x_BLHd, dt_BLH, A_H, B_BL1N, C_BL1N, CHUNK, D=D_H, dt_bias=dt_bias_H, dt_softplus=True
        )
        return to_packed(y_BLHd, counts)
    delta_PH = F.softplus(dt_PH + dt_bias_H)
    a_PH11 = torch.exp(delta_PH * A_H)[:, :, None, None]
    v_PHdN = (delta_PH[:, :, None] * x_PHd)[..., None] * B_PN[:, None, None]
    h_PHdN = real_packed_scan(a_PH11, v_PHdN, counts)
    return (h_PHdN * C_PN[:, None, None]).sum(-1) + D_H[:, None] * x_PHd

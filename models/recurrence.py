"""The diagonal linear recurrence h_t = lambda * h_(t-1) + v_t over packed sequences.

Complex numbers are two real tensors throughout: autocast, int8, ONNX and torch.compile skip complex types.
"""

import itertools

import torch
import torch.nn.functional as F

from recsys.models.mixers.layout import to_packed, to_padded


class _PackedScan(torch.autograd.Function):
    """A loop over time writing into one buffer, with its own reverse recurrence.

    On a CPU this is several times faster than a log-depth scan, and autograd through the loop would
    record thousands of nodes. Backward: g_t = dh_t + conj(lambda) g_(t+1); dv = g; dlambda = sum g conj(h_(t-1)).
    """

    @staticmethod
    def forward(ctx, v_re_PD, v_im_PD, lambda_re_D, lambda_im_D, counts: list[int]):
        h_re_PD, h_im_PD = v_re_PD.clone(), v_im_PD.clone()
        start = 0
        for before, now in itertools.pairwise(counts):
            previous, current = slice(start, start + now), slice(start + before, start + before + now)
            a, b = h_re_PD[previous], h_im_PD[previous]
            h_re_PD[current].addcmul_(a, lambda_re_D).addcmul_(b, lambda_im_D, value=-1)
            h_im_PD[current].addcmul_(a, lambda_im_D).addcmul_(b, lambda_re_D)
            start += before
        ctx.save_for_backward(h_re_PD, h_im_PD, lambda_re_D, lambda_im_D)
        ctx.counts = counts
        return h_re_PD, h_im_PD

    @staticmethod
    def backward(ctx, d_re_PD, d_im_PD):
        h_re_PD, h_im_PD, lambda_re_D, lambda_im_D = ctx.saved_tensors
        g_re_PD, g_im_PD = d_re_PD.clone(), d_im_PD.clone()
        grad_re_D, grad_im_D = torch.zeros_like(lambda_re_D), torch.zeros_like(lambda_im_D)
        counts = ctx.counts
        start = len(g_re_PD) - counts[-1] if counts else 0
        for before, now in zip(reversed(counts[:-1]), reversed(counts[1:]), strict=True):
            start -= before
            previous, current = slice(start, start + now), slice(start + before, start + before + now)
            a, b = g_re_PD[current], g_im_PD[current]
            g_re_PD[previous].addcmul_(a, lambda_re_D).addcmul_(b, lambda_im_D)
            g_im_PD[previous].addcmul_(b, lambda_re_D).addcmul_(a, lambda_im_D, value=-1)
            h_re, h_im = h_re_PD[previous], h_im_PD[previous]
            grad_re_D += (a * h_re + b * h_im).sum(0)
            grad_im_D += (b * h_re - a * h_im).sum(0)
        return g_re_PD, g_im_PD, grad_re_D, grad_im_D, None


_CHUNK = 16
"""Steps that the chunked scan takes at once."""


def chunked_scan(
    v_re_PD: torch.Tensor,
    v_im_PD: torch.Tensor,
    lambda_re_D: torch.Tensor,
    lambda_im_D: torch.Tensor,
    counts: list[int],
) -> tuple[torch.Tensor, torch.Tensor]:
    """`packed_scan` for devices on which many small steps are slow: a chunk of steps is one product with the powers of
    lambda, and only chunks follow one another. Autograd goes through it."""
    chunks = max(-(-len(counts) // _CHUNK), 1)
    powers = [(torch.ones_like(lambda_re_D), torch.zeros_like(lambda_im_D))]
    for _ in range(_CHUNK):
        powers.append(_times(*powers[-1], lambda_re_D, lambda_im_D))
    power_re_XD, power_im_XD = (torch.stack(part) for part in zip(*powers, strict=True))
    ago = torch.arange(_CHUNK, device=v_re_PD.device)
    ago = ago[:, None] - ago  # of the state at t, how long ago was the input at s
    seen_TS1 = (ago >= 0)[..., None]
    within_re, within_im = (part[ago.clamp_min(0)] * seen_TS1 for part in (power_re_XD, power_im_XD))
    v_re, v_im = (_chunks(part, counts, chunks) for part in (v_re_PD, v_im_PD))
    h_re = _mixed(within_re, v_re) - _mixed(within_im, v_im)
    h_im = _mixed(within_re, v_im) + _mixed(within_im, v_re)
    carry_re = carry_im = torch.zeros_like(h_re[:, 0, -1])
    done_re, done_im = [], []
    for number in range(chunks):
        late_re, late_im = _times(
            carry_re[:, None], carry_im[:, None], power_re_XD[1:], power_im_XD[1:]
        )  # what the chunks before left behind, at every step of this one
        done_re.append(h_re[:, number] + late_re)
        done_im.append(h_im[:, number] + late_im)
        carry_re, carry_im = done_re[-1][:, -1], done_im[-1][:, -1]
    steps = len(counts)
    return tuple(to_packed(torch.cat(part, 1)[:, :steps], counts) for part in (done_re, done_im))


def _times(
    a_re: torch.Tensor, a_im: torch.Tensor, b_re: torch.Tensor, b_im: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return a_re * b_re - a_im * b_im, a_re * b_im + a_im * b_re


def _mixed(weight_TSD: torch.Tensor, x_BNSD: torch.Tensor) -> torch.Tensor:
    return torch.einsum("tsd,bnsd->bntd", weight_TSD, x_BNSD)


def _chunks(x_PD: torch.Tensor, counts: list[int], chunks: int) -> torch.Tensor:
    """[B, chunks, _CHUNK, D], zeros after a row's last token."""
    x_BLD = to_padded(x_PD, counts)
    padded = F.pad(x_BLD, (0, 0, 0, chunks * _CHUNK - x_BLD.shape[1]))
    return padded.unflatten(1, (chunks, _CHUNK))


def packed_scan(
    v_re_PD: torch.Tensor,
    v_im_PD: torch.Tensor,
    lambda_re_D: torch.Tensor,
    lambda_im_D: torch.Tensor,
    counts: list[int],
) -> tuple[torch.Tensor, torch.Tensor]:
    """States of every token, real and imaginary part; the state before the first step is zero.

    counts: active rows of each step, not increasing (see `recsys.models.packing`).
    """
    if v_re_PD.is_cuda:
        return chunked_scan(v_re_PD, v_im_PD, lambda_re_D, lambda_im_D, counts)
    return _PackedScan.apply(v_re_PD, v_im_PD, lambda_re_D, lambda_im_D, counts)

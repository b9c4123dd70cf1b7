"""The diagonal linear recurrence h_t = lambda * h_(t-1) + v_t over packed sequences.

Complex numbers are two real tensors throughout: autocast, int8, ONNX and torch.compile skip complex types.
"""

import itertools

import torch


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
    return _PackedScan.apply(v_re_PD, v_im_PD, lambda_re_D, lambda_im_D, counts)

"""The gated linear recurrence h_t = a_t * h_(t-1) + v_t over packed sequences, real numbers."""

import itertools

import torch


class _RealPackedScan(torch.autograd.Function):
    """A loop over time writing into one buffer, with its own reverse recurrence (as `recsys.models.recurrence`).

    Backward: g_t = dh_t + a_(t+1) g_(t+1); dv_t = g_t; da_t = g_t h_(t-1), summed where a was broadcast.
    """

    @staticmethod
    def forward(ctx, a_P: torch.Tensor, v_P: torch.Tensor, counts: list[int]):
        h_P = v_P.clone()
        start = 0
        for before, now in itertools.pairwise(counts):
            previous, current = slice(start, start + now), slice(start + before, start + before + now)
            h_P[current].addcmul_(a_P[current], h_P[previous])
            start += before
        ctx.save_for_backward(a_P, h_P)
        ctx.counts = counts
        return h_P

    @staticmethod
    def backward(ctx, d_P: torch.Tensor):
        a_P, h_P = ctx.saved_tensors
        counts = ctx.counts
        g_P, grad_a_P = d_P.clone(), torch.empty_like(a_P)
        grad_a_P[: counts[0] if counts else 0] = 0
        broadcast = a_P.shape != h_P.shape
        start = len(g_P) - counts[-1] if counts else 0
        for before, now in zip(reversed(counts[:-1]), reversed(counts[1:]), strict=True):
            start -= before
            previous, current = slice(start, start + now), slice(start + before, start + before + now)
            g = g_P[current]
            if broadcast:
                grad_a_P[current] = (g * h_P[previous]).sum_to_size(grad_a_P[current].shape)
            else:
                torch.mul(g, h_P[previous], out=grad_a_P[current])
            g_P[previous].addcmul_(a_P[current], g)
        return grad_a_P, g_P, None


def real_packed_scan(a_P: torch.Tensor, v_P: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """States of every token, shaped like v; the state before the first step is zero.

    a_P: [P, ...] that broadcasts to v_P [P, ...] over the trailing dimensions, with as many of them. counts:
    active rows of each step, not increasing (see `recsys.models.packing`). a of first tokens is not used.
    """
    return _RealPackedScan.apply(a_P, v_P, counts)

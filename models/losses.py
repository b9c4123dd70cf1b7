"""The softmax loss at every nested width, over the whole catalogue or a sample of it.

The logits of width m are those of the width before plus one block's product, so all widths together cost one product
of the full width. The catalogue is scored for a chunk of positions at a time and the gradient is made in the same
pass: logits of all positions never exist together, and nothing is computed twice.
"""

import itertools
from typing import Any, NamedTuple

import torch

from recsys.models.layers import increments

_CHUNK_FLOATS = 1 << 23
"""Floats of all buffers of a chunk together: 32 MiB, about what a last-level cache holds."""
_LEAST_ROWS = 16


class Repeats(NamedTuple):
    """What is added to the logits of items that stand in a position's own past.

    rows_R: position, ascending; items_R: item, each (position, item) once; values_R: what is added. It is added at
    every width and learnt at the full one alone: narrow widths that imitate the full one would hold it where that one
    stood at first.
    """

    rows_R: torch.Tensor
    items_R: torch.Tensor
    values_R: torch.Tensor


class Scores(NamedTuple):
    """What logits are made of:

    logits of width k = scales_K[k] * queries_PD[:, :m_k] @ items_ID[:, :m_k].T + bias_I + repeats
    """

    queries_PD: torch.Tensor
    items_ID: torch.Tensor
    bias_I: torch.Tensor
    scales_K: torch.Tensor
    repeats: Repeats


class Widths(NamedTuple):
    """Nested widths, ascending; their weights in the loss, of sum one; and the share of each narrow width's target
    that is the full width's own distribution in place of the label."""

    widths: tuple[int, ...]
    weights: tuple[float, ...]
    distil: float = 0.0

    @classmethod
    def equal(cls, widths: tuple[int, ...]) -> "Widths":
        return cls(widths, (1 / len(widths),) * len(widths))

    def shares(self) -> list[float]:
        return [self.distil] * (len(self.widths) - 1) + [0.0]


def nested_softmax(
    scores: Scores, labels_P: torch.Tensor, widths: Widths, own_P: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, cross-entropy with the label at each width [K], for tracking).

    The loss of a width is the mean over positions of the cross-entropy with (1 - share) * label + share * teacher,
    the teacher being the full width's softmax as a constant. Gradients reach queries, items, bias, scales and repeats.
    Scales that need no gradient must be ones. own_P: a constant that is added to the label's logit.
    """
    queries_PD, items_ID, bias_I, scales_K, (rows_R, items_R, values_R) = scores
    return _NestedSoftmax.apply(
        queries_PD, items_ID, bias_I, scales_K, values_R, labels_P, rows_R, items_R, own_P, widths
    )


class _NestedSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries_PD,
        items_ID,
        bias_I,
        scales_K,
        values_R,
        labels_P,
        rows_R,
        items_R,
        own_P,
        widths: Widths,
    ):
        count, size, last = len(queries_PD), len(items_ID), len(widths.widths) - 1
        blocks, scales, shares = increments(widths.widths), scales_K.tolist(), widths.shares()
        chunk = min(max(_CHUNK_FLOATS // (size * (last + 5)), _LEAST_ROWS), count)
        dots_KCI = queries_PD.new_empty(last + 1, chunk, size)
        # scales that are not learnt are ones: logits are then made where the products are
        learns_scales = ctx.needs_input_grad[3]
        base_CI, grad_CI, teacher_CI, work_CI, plain_CI = (
            queries_PD.new_empty(chunk, size) if needed else None
            for needed in (len(rows_R), True, widths.distil, learns_scales, learns_scales)
        )
        items_DI = items_ID.T.contiguous()  # a narrow block's product is several times as quick
        d_queries, d_items = torch.empty_like(queries_PD), torch.zeros_like(items_ID)
        d_bias, d_scales, d_values = map(torch.zeros_like, (bias_I, scales_K, values_R))
        hard_K, soft_K = queries_PD.new_zeros(2, last + 1)
        starts = range(0, count, chunk)
        edges = torch.tensor([*starts, count], device=rows_R.device)
        bounds = torch.searchsorted(rows_R.contiguous(), edges).tolist()
        for start, (first, end) in zip(starts, itertools.pairwise(bounds), strict=True):
            here = slice(start, start + chunk)
            x_CD, labels_C1 = queries_PD[here], labels_P[here, None]
            dots_KRI = dots_KCI[:, : len(x_CD)]
            base, repeated = bias_I, (rows_R[first:end] - start, items_R[first:end])
            if first < end:
                base = base_CI[: len(x_CD)].copy_(bias_I)
                base[repeated] = bias_I[repeated[1]] + values_R[first:end]
            for k, (a, b) in enumerate(blocks):
                before = dots_KRI[k - 1] if k else bias_I.new_zeros(1) if learns_scales else base
                torch.addmm(before, x_CD[:, a:b], items_DI[a:b], out=dots_KRI[k])
            grad = grad_CI[: len(x_CD)]
            # gradient of the sum of logits, apart from that of the dot products only where scales are not all 1
            plain = plain_CI[: len(x_CD)].zero_() if learns_scales else grad
            grad.zero_()
            teacher = None
            for k in range(last, -1, -1):  # narrow widths need the full one's softmax, and its gradient
                (a, b), share, weight = blocks[k], shares[k], widths.weights[k] / count
                work = dots_KRI[k]
                if learns_scales:
                    work = torch.add(base, work, alpha=scales[k], out=work_CI[: len(x_CD)])
                if own_P is not None:
                    work.scatter_add_(1, labels_C1, own_P[here, None])
                top_C1 = work.amax(1, keepdim=True)
                asked = work.gather(1, labels_C1).sum()
                expected = (teacher * work).sum() if share else 0.0
                torch.softmax(work, 1, out=work)
                total = (top_C1 - work.amax(1, keepdim=True).log()).sum()  # log of the normaliser
                hard_K[k] += total - asked
                soft_K[k] += total - expected
                if k == last and widths.distil:
                    teacher = teacher_CI[: len(x_CD)].copy_(work)
                work.scatter_add_(1, labels_C1, work.new_full((len(work), 1), share - 1))
                if share:
                    work.sub_(teacher, alpha=share)
                if k == last and first < end:
                    d_values[first:end] = weight * work[repeated]
                grad.add_(work, alpha=weight * scales[k])
                if learns_scales:
                    plain.add_(work, alpha=weight)
                    d_scales[k] += weight * (work * dots_KRI[k]).sum()
                torch.mm(grad, items_ID[:, a:b], out=d_queries[here, a:b])
                d_items[:, a:b].addmm_(grad.T, x_CD[:, a:b])
            d_bias += plain.sum(0)
        ctx.save_for_backward(d_queries, d_items, d_bias, d_scales, d_values)
        shares_K, weights_K = hard_K.new_tensor(shares), hard_K.new_tensor(widths.weights)
        loss = (weights_K * ((1 - shares_K) * hard_K + shares_K * soft_K)).sum() / count
        hard_K = hard_K / count
        ctx.mark_non_differentiable(hard_K)
        return loss, hard_K

    @staticmethod
    def backward(ctx: Any, d_loss, _):
        return (*(d_loss * gradient for gradient in ctx.saved_tensors), None, None, None, None, None)

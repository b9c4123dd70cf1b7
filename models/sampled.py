"""Losses over a sample of the catalogue, the same items for every position and width of a step."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from recsys.models.layers import increments
from recsys.models.losses import Repeats, Scores, Widths


class Sample(NamedTuple):
    """Negatives of a step.

    items_N: rows of the scores' items. log_q_N: log of how often each is expected in the sample (its probability times
    the number of draws), taken off its logit so that the sum over the sample stands for the sum over the catalogue;
    zeros for no correction. catalogue: number of items that the sample was drawn from.
    """

    items_N: torch.Tensor
    log_q_N: torch.Tensor
    catalogue: int


def draw(probability_I: torch.Tensor, count: int, *, log_q: bool = True) -> Sample:
    """`count` draws with replacement. Randomness is torch's, which the loop seeds for every step."""
    items_N = torch.multinomial(probability_I, count, replacement=True)
    log_q_N = torch.log(count * probability_I[items_N])
    return Sample(items_N, log_q_N if log_q else torch.zeros_like(log_q_N), len(probability_I))


def in_batch(labels_P: torch.Tensor, probability_I: torch.Tensor, *, log_q: bool = True) -> Sample:
    """The labels of the step themselves, each once: popular items come more often, which log_q makes up for."""
    items_N = labels_P.unique()
    # an item is in the sample unless every one of the P labels is another one
    expected_N = -torch.expm1(len(labels_P) * torch.log1p(-probability_I[items_N].clamp(1e-12, 1 - 1e-6)))
    log_q_N = torch.log(expected_N) if log_q else torch.zeros_like(expected_N)
    return Sample(items_N, log_q_N, len(probability_I))


def sampled_loss(
    scores: Scores, labels_P: torch.Tensor, sample: Sample, widths: Widths, gbce_t: float | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, loss with the label at each width [K]) over each position's label and the sample.

    Softmax with logQ correction (Bengio and Senecal, 2008; the label's own logit stays as it is, for it is always
    there), or with gbce_t the generalised binary cross-entropy of gSASRec (Petrov and Macdonald, RecSys 2023, eq. 9):
    -(beta log s(+) + sum log(1 - s(-))), beta = a (t (1 - 1/a) + 1/a), a = N / (I - 1), the positive's probability
    being calibrated from 1 (t = 0: plain BCE) to that of a full softmax (t = 1). A negative that is the position's
    label does not count.
    """
    x_PD, items_ID, bias_I, scales_K, repeats = scores
    positive_PD, negative_ND = items_ID[labels_P], items_ID[sample.items_N]
    own_P, base_N = bias_I[labels_P], bias_I[sample.items_N]
    if gbce_t is None:
        base_N = base_N - sample.log_q_N
    base_PN = base_N.expand(len(x_PD), -1).masked_fill(sample.items_N == labels_P[:, None], -torch.inf)
    again_P, again_PN = (
        _repeated(labels_P, sample, repeats) if len(repeats.rows_R) else (own_P.new_zeros(()),) * 2
    )
    dot_P, dot_PN, logits = 0.0, 0.0, []
    for k, (a, b) in enumerate(increments(widths.widths)):
        dot_P = dot_P + (x_PD[:, a:b] * positive_PD[:, a:b]).sum(1)
        dot_PN = dot_PN + x_PD[:, a:b] @ negative_ND[:, a:b].T
        own, others = own_P + scales_K[k] * dot_P, base_PN + scales_K[k] * dot_PN
        if k < len(widths.widths) - 1:  # what a past adds is learnt at the full width alone (see Repeats)
            own, others = own + again_P.detach(), others + again_PN.detach()
        else:
            own, others = own + again_P, others + again_PN
        logits.append(torch.cat([own[:, None], others], dim=1))
    if gbce_t is not None:
        rate = len(sample.items_N) / max(sample.catalogue - 1, 1)
        beta = rate * (gbce_t * (1 - 1 / rate) + 1 / rate)
        hard = [-(beta * F.logsigmoid(one[:, 0]) + F.logsigmoid(-one[:, 1:]).sum(1)).mean() for one in logits]
    else:
        hard = [-F.log_softmax(one, 1)[:, 0].mean() for one in logits]
    teacher_PN = torch.softmax(logits[-1].detach(), 1) if widths.distil else None
    losses = [
        (1 - share) * own + share * F.cross_entropy(one.clamp_min(-1e9), teacher_PN) if share else own
        for share, own, one in zip(widths.shares(), hard, logits, strict=True)
    ]
    weights_K = x_PD.new_tensor(widths.weights)
    return (weights_K * torch.stack(losses)).sum(), torch.stack(hard).detach()


def _repeated(labels_P: torch.Tensor, sample: Sample, repeats: Repeats) -> tuple[torch.Tensor, torch.Tensor]:
    """What a position's past adds to its label [P] and to the sample's columns [P, N]."""
    rows_R, items_R, values_R = repeats
    again = items_R == labels_P[rows_R]
    label_P = values_R.new_zeros(len(labels_P)).index_add(0, rows_R[again], values_R[again])
    order_N = torch.argsort(sample.items_N)
    sorted_N = sample.items_N[order_N]
    # an item may be drawn several times: each of its columns gets the value
    first_R = torch.searchsorted(sorted_N, items_R)
    spans_R = torch.searchsorted(sorted_N, items_R, right=True) - first_R
    which = torch.repeat_interleave(torch.arange(len(items_R), device=items_R.device), spans_R)
    starts = torch.repeat_interleave(spans_R.cumsum(0) - spans_R, spans_R)
    columns = order_N[first_R[which] + torch.arange(len(which), device=which.device) - starts]
    cells_PN = values_R.new_zeros(len(labels_P), len(sample.items_N))
    return label_P, cells_PN.index_put((rows_R[which], columns), values_R[which], accumulate=True)

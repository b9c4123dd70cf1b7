"""Losses over a sample of the catalogue, the same items for every position and width of a step."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from recsys.models.losses import Repeats, Scores, Widths, nested_softmax
from recsys.models.pairwise import label_repeats, logits_by_width, over_widths


class Sample(NamedTuple):
    """Columns of a step's softmax. items_N: items, each once, the labels of the step among them. log_q_N: log of the
    chance of each to be there."""

    items_N: torch.Tensor
    log_q_N: torch.Tensor


def mixed_sample(
    labels_P: torch.Tensor, drawn_N: torch.Tensor, frequency_I: torch.Tensor, probability_I: torch.Tensor
) -> Sample:
    """The labels of a step and the items drawn for it (Yang et al., "Mixed Negative Sampling", WWW 2020 Companion).

    frequency_I: each item's share of the training rows, which labels follow; probability_I: of a single draw, with
    replacement. An item is there unless each of the labels and each of the draws is another one.
    """
    items_N = torch.cat([labels_P, drawn_N]).unique()
    missed_N = len(labels_P) * torch.log1p(-frequency_I[items_N].clamp(max=1 - 1e-6))
    missed_N = missed_N + len(drawn_N) * torch.log1p(-probability_I[items_N].clamp(max=1 - 1e-6))
    return Sample(items_N, torch.log(-torch.expm1(missed_N.clamp(max=-1e-12))))


def sampled_softmax(
    scores: Scores, labels_P: torch.Tensor, log_q_N: torch.Tensor, widths: Widths
) -> tuple[torch.Tensor, torch.Tensor]:
    """`nested_softmax` over a sample, its sum of exponentials standing for that over the catalogue.

    scores: of the sample's items; labels_P: columns. Each term is divided by its item's chance to be there (logQ
    correction; Bengio and Senecal, 2008), the position's own label excepted, which always is. log_q_N of zeros: no
    correction.
    """
    corrected = scores._replace(bias_I=scores.bias_I - log_q_N)
    return nested_softmax(corrected, labels_P, widths, log_q_N[labels_P])


def gbce(
    scores: Scores, labels_P: torch.Tensor, drawn_N: torch.Tensor, widths: Widths, catalogue: int, t: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, loss at each width [K]): generalised binary cross-entropy (Petrov and Macdonald, gSASRec, RecSys 2023).

    -(beta log s(+) + sum log(1 - s(-))), beta = a (t (1 - 1/a) + 1/a), a = N / (catalogue - 1): the positive's
    probability is calibrated from that of plain BCE (t = 0) to that of a full softmax (t = 1). labels_P, drawn_N: rows
    of the scores' items. A negative that is the position's label does not count.

    Departure: scores enter less log N, so that a hit is as rare as one in N from the first step on. A constant changes
    neither order nor optimum; without it the first epochs are spent on learning how rare a hit is.
    """
    negative_ND, shift = scores.items_ID[drawn_N], math.log(len(drawn_N))
    own_P, base_N = scores.bias_I[labels_P] - shift, scores.bias_I[drawn_N] - shift
    base_PN = base_N.expand(len(labels_P), -1).masked_fill(drawn_N == labels_P[:, None], -torch.inf)
    again = label_repeats(labels_P, scores.repeats), _repeated(len(labels_P), drawn_N, scores.repeats)
    rate = len(drawn_N) / max(catalogue - 1, 1)
    beta = rate * (t * (1 - 1 / rate) + 1 / rate)

    def dots(x_PD: torch.Tensor, a: int, b: int) -> torch.Tensor:
        return x_PD @ negative_ND[:, a:b].T

    losses = [
        -(beta * F.logsigmoid(own_P) + F.logsigmoid(-others_PN).sum(1)).mean()
        for own_P, others_PN in logits_by_width(scores, labels_P, dots, (own_P, base_PN), again, widths)
    ]
    return over_widths(losses, widths)


def _repeated(positions: int, drawn_N: torch.Tensor, repeats: Repeats) -> torch.Tensor:
    """[P, N] what a position's past adds to the drawn columns."""
    rows_R, items_R, values_R = repeats
    order_N = torch.argsort(drawn_N)
    sorted_N = drawn_N[order_N]
    # an item may be drawn several times: each of its columns gets the value
    first_R = torch.searchsorted(sorted_N, items_R)
    spans_R = torch.searchsorted(sorted_N, items_R, right=True) - first_R
    which = torch.repeat_interleave(torch.arange(len(items_R), device=items_R.device), spans_R)
    starts = torch.repeat_interleave(spans_R.cumsum(0) - spans_R, spans_R)
    columns = order_N[first_R[which] + torch.arange(len(which), device=which.device) - starts]
    cells_PN = values_R.new_zeros(positions, len(drawn_N))
    return cells_PN.index_put((rows_R[which], columns), values_R[which], accumulate=True)

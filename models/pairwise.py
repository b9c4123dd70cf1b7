"""Losses of a position against a few items of its own, and without negatives at all."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from recsys.models.layers import increments
from recsys.models.losses import Repeats, Scores, Widths

Losses = tuple[torch.Tensor, torch.Tensor]
"""(loss, loss at each width [K], for tracking)."""


def bpr(scores: Scores, labels_P: torch.Tensor, drawn_PN: torch.Tensor, widths: Widths) -> Losses:
    """-log s(own - other), mean over negatives and positions (Rendle et al., UAI 2009). drawn_PN: columns; one that is
    the position's label does not count."""
    counts_PN = (drawn_PN != labels_P[:, None]).float()
    losses = [
        -(counts_PN * F.logsigmoid(own_P[:, None] - others_PN)).sum() / counts_PN.sum().clamp_min(1)
        for own_P, others_PN in _logits(scores, labels_P, drawn_PN, widths)
    ]
    return over_widths(losses, widths)


def bce(scores: Scores, labels_P: torch.Tensor, drawn_PN: torch.Tensor, widths: Widths) -> Losses:
    """-log s(own) - mean over negatives of log(1 - s(other)), mean over positions: with one negative, the loss of
    SASRec as published (Kang and McAuley, ICDM 2018, equation 6; theirs are never of the user's history)."""
    counts_PN = (drawn_PN != labels_P[:, None]).float()
    losses = [
        -(F.logsigmoid(own_P) + (counts_PN * F.logsigmoid(-others_PN)).mean(1)).mean()
        for own_P, others_PN in _logits(scores, labels_P, drawn_PN, widths)
    ]
    return over_widths(losses, widths)


def directau(scores: Scores, labels_P: torch.Tensor, widths: Widths, uniformity: float) -> Losses:
    """Alignment and uniformity of directions (Wang et al., DirectAU, KDD 2022, equations 7 to 9):
    mean |q - e|^2 + uniformity * (log mean exp(-2 |q - q'|^2) + log mean exp(-2 |e - e'|^2)) / 2.

    Departure: an item that is the label of several positions stands once among the e.
    """
    losses = []
    for width in widths.widths:
        queries_PD = F.normalize(scores.queries_PD[:, :width], dim=1)
        items_ND = F.normalize(scores.items_ID[:, :width], dim=1)
        alignment = (queries_PD - items_ND[labels_P]).square().sum(1).mean()
        losses.append(alignment + uniformity * (_crowding(queries_PD) + _crowding(items_ND)) / 2)
    return over_widths(losses, widths)


def _crowding(unit_ND: torch.Tensor) -> torch.Tensor:
    """log of the mean over pairs of exp(-2 |x - y|^2); a single vector has no pairs and crowds nobody."""
    if len(unit_ND) < 2:
        return unit_ND.sum() * 0.0
    return torch.pdist(unit_ND).square().mul(-2).exp().mean().log()


def _logits(
    scores: Scores, labels_P: torch.Tensor, drawn_PN: torch.Tensor, widths: Widths
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(logits of the labels [P], of each position's own columns [P, N]) at every width."""
    again = label_repeats(labels_P, scores.repeats), _repeated(drawn_PN, scores.repeats)
    others_PND, bias = scores.items_ID[drawn_PN], (scores.bias_I[labels_P], scores.bias_I[drawn_PN])

    def dots(x_PD: torch.Tensor, a: int, b: int) -> torch.Tensor:
        return torch.einsum("pd,pnd->pn", x_PD, others_PND[..., a:b])

    return logits_by_width(scores, labels_P, dots, bias, again, widths)


def logits_by_width(
    scores: Scores,
    labels_P: torch.Tensor,
    dots: Callable[[torch.Tensor, int, int], torch.Tensor],
    bias: tuple[torch.Tensor, torch.Tensor],
    again: tuple[torch.Tensor, torch.Tensor],
    widths: Widths,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(logits of the labels [P], of others [P, N]) at every width. dots(x, a, b): products of x, columns a to b of the
    queries, with the others; bias, again: what is added to labels and others, and what their past adds."""
    own_PD, own_P, others_PN = scores.items_ID[labels_P], 0.0, 0.0
    for k, (a, b) in enumerate(increments(widths.widths)):
        x_PD = scores.queries_PD[:, a:b]
        own_P, others_PN = own_P + (x_PD * own_PD[:, a:b]).sum(1), others_PN + dots(x_PD, a, b)
        # what a past adds is learnt at the full width alone (see Repeats)
        past = again if k == len(widths.widths) - 1 else tuple(part.detach() for part in again)
        yield (
            scores.scales_K[k] * own_P + bias[0] + past[0],
            scores.scales_K[k] * others_PN + bias[1] + past[1],
        )


def label_repeats(labels_P: torch.Tensor, repeats: Repeats) -> torch.Tensor:
    """[P] what a position's past adds to its label."""
    rows_R, items_R, values_R = repeats
    again = items_R == labels_P[rows_R]
    return values_R.new_zeros(len(labels_P)).index_add(0, rows_R[again], values_R[again])


def _repeated(drawn_PN: torch.Tensor, repeats: Repeats) -> torch.Tensor:
    """[P, N] what a position's past adds to its own columns."""
    rows_R, items_R, values_R = repeats
    which, column = (drawn_PN[rows_R] == items_R[:, None]).nonzero(as_tuple=True)
    cells_PN = values_R.new_zeros(drawn_PN.shape)
    return cells_PN.index_put((rows_R[which], column), values_R[which], accumulate=True)


def over_widths(losses: list[torch.Tensor], widths: Widths) -> Losses:
    """The losses of all widths, weighted."""
    per_width = torch.stack(losses)
    return (per_width.new_tensor(widths.weights) * per_width).sum(), per_width.detach()

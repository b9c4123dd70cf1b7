"""Losses of a position against a few items of its own, and without negatives at all."""

from collections.abc import Iterator

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
    return _over_widths(losses, widths)


def bce(scores: Scores, labels_P: torch.Tensor, drawn_PN: torch.Tensor, widths: Widths) -> Losses:
    """-log s(own) - mean over negatives of log(1 - s(other)), mean over positions: with one negative, the loss of
    SASRec as published (Kang and McAuley, ICDM 2018, equation 6; theirs are never of the user's history)."""
    counts_PN = (drawn_PN != labels_P[:, None]).float()
    losses = [
        -(F.logsigmoid(own_P) + (counts_PN * F.logsigmoid(-others_PN)).mean(1)).mean()
        for own_P, others_PN in _logits(scores, labels_P, drawn_PN, widths)
    ]
    return _over_widths(losses, widths)


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
    return _over_widths(losses, widths)


def _crowding(unit_ND: torch.Tensor) -> torch.Tensor:
    """log of the mean over pairs of exp(-2 |x - y|^2); a single vector has no pairs and crowds nobody."""
    if len(unit_ND) < 2:
        return unit_ND.sum() * 0.0
    return torch.pdist(unit_ND).square().mul(-2).exp().mean().log()


def _logits(
    scores: Scores, labels_P: torch.Tensor, drawn_PN: torch.Tensor, widths: Widths
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(logits of the labels [P], of each position's own columns [P, N]) at every width."""
    queries_PD, items_ID, bias_I, scales_K, repeats = scores
    again_P, again_PN = _repeated(labels_P, drawn_PN, repeats)
    own_P, others_PN = 0.0, 0.0
    for k, (a, b) in enumerate(increments(widths.widths)):
        x_PD, e_ID = queries_PD[:, a:b], items_ID[:, a:b]
        own_P = own_P + (x_PD * e_ID[labels_P]).sum(1)
        others_PN = others_PN + torch.einsum("pd,pnd->pn", x_PD, e_ID[drawn_PN])
        if k == len(widths.widths) - 1:  # what a past adds is learnt at the full width alone (see Repeats)
            own_again_P, others_again_PN = again_P, again_PN
        else:
            own_again_P, others_again_PN = again_P.detach(), again_PN.detach()
        yield (
            scales_K[k] * own_P + bias_I[labels_P] + own_again_P,
            scales_K[k] * others_PN + bias_I[drawn_PN] + others_again_PN,
        )


def _repeated(
    labels_P: torch.Tensor, drawn_PN: torch.Tensor, repeats: Repeats
) -> tuple[torch.Tensor, torch.Tensor]:
    """What a position's past adds to its label [P] and to its own columns [P, N]."""
    rows_R, items_R, values_R = repeats
    again = items_R == labels_P[rows_R]
    label_P = values_R.new_zeros(len(labels_P)).index_add(0, rows_R[again], values_R[again])
    which, column = (drawn_PN[rows_R] == items_R[:, None]).nonzero(as_tuple=True)
    cells_PN = values_R.new_zeros(drawn_PN.shape)
    return label_P, cells_PN.index_put((rows_R[which], column), values_R[which], accumulate=True)


def _over_widths(losses: list[torch.Tensor], widths: Widths) -> Losses:
    per_width = torch.stack(losses)
    return (per_width.new_tensor(widths.weights) * per_width).sum(), per_width.detach()

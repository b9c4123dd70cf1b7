"""NT-Xent over both sides of all pairs, at every nested width, without false negatives."""

import math
from collections.abc import Sequence

import torch
from torch import nn

_MOST = math.log(100.0)


class PairLoss(nn.Module):
    """The contrastive loss of a batch of pairs, SimCLR's over all notes, and its learnt temperature.

    Rows are the left notes, the right ones in the same order, then further negatives that are asked nothing. The loss
    of a row is the cross-entropy of its partner among all other rows that are no false negatives; similarities are
    cosines times exp(log_scale), which is held at 100 or less. Mixed precision stops before the products.
    """

    def __init__(self, widths: Sequence[int], log_scale: float, margin: float | None):
        """margin: a negative with a cosine above that of the pair by more is left out; None = none is."""
        super().__init__()
        self.widths, self.margin = tuple(widths), margin
        self.log_scale = nn.Parameter(torch.tensor(log_scale))

    def forward(self, vectors_RD: torch.Tensor, pairs: int, allied_RR: torch.Tensor) -> torch.Tensor:
        """Mean over widths. pairs: B; the partner of row i < B is row i + B. allied_RR: bool, rows that are no
        negatives of each other: one item, or items that are paired elsewhere."""
        asked = 2 * pairs
        partner_A = torch.arange(asked, device=vectors_RD.device).roll(pairs)
        itself_AR = torch.eye(asked, len(vectors_RD), dtype=torch.bool, device=vectors_RD.device)
        positive_AR = torch.zeros_like(itself_AR).scatter_(1, partner_A[:, None], True)
        allied_AR = allied_RR[:asked] & ~positive_AR | itself_AR
        scale = self.log_scale.clamp(max=_MOST).exp()
        losses = []
        with torch.autocast(vectors_RD.device.type, enabled=False):
            for width in self.widths:
                unit_RD = nn.functional.normalize(vectors_RD[:, :width], dim=1)
                cosines_AR = unit_RD[:asked] @ unit_RD.T
                left_out_AR = allied_AR
                if self.margin is not None:
                    own_A1 = cosines_AR.detach().gather(1, partner_A[:, None])
                    left_out_AR = left_out_AR | (cosines_AR.detach() > own_A1 + self.margin)
                logits_AR = (scale * cosines_AR).masked_fill(left_out_AR, -math.inf)
                losses.append(nn.functional.cross_entropy(logits_AR, partner_A))
        return torch.stack(losses).mean()


class TeacherLoss(nn.Module):
    """Distillation: the teacher's direction (1 - cosine), and the teacher's similarities among the batch's items, each
    at every nested width. A student's vectors are as wide as the teacher's. A teacher's row of zeros says nothing of
    its item, and teaches nothing."""

    def __init__(self, widths: Sequence[int]):
        super().__init__()
        self.widths = tuple(widths)

    def forward(self, vectors_RD: torch.Tensor, teacher_RD: torch.Tensor) -> torch.Tensor:
        losses = []
        taught_R = (teacher_RD != 0).any(1).float()
        taught_RR = taught_R[:, None] * taught_R
        for width in self.widths:
            own, taught = (nn.functional.normalize(one[:, :width], dim=1) for one in (vectors_RD, teacher_RD))
            direction = ((1 - (own * taught).sum(1)) * taught_R).sum() / taught_R.sum().clamp(min=1)
            apart_RR = (own @ own.T - taught @ taught.T).square()
            relations = (apart_RR * taught_RR).sum() / taught_RR.sum().clamp(min=1)
            losses.append(direction + relations)
        return torch.stack(losses).mean()

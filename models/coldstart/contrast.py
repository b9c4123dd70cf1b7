"""Contrastive losses: two vectors of one thing are near each other and far from those of other things."""

import torch
import torch.nn.functional as F


def info_nce(
    a_ND: torch.Tensor,
    b_ND: torch.Tensor,
    temperature: float,
    log_q: tuple[torch.Tensor, torch.Tensor] | None = None,
    same_NN: torch.Tensor | None = None,
) -> torch.Tensor:
    """Symmetric InfoNCE of pairs (a_n, b_n) against the others of the batch (van den Oord et al., 2018, equation 4).

    -log exp(cos(a_n, b_n) / t) / sum over m of exp(cos(a_n, b_m) / t - log q_m), mean over n, and the same from b to a,
    halved. log_q: logs of the chances of a and b to be in the batch; the own pair's term, always there, is not divided
    by them. same_NN: pairs that are no negatives of each other (an item's, a user's own), the diagonal excepted.
    """
    dots_NN = F.normalize(a_ND, dim=1) @ F.normalize(b_ND, dim=1).T / temperature
    own_NN = torch.eye(len(a_ND), dtype=torch.bool, device=a_ND.device)
    labels_N = torch.arange(len(a_ND), device=a_ND.device)
    losses = []
    if same_NN is not None:
        dots_NN = dots_NN.masked_fill(same_NN & ~own_NN, -torch.inf)
    for side, logits_NN in ((1, dots_NN), (0, dots_NN.T)):
        if log_q is not None:
            logits_NN = logits_NN - torch.where(own_NN, 0.0, log_q[side])
        losses.append(F.cross_entropy(logits_NN, labels_N))
    return (losses[0] + losses[1]) / 2

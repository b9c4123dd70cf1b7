"""Entmax: a softmax that gives most things nothing at all."""

import torch

_HALVINGS = 40


@torch.no_grad()
def entmax(logits_PN: torch.Tensor, alpha: float) -> torch.Tensor:
    """[P, N] of sum 1 by rows: [(alpha - 1) z - t]+ ^ (1 / (alpha - 1)), alpha above 1 (Peters et al., ACL 2019).

    The threshold t is found by halving; a constant, without a gradient. -inf gives 0.
    """
    scaled_PN = (alpha - 1) * logits_PN
    top_P1 = scaled_PN.amax(1, keepdim=True)
    low_P1, high_P1 = top_P1 - 1, top_P1 - logits_PN.shape[1] ** (1 - alpha)
    for _ in range(_HALVINGS):
        middle_P1 = (low_P1 + high_P1) / 2
        enough_P1 = ((scaled_PN - middle_P1).clamp_min(0) ** (1 / (alpha - 1))).sum(1, keepdim=True) >= 1
        low_P1 = torch.where(enough_P1, middle_P1, low_P1)
        high_P1 = torch.where(enough_P1, high_P1, middle_P1)
    weights_PN = (scaled_PN - (low_P1 + high_P1) / 2).clamp_min(0) ** (1 / (alpha - 1))
    return weights_PN / weights_PN.sum(1, keepdim=True)


def entmax_loss(logits_PN: torch.Tensor, labels_P: torch.Tensor, alpha: float) -> torch.Tensor:
    """Mean of (p - e) . z + H(p), H(p) = sum (p - p^alpha) / (alpha (alpha - 1)); its gradient is p - e."""
    p_PN = entmax(logits_PN, alpha)
    own_P = logits_PN.gather(1, labels_P[:, None])[:, 0]
    entropy_P = (p_PN - p_PN**alpha).sum(1) / (alpha * (alpha - 1))
    expected_P = (p_PN * logits_PN.masked_fill(p_PN == 0, 0)).sum(1)
    return (expected_P - own_P + entropy_P).mean()

"""Entmax: a softmax that gives most things nothing at all."""

import torch

_MOST_STEPS = 60
"""Of Newton's method; a dozen are usual."""


@torch.no_grad()
def entmax(logits_PN: torch.Tensor, alpha: float) -> torch.Tensor:
    """[P, N] of sum 1 by rows: [(alpha - 1) z - t]+ ^ (1 / (alpha - 1)), alpha in (1, 2] (Peters et al., ACL 2019).

    The threshold t, a constant without a gradient, is found by Newton's method from below: the sum is convex in t and
    falls, so that no step goes past the root. -inf gives 0.
    """
    power, scaled_PN = 1 / (alpha - 1), (alpha - 1) * (logits_PN - logits_PN.amax(1, keepdim=True))
    # where the largest entry, 0 now, alone gives a sum of 1
    threshold_P1 = scaled_PN.new_full((len(scaled_PN), 1), -1.0)
    for _ in range(_MOST_STEPS):
        above_PN = (scaled_PN - threshold_P1).clamp_min_(0)
        slopes_PN = above_PN.sign() if power == 1 else above_PN ** (power - 1)
        excess_P1 = (slopes_PN * above_PN).sum(1, keepdim=True) - 1
        step_P1 = excess_P1 / (power * slopes_PN.sum(1, keepdim=True))
        threshold_P1 = threshold_P1 + step_P1
        if step_P1.max() <= 1e-6:
            break
    weights_PN = (scaled_PN - threshold_P1).clamp_min_(0) ** power
    return weights_PN / weights_PN.sum(1, keepdim=True)


def entmax_loss(logits_PN: torch.Tensor, labels_P: torch.Tensor, alpha: float) -> torch.Tensor:
    """Mean of (p - e) . z + H(p), H(p) = sum (p - p^alpha) / (alpha (alpha - 1)); its gradient is p - e."""
    p_PN = entmax(logits_PN, alpha)
    own_P = logits_PN.gather(1, labels_P[:, None])[:, 0]
    entropy_P = (p_PN - p_PN**alpha).sum(1) / (alpha * (alpha - 1))
    expected_P = (p_PN * logits_PN.masked_fill(p_PN == 0, 0)).sum(1)
    return (expected_P - own_P + entropy_P).mean()

"""Losses shared by models."""

import torch
import torch.nn.functional as F

from recsys.models.layers import increments


def nested_cross_entropy(
    queries_PD: torch.Tensor,
    items_ID: torch.Tensor,
    bias_I: torch.Tensor | None,
    labels_P: torch.Tensor,
    widths: tuple[int, ...],
    weights: torch.Tensor,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Full-softmax cross-entropy at every width, averaged with `weights` (which sum to one).

    Logits of width m are those of the width before plus one block's product, so all widths together
    cost one product of the full width. Returns (loss, {"loss.width.m": value}).
    """
    logits_PI = bias_I if bias_I is not None else 0.0
    losses = []
    for start, end in increments(widths):
        logits_PI = logits_PI + queries_PD[:, start:end] @ items_ID[:, start:end].T
        losses.append(F.cross_entropy(logits_PI, labels_P))
    per_width = torch.stack(losses)
    parts = {f"loss.width.{width}": value for width, value in zip(widths, per_width.tolist(), strict=True)}
    return (weights * per_width).sum(), parts

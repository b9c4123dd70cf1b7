"""What is learnt from a batch of query vectors and the items that were right: one switch for all embedding models."""

from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import nn

from recsys.config import Config
from recsys.models.losses import Repeats, Scores, Widths, nested_softmax
from recsys.models.pairwise import bce, bpr, directau
from recsys.models.sampled import gbce, mixed_sample, sampled_softmax

Loss = Literal["full", "sampled", "in_batch", "gbce", "bce", "bpr", "directau"]
SOFTMAX = ("full", "sampled", "in_batch")
"""Losses that a distribution over items stands behind."""


class ObjectiveConfig(Config):
    """Settings of the loss."""

    loss: Loss = "full"
    """full, sampled, in_batch: softmax over the whole catalogue, over the labels of the step and drawn items, over the
    labels alone. gbce: binary cross-entropy of gSASRec over drawn items. bce, bpr: each position against items of its
    own. directau: alignment and uniformity."""
    negatives: Annotated[int, Field(ge=1)] = 1024
    """sampled, gbce: items drawn a step, the same for all its positions. bce, bpr: items drawn for each position."""
    negative_power: Annotated[float, Field(ge=0)] = 0.0
    """sampled, gbce, bce, bpr: items are drawn in proportion to (training count)^power; 0 = uniformly."""
    log_q: bool = True
    """sampled, in_batch: correct for how likely each item was to be there."""
    gbce_t: Annotated[float, Field(ge=0, le=1)] = 0.75
    """gbce: calibration; 0 = plain binary cross-entropy, 1 = probabilities as of the full softmax."""
    uniformity: Annotated[float, Field(ge=0)] = 1.0
    """directau: weight of uniformity against alignment."""


class Columns(NamedTuple):
    """Items that a step scores. rows_N: catalogue rows, each once; labels_P: column of each position's label; log_q_N:
    log of each column's chance to be there; drawn: columns of the negatives, [N] for all positions or [P, N]."""

    rows_N: torch.Tensor
    labels_P: torch.Tensor
    log_q_N: torch.Tensor
    drawn: torch.Tensor


class Objective(nn.Module):
    """A step in two halves: `columns` says which items are to be scored, `forward` makes the loss of their scores.

    Items that training never saw are neither negatives nor part of a softmax.
    """

    def __init__(self, config: ObjectiveConfig, counts_I: np.ndarray, widths: Widths):
        super().__init__()
        self.config, self.widths = config, widths
        trained_I = counts_I > 0
        place_I = np.where(trained_I, np.cumsum(trained_I) - 1, -1)  # an item's number among the trained ones
        draw_T = counts_I[trained_I].astype(np.float64) ** config.negative_power
        seen_T = counts_I[trained_I] / max(counts_I.sum(), 1)
        for name, array in {
            "trained": np.flatnonzero(trained_I),
            "place_I": place_I,
            "draw_T": (draw_T / draw_T.sum()).astype(np.float32),
            "seen_T": seen_T.astype(np.float32),
        }.items():
            self.register_buffer(name, torch.from_numpy(array), persistent=False)

    def columns(self, labels_P: torch.Tensor) -> Columns:
        """labels_P: catalogue rows, all of them trained items."""
        labels_P, none = self.place_I[labels_P], self.draw_T[:0]
        match self.config.loss:
            case "full":
                return Columns(self.trained, labels_P, none, labels_P[:0])
            case "in_batch" | "directau":
                drawn = labels_P[:0]
            case "sampled" | "gbce":
                drawn = self._draw(self.config.negatives)
            case "bce" | "bpr":
                drawn = self._draw(len(labels_P) * self.config.negatives).view(len(labels_P), -1)
        items_N, log_q_N = mixed_sample(labels_P, drawn.flatten(), self.seen_T, self.draw_T)
        return Columns(
            self.trained[items_N],
            torch.searchsorted(items_N, labels_P),
            log_q_N,
            torch.searchsorted(items_N, drawn),
        )

    def _draw(self, count: int) -> torch.Tensor:
        return torch.multinomial(self.draw_T, count, replacement=True)

    def scores(self, queries_PD: torch.Tensor, items_ND: torch.Tensor, bias_N: torch.Tensor) -> Scores:
        """Plain dot products and biases of the columns, without temperatures and repeats."""
        none = self.trained[:0]
        ones_K = bias_N.new_ones(len(self.widths.widths))
        return Scores(queries_PD.float(), items_ND.float(), bias_N, ones_K, Repeats(none, none, bias_N[:0]))

    def forward(self, scores: Scores, columns: Columns) -> tuple[torch.Tensor, dict[str, float]]:
        """(loss, loss at each width, for tracking). scores: of the columns, in their order."""
        loss, per_width_K = self._loss(scores, columns)
        return loss, self._named(per_width_K)

    def _named(self, per_width_K: torch.Tensor) -> dict[str, float]:
        names = (f"loss.width.{width}" for width in self.widths.widths)
        return dict(zip(names, per_width_K.tolist(), strict=True))

    def of_rows(
        self,
        queries_QD: torch.Tensor,
        rows_P: torch.Tensor,
        items_ND: torch.Tensor,
        bias_N: torch.Tensor,
        columns: Columns,
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """As `forward` where many positions ask with one query, rows_P being that of each: the full softmax then makes
        the normaliser of a query once. Widths learn from labels alone, not from the widest."""
        if self.config.loss != "full":
            return self(self.scores(queries_QD[rows_P], items_ND, bias_N), columns)
        losses = []
        for width in self.widths.widths:
            logits_QN = queries_QD[:, :width].float() @ items_ND[:, :width].float().T + bias_N
            losses.append(
                (torch.logsumexp(logits_QN, 1)[rows_P] - logits_QN[rows_P, columns.labels_P]).mean()
            )
        per_width_K = torch.stack(losses)
        return per_width_K @ per_width_K.new_tensor(self.widths.weights), self._named(per_width_K)

    def _loss(self, scores: Scores, columns: Columns) -> tuple[torch.Tensor, torch.Tensor]:
        config, widths, labels_P = self.config, self.widths, columns.labels_P
        match config.loss:
            case "full":
                return nested_softmax(scores, labels_P, widths)
            case "sampled" | "in_batch":
                log_q_N = columns.log_q_N if config.log_q else torch.zeros_like(columns.log_q_N)
                return sampled_softmax(scores, labels_P, log_q_N, widths)
            case "gbce":
                return gbce(scores, labels_P, columns.drawn, widths, len(self.trained), config.gbce_t)
            case "bce":
                return bce(scores, labels_P, columns.drawn, widths)
            case "bpr":
                return bpr(scores, labels_P, columns.drawn, widths)
            case "directau":
                return directau(scores, labels_P, widths, config.uniformity)

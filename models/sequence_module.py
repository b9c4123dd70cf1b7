"""Items, trunk and loss of a sequence model as one torch module, and the batches it takes."""

import numpy as np
import torch
from torch import nn

from recsys.models.items import Features, ItemEncoder
from recsys.models.losses import Repeats, Scores, Widths, nested_softmax
from recsys.models.packing import pack
from recsys.models.sampled import gbce, mixed_sample, sampled_softmax
from recsys.models.sequence_config import SequenceConfig
from recsys.models.trunk import Trunk
from recsys.schema import Ragged
from recsys.scoring import RECENCY_BUCKETS, past_of_positions


class SequenceModule(nn.Module):
    """Items, trunk and loss; `forward` is the loss of a batch."""

    def __init__(self, config: SequenceConfig, features: Features, counts_I: np.ndarray):
        super().__init__()
        self.config = config
        trained_I = counts_I > 0
        self.items = ItemEncoder(config, features, trained_I)
        self.trunk = Trunk(config)
        self.log_scales = nn.Parameter(torch.zeros(len(config.widths))) if config.width_temperature else None
        self.repeat = nn.Parameter(torch.zeros(RECENCY_BUCKETS)) if config.repeat_bias else None
        power = {"uniform": 0.0, "inverse_sqrt": -0.5, "inverse": -1.0}[config.width_weights]
        weights = np.array(config.widths, float) ** power
        self.loss_widths = Widths(config.widths, tuple((weights / weights.sum()).tolist()), config.distil)
        # items that training never saw are no negatives: the softmax runs over the trained ones, numbered apart
        place_I = np.where(trained_I, np.cumsum(trained_I) - 1, -1)
        draw_T = counts_I[trained_I].astype(np.float64) ** config.negative_power
        seen_T = counts_I[trained_I] / max(counts_I.sum(), 1)
        for name, array in {
            "trained": np.flatnonzero(trained_I),
            "place_I": place_I,
            "draw_T": (draw_T / draw_T.sum()).astype(np.float32),
            "seen_T": seen_T.astype(np.float32),
        }.items():
            self.register_buffer(name, torch.from_numpy(array), persistent=False)

    def scales(self) -> torch.Tensor:
        """[K] scale of the logits at each width."""
        if self.log_scales is None:
            return torch.ones(len(self.config.widths), device=self.trunk.start.device)
        return torch.exp(self.log_scales)

    def forward(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        if self.config.loss == "full":
            items_ID = self.items()
            queries_PD = self.trunk(items_ID, batch["tokens_P"], batch["counts_T"].tolist())
            scores = self._scores(batch, queries_PD, items_ID[self.trained], self.trained)
            loss, per_width = nested_softmax(scores, self.place_I[batch["labels_P"]], self.loss_widths)
        else:
            loss, per_width = self._sampled(batch)
        names = (f"loss.width.{width}" for width in self.config.widths)
        return loss, dict(zip(names, per_width.tolist(), strict=True))

    def _sampled(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Only the items that the step needs are encoded: those of the rows and those of the sample."""
        config, tokens_P, labels_P = self.config, batch["tokens_P"], self.place_I[batch["labels_P"]]
        count = 0 if config.loss == "in_batch" else config.negatives
        drawn_N = torch.multinomial(self.draw_T, count, replacement=True) if count else labels_P[:0]
        sample = mixed_sample(labels_P, drawn_N, self.seen_T, self.draw_T)
        columns_N = self.trained[sample.items_N]
        rows_N, places = torch.cat([tokens_P.clamp_min(0), columns_N]).unique(return_inverse=True)
        own_P, column_N = places.split([len(tokens_P), len(columns_N)])
        items_ND = self.items(rows_N)
        queries_PD = self.trunk(items_ND, own_P.where(tokens_P >= 0, -1), batch["counts_T"].tolist())
        scores = self._scores(batch, queries_PD, items_ND[column_N], columns_N)
        labels_P = torch.searchsorted(sample.items_N, labels_P)
        if config.loss == "gbce":
            drawn_N = torch.searchsorted(sample.items_N, drawn_N)
            return gbce(scores, labels_P, drawn_N, self.loss_widths, len(self.trained), config.gbce_t)
        log_q_N = sample.log_q_N if config.log_q else torch.zeros_like(sample.log_q_N)
        return sampled_softmax(scores, labels_P, log_q_N, self.loss_widths)

    def _scores(
        self,
        batch: dict[str, torch.Tensor],
        queries_PD: torch.Tensor,
        items_ND: torch.Tensor,
        rows_N: torch.Tensor,
    ) -> Scores:
        """Logits over the items `rows_N`."""
        none = rows_N.new_zeros(0)
        repeats = Repeats(none, none, queries_PD.new_zeros(0))
        if self.repeat is not None:
            place_I = torch.full_like(self.place_I, -1)  # where an item stands among them
            place_I[rows_N] = torch.arange(len(rows_N), device=rows_N.device)
            items_R = place_I[batch["past_item_R"]]
            here = items_R >= 0
            values_R = self.repeat[batch["past_bucket_R"][here]]
            repeats = Repeats(batch["past_position_R"][here], items_R[here], values_R)
        bias_N = self.items.bias()[rows_N]
        return Scores(queries_PD.float(), items_ND.float(), bias_N, self.scales(), repeats)


def training_batch(sequences: Ragged, *, past: bool = False) -> dict[str, torch.Tensor]:
    """Tokens [start, i1, ..., i(n-1)] and labels [i1, ..., in] of every row, packed: all positions count.

    past: also the distinct earlier items of every position, by position.
    """
    packed = pack(sequences)
    tokens_P = np.full(len(packed.items_P), -1, np.int64)
    offsets_T = np.cumsum(packed.counts_T) - packed.counts_T
    for step in range(1, len(offsets_T)):
        before, here, rows = offsets_T[step - 1], offsets_T[step], packed.counts_T[step]
        tokens_P[here : here + rows] = packed.items_P[before : before + rows]
    arrays = {"tokens_P": tokens_P, "labels_P": packed.items_P, "counts_T": packed.counts_T}
    if past:
        rows, steps, items, buckets = past_of_positions(sequences.take(packed.order_B))
        positions = offsets_T[steps] + rows
        order = np.argsort(positions, kind="stable")
        arrays |= {
            "past_position_R": positions[order],
            "past_item_R": items[order],
            "past_bucket_R": buckets[order],
        }
    return {name: torch.from_numpy(array) for name, array in arrays.items()}

"""Items, trunk and loss of a sequence model as one torch module, and the batches it takes."""

import numpy as np
import torch
from torch import nn

from recsys.models.items import Features, ItemEncoder
from recsys.models.losses import Repeats, Scores, Widths
from recsys.models.objective import Objective
from recsys.models.packing import hidden, pack
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
        power = {"uniform": 0.0, "inverse_sqrt": -0.5, "inverse": -1.0, "proportional": 1.0}[
            config.width_weights
        ]
        weights = np.array(config.widths, float) ** power
        loss_widths = Widths(config.widths, tuple((weights / weights.sum()).tolist()), config.distil)
        self.objective = Objective(config, counts_I, loss_widths)

    def scales(self) -> torch.Tensor:
        """[K] scale of the logits at each width."""
        if self.log_scales is None:
            return torch.ones(len(self.config.widths), device=self.trunk.start.device)
        return torch.exp(self.log_scales)

    def forward(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        tokens_P, counts_T = batch["tokens_P"], batch["counts_T"].tolist()
        columns, asked_P = self.objective.columns(batch["labels_P"]), batch.get("asked_P")
        if self.config.loss == "full":
            items_ID = self.items()
            queries_PD = self.trunk(items_ID, tokens_P, counts_T, asked_P)
            columns_ND = items_ID[columns.rows_N]
        else:  # only what the step needs is encoded: the items of the rows and those to be scored
            rows_N, places = torch.cat([tokens_P.clamp_min(0), columns.rows_N]).unique(return_inverse=True)
            own_P, column_N = places.split([len(tokens_P), len(columns.rows_N)])
            items_ND = self.items(rows_N)
            queries_PD = self.trunk(items_ND, own_P.where(tokens_P >= 0, -1), counts_T, asked_P)
            columns_ND = items_ND[column_N]
        return self.objective(self._scores(batch, queries_PD, columns_ND, columns.rows_N), columns)

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
            place_I = torch.full_like(self.objective.place_I, -1)  # where an item stands among them
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


def masked_batch(sequences: Ragged, share: float, rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """The rows with some items hidden (see `hidden`), packed; asked_P: tokens that are; labels_P: what stood there."""
    packed, whole = pack(hidden(sequences, share, rng)), pack(sequences)
    asked_P = np.flatnonzero(packed.items_P < 0)
    arrays = {
        "tokens_P": packed.items_P,
        "counts_T": packed.counts_T,
        "asked_P": asked_P,
        "labels_P": whole.items_P[asked_P],
    }
    return {name: torch.from_numpy(array) for name, array in arrays.items()}

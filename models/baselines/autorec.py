"""AutoRec: an autoencoder of what a user took.

After Sedhain et al., "AutoRec: Autoencoders Meet Collaborative Filtering" (WWW 2015), equation 1, user-based: a history
goes through one hidden layer and comes back as a score for every item.

Departures, for interactions in place of ratings: the history is scaled to length one and thinned in training, as in
Liang et al., "Variational Autoencoders for Collaborative Filtering" (WWW 2018), and the loss is a softmax, or another
of `ObjectiveConfig`, in place of squared errors.
"""

from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import nn

from recsys.models.base import FitContext, LoopedModel
from recsys.models.batching import batches_of_rows, steps
from recsys.models.layers import ascending
from recsys.models.losses import Widths
from recsys.models.objective import Objective, ObjectiveConfig
from recsys.models.trunk import Share
from recsys.models.vectors import VectorModel, Vectors
from recsys.profile import Profile
from recsys.schema import Log


class AutoRecConfig(ObjectiveConfig):
    """Settings of AutoRec."""

    widths: tuple[int, ...] = (64,)
    """Nested widths of the hidden layer, ascending; each has a loss of its own, all of equal weight."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Users a step."""
    dropout: Share = 0.5
    """Share of a history's events that are left out of the input in a training step, and asked for all the same."""

    _ascending = field_validator("widths")(ascending)


class AutoRecModule(nn.Module):
    """h = sigmoid(V x + mu), scores = W h + b; x is the history, scaled to length one."""

    def __init__(self, config: AutoRecConfig, log: Log):
        super().__init__()
        width, counts_I = config.widths[-1], log.item_counts()
        self.config = config
        self.inputs = nn.Parameter(torch.randn(log.num_items, width) / width**0.5)
        self.offset = nn.Parameter(torch.zeros(width))
        self.items = nn.Parameter(torch.randn(log.num_items, width) / width**0.5)
        self.bias = nn.Parameter(torch.zeros(log.num_items))
        self.register_buffer("trained_I", torch.from_numpy(counts_I > 0).float(), persistent=False)
        self.objective = Objective(config, counts_I, Widths.equal(config.widths))

    def forward(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        row_P, item_P = batch["row_P"], batch["item_P"]
        weight_P = torch.ones_like(row_P, dtype=torch.float32)
        if self.training and self.config.dropout:
            weight_P = (torch.rand_like(weight_P) >= self.config.dropout).float()
        rows = int(row_P[-1]) + 1
        count_B = weight_P.new_zeros(rows).index_add(0, row_P, weight_P).clamp_min(1)
        total_BD = self.inputs.new_zeros(rows, self.inputs.shape[1])
        total_BD = total_BD.index_add(0, row_P, weight_P[:, None] * self.inputs[item_P])
        hidden_BD = torch.sigmoid(total_BD / count_B.sqrt()[:, None] + self.offset)
        columns = self.objective.columns(item_P)
        items_ND, bias_N = self.items[columns.rows_N], self.bias[columns.rows_N]
        return self.objective.of_rows(hidden_BD, row_P, items_ND, bias_N, columns)


class AutoRec(VectorModel[AutoRecConfig], LoopedModel[AutoRecConfig]):
    """Users are what is in their history: any history can be asked with, trained on or not."""

    Config = AutoRecConfig
    shared = False

    @property
    def widths(self) -> tuple[int, ...]:
        return self.config.widths

    @property
    def profile_settings(self) -> dict[str, Any]:
        return {"scaling": "root", "activation": "sigmoid"}

    def setup(self, ctx: FitContext) -> None:
        self.module = AutoRecModule(self.config, ctx.train)
        sequences = ctx.train.sequences
        self.seed, self.rows = ctx.seed, sequences.take(np.flatnonzero(sequences.lengths))

    def steps_per_epoch(self, world: int = 1) -> int:
        return steps(len(self.rows), self.config.batch_size, world)

    def batches(self, epoch: int, rank: int = 0, world: int = 1) -> Iterator[dict[str, torch.Tensor]]:
        size = self.config.batch_size
        for _, taken in batches_of_rows(len(self.rows), size, self.seed, epoch, rank, world):
            row_P, item_P = self.rows.take(taken).flat()
            yield {"row_P": torch.from_numpy(row_P), "item_P": torch.from_numpy(item_P)}

    @torch.inference_mode()
    def learnt(self) -> Vectors:
        module, trained_I = self.module, self.module.trained_I
        inputs_ID, items_ID, bias_I, offset_D, default_D = (
            value.cpu().numpy()
            for value in (
                module.inputs * trained_I[:, None],
                module.items * trained_I[:, None],
                module.bias * trained_I,
                module.offset,
                torch.sigmoid(module.offset),
            )
        )
        profile = Profile(inputs_ID, default_D, offset_D=offset_D, **self.profile_settings)
        return Vectors(profile, items_ID, bias_I)

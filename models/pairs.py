"""Models of user-item pairs: a vector a user, a vector an item, and a loss of the pairs that were seen.

Matrix factorisation and what builds on it share everything here and differ in how vectors come about.
"""

from collections.abc import Iterator
from typing import Annotated, TypeVar

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import nn

from recsys.config import Config
from recsys.models.base import FitContext, LoopedModel
from recsys.models.batching import batches_of_rows, steps
from recsys.models.layers import ascending
from recsys.models.losses import Widths
from recsys.models.objective import Loss, Objective, ObjectiveConfig
from recsys.models.vectors import VectorModel, Vectors
from recsys.profile import Profile
from recsys.schema import Log

_INITIAL = 0.1
"""Standard deviation of initial vectors, as in LightGCN."""


class PairsConfig(ObjectiveConfig):
    """Settings of a model of pairs."""

    widths: tuple[int, ...] = (64,)
    """Nested widths, ascending; the last is the full one. Each has a loss of its own, all of equal weight."""
    batch_size: Annotated[int, Field(ge=1)] = 1024
    """Pairs a step."""
    loss: Loss = "bpr"
    """The kind of ranking loss (see `ObjectiveConfig`)."""
    negatives: Annotated[int, Field(ge=1)] = 1
    """sampled, gbce: items drawn a step, the same for all its pairs. bce, bpr: items drawn for each pair."""
    item_bias: bool = True
    """A learnt popularity bias per item."""

    _ascending = field_validator("widths")(ascending)


ConfigT = TypeVar("ConfigT", bound=PairsConfig)
LoopT = TypeVar("LoopT", bound=Config)


class PairsModule(nn.Module):
    """Vectors and loss; `forward` is the loss of a batch of pairs. Items without a training row have no vector."""

    def __init__(self, config: PairsConfig, log: Log):
        super().__init__()
        width, counts_I = config.widths[-1], log.item_counts()
        self.config = config
        self.users = nn.Parameter(torch.randn(log.num_users, width) * _INITIAL)
        self.items = nn.Parameter(torch.randn(log.num_items, width) * _INITIAL)
        self.own_bias = nn.Parameter(torch.zeros(log.num_items)) if config.item_bias else None
        self.register_buffer("trained_I", torch.from_numpy(counts_I > 0).float(), persistent=False)
        self.objective = Objective(config, counts_I, Widths.equal(config.widths))

    def vectors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """[U, D] and [I, D]."""
        return self.users, self.items * self.trained_I[:, None]

    def bias(self) -> torch.Tensor:
        """[I]; zero everywhere without `item_bias`."""
        return torch.zeros_like(self.trained_I) if self.own_bias is None else self.own_bias * self.trained_I

    def forward(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        users_UD, items_ID = self.vectors()
        columns = self.objective.columns(batch["item_P"])
        scores = self.objective.scores(
            users_UD[batch["user_P"]], items_ID[columns.rows_N], self.bias()[columns.rows_N]
        )
        return self.objective(scores, columns)


class PairBatches(LoopedModel[LoopT]):
    """Batches of user-item pairs, for models whose config has a `batch_size`."""

    def take_pairs(self, ctx: FitContext) -> None:
        """The pairs of the context; one counts once, however often it occurs."""
        log = ctx.train
        self.seed = ctx.seed
        self.pairs_N2 = np.unique(np.stack([log.user_N, log.item_N], axis=1), axis=0)

    def steps_per_epoch(self, world: int = 1) -> int:
        return steps(len(self.pairs_N2), self.config.batch_size, world)

    def batches(self, epoch: int, rank: int = 0, world: int = 1) -> Iterator[dict[str, torch.Tensor]]:
        size = self.config.batch_size
        for _, taken in batches_of_rows(len(self.pairs_N2), size, self.seed, epoch, rank, world):
            user_P, item_P = torch.from_numpy(self.pairs_N2[taken]).T
            yield {"user_P": user_P, "item_P": item_P}


class PairsModel(VectorModel[ConfigT], PairBatches[ConfigT]):
    """A known user asks with the vector learnt for it, any other with the mean vector of its history's items, and one
    without a history with the mean of all users."""

    Config = PairsConfig
    Module: type[PairsModule] = PairsModule

    @property
    def widths(self) -> tuple[int, ...]:
        return self.config.widths

    def setup(self, ctx: FitContext) -> None:
        self.module = self.Module(self.config, ctx.train)
        self.known_U = np.diff(ctx.train.indptr_U1) > 0
        self.take_pairs(ctx)

    @torch.inference_mode()
    def learnt(self) -> Vectors:
        self.module.eval()
        users_UD, items_ID = (value.cpu().numpy() for value in self.module.vectors())
        mean_D = users_UD[self.known_U].mean(axis=0) if self.known_U.any() else np.zeros_like(items_ID[0])
        profile = Profile(items_ID, mean_D, users_UD, self.known_U)
        return Vectors(profile, items_ID, self.module.bias().cpu().numpy())

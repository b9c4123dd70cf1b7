"""Models of user-item pairs: a vector a user, a vector an item, and a loss of the pairs that were seen.

Matrix factorisation and what builds on it share everything here and differ in how vectors come about.
"""

from collections.abc import Iterator
from typing import Annotated, Any, TypeVar

import numpy as np
import torch
from pydantic import Field, field_validator, model_validator
from torch import nn

from recsys.config import Config
from recsys.models.base import FitContext, LoopedModel
from recsys.models.batching import batches_of_rows, steps
from recsys.models.layers import ascending
from recsys.models.losses import Widths
from recsys.models.objective import Loss, Objective, ObjectiveConfig
from recsys.models.vectors import VectorModel, Vectors
from recsys.profile import Profile
from recsys.schema import Log, Queries

_OTHERS, _FOLDED = 0.1, 1000
"""Weight of items that are not in a history when it is folded in; users whose vectors set the length of the result."""
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
    fold_in: Annotated[float, Field(gt=0)] | None = None
    """How a user without a vector asks: None = with the mean of the vectors of its history's items; a number = by least
    squares against them, all other items counting as zeros of weight 0.1, and this ridge. One width only."""

    _ascending = field_validator("widths")(ascending)

    @model_validator(mode="after")
    def _one_width(self):
        if self.fold_in is not None and len(self.widths) > 1:
            raise ValueError("one width where fold_in is set: what is solved at one is no part of another")
        return self


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
        self.known_U, self.sequences = np.diff(ctx.train.indptr_U1) > 0, ctx.train.sequences
        self.take_pairs(ctx)

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """[U, D] and [I, D] of the weights as they are."""
        self.module.eval()
        users_UD, items_ID = self.module.vectors()
        return users_UD.cpu().numpy(), items_ID.cpu().numpy()

    @torch.inference_mode()
    def learnt(self) -> Vectors:
        users_UD, items_ID = self.arrays()
        mean_D = users_UD[self.known_U].mean(axis=0) if self.known_U.any() else np.zeros_like(items_ID[0])
        profile = Profile(
            items_ID,
            mean_D,
            users_UD,
            self.known_U,
            **self.profile_settings,
            **self._fold(items_ID, users_UD),
        )
        return Vectors(profile, items_ID, self.module.bias().cpu().numpy())

    @property
    def profile_settings(self) -> dict[str, Any]:
        return {} if self.config.fold_in is None else {"scaling": "solved"}

    def _fold(self, items_ID: np.ndarray, users_UD: np.ndarray) -> dict[str, np.ndarray]:
        """What `Profile` folds users in with; vectors found so are as long, on average, as those that were learnt."""
        if self.config.fold_in is None:
            return {}
        width = items_ID.shape[1]
        wide_ID = items_ID.astype(np.float64)
        gram_DD = _OTHERS * wide_ID.T @ wide_ID + self.config.fold_in * np.eye(width)
        found = {"gram_DD": gram_DD, "fold_1": np.ones(1)}
        rows = np.flatnonzero(self.known_U)[:_FOLDED]
        asked = Queries(np.full(len(rows), -1), self.sequences.take(rows), np.zeros(len(rows), np.int64))
        alike_ND = Profile(items_ID, np.zeros(width), scaling="solved", **found).vectors(asked)
        lengths = (np.linalg.norm(one, axis=1).mean() for one in (users_UD[rows], alike_ND))
        return {"gram_DD": gram_DD, "fold_1": np.array([next(lengths) / max(next(lengths), 1e-12)])}

"""Models of user-item pairs: a vector a user, a vector an item, and a loss of the pairs that were seen.

Matrix factorisation and what builds on it share everything here and differ in how vectors come about.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Self, TypeVar

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import nn

from recsys.models.base import FitContext, LoopedModel
from recsys.models.layers import ascending
from recsys.models.losses import Repeats, Scores, Widths
from recsys.models.objective import Loss, Objective, ObjectiveConfig
from recsys.profile import Profile
from recsys.schema import Form, Log, Queries, legal_width
from recsys.scoring import dot_scores

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
        shares = (1 / len(config.widths),) * len(config.widths)
        self.objective = Objective(config, counts_I, Widths(config.widths, shares))

    def vectors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """[U, D] and [I, D]."""
        return self.users, self.items * self.trained_I[:, None]

    def bias(self) -> torch.Tensor:
        """[I]; zero everywhere without `item_bias`."""
        return torch.zeros_like(self.trained_I) if self.own_bias is None else self.own_bias * self.trained_I

    def forward(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        users_UD, items_ID = self.vectors()
        columns = self.objective.columns(batch["item_P"])
        none = batch["item_P"][:0]
        scores = Scores(
            users_UD[batch["user_P"]].float(),
            items_ID[columns.rows_N].float(),
            self.bias()[columns.rows_N],
            torch.ones(len(self.config.widths), device=none.device),
            Repeats(none, none, self.trained_I[:0]),
        )
        loss, per_width = self.objective(scores, columns)
        names = (f"loss.width.{width}" for width in self.config.widths)
        return loss, dict(zip(names, per_width.tolist(), strict=True))


class PairsModel(LoopedModel[ConfigT]):
    """A known user asks with the vector learnt for it, any other with the mean vector of its history's items, and one
    without a history with the mean of all users."""

    Config = PairsConfig
    Module: type[PairsModule] = PairsModule

    @property
    def widths(self) -> tuple[int, ...]:
        return self.config.widths

    def setup(self, ctx: FitContext) -> None:
        log = ctx.train
        self.module = self.Module(self.config, log)
        self.known_U = np.diff(log.indptr_U1) > 0
        self.seed = ctx.seed
        # a pair counts once, however often it occurs
        self.pairs_N2 = np.unique(np.stack([log.user_N, log.item_N], axis=1), axis=0)

    def steps_per_epoch(self, world: int = 1) -> int:
        return -(-len(self.pairs_N2) // (self.config.batch_size * world))

    def batches(self, epoch: int, rank: int = 0, world: int = 1) -> Iterator[dict[str, torch.Tensor]]:
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.pairs_N2))
        size = self.config.batch_size * world
        if world > 1:  # the last rows are filled up from the front, so that every rank takes as many steps
            order = np.resize(order, self.steps_per_epoch(world) * size)
        for start in range(0, len(order), size):
            user_P, item_P = torch.from_numpy(self.pairs_N2[order[start : start + size][rank::world]]).T
            yield {"user_P": user_P, "item_P": item_P}

    @torch.inference_mode()
    def arrays(self) -> dict[str, np.ndarray]:
        """users [U, D], items [I, D], bias [I] and known [U], as they stand now."""
        if not hasattr(self, "module"):
            return self._arrays
        self.module.eval()
        users_UD, items_ID = self.module.vectors()
        tensors = {"users": users_UD, "items": items_ID, "bias": self.module.bias()}
        return {name: value.cpu().numpy() for name, value in tensors.items()} | {"known": self.known_U}

    def item_vectors(self, width: int | None = None) -> np.ndarray:
        return self.arrays()["items"][:, : legal_width(width, self.widths)]

    def query_vectors(self, queries: Queries, width: int | None = None) -> np.ndarray:
        """[Q, width]."""
        return _profile(self.arrays()).vectors(queries)[:, : legal_width(width, self.widths)]

    def score(
        self, queries: Queries, candidates: np.ndarray | None = None, width: int | None = None
    ) -> np.ndarray:
        arrays, width = self.arrays(), legal_width(width, self.widths)
        queries_QD = _profile(arrays).vectors(queries)[:, :width]
        return dot_scores(queries_QD, arrays["items"][:, :width], arrays["bias"], candidates)

    def state(self) -> dict[str, np.ndarray]:
        return self.arrays()

    @classmethod
    def from_state(cls, config: ConfigT, state: Mapping[str, np.ndarray]) -> Self:
        model = cls(config)
        model._arrays = {name: state[name] for name in ("users", "items", "bias", "known")}
        return model

    def serving_form(self) -> Form:
        arrays = self.arrays()
        return _profile(arrays).form(arrays["items"], arrays["bias"], self.widths, shared=True)


def _profile(arrays: Mapping[str, np.ndarray]) -> Profile:
    known_U = arrays["known"]
    default_D = arrays["users"][known_U].mean(axis=0) if known_U.any() else arrays["users"][:0].sum(axis=0)
    return Profile(arrays["items"], default_D, arrays["users"], known_U)

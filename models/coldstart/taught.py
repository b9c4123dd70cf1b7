"""Specialists that learn from the vectors of a warm model: DropoutNet, Heater, ALDI."""

from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from recsys.layered_items import LayeredItems
from recsys.models.base import FitContext
from recsys.models.coldstart.content import ContentConfig, ContentModel, ContentModule, ContentTower
from recsys.models.coldstart.teacher import wmf
from recsys.models.trunk import Share


class TaughtConfig(ContentConfig):
    """Settings of a specialist with a teacher; the teacher is fitted on the training rows alone."""

    teacher_regularisation: Annotated[float, Field(gt=0)] = 50.0
    """Of the teacher's least squares."""
    teacher_confidence: Annotated[float, Field(gt=0)] = 10.0
    """Weight of a seen pair beyond that of any other."""
    teacher_rounds: Annotated[int, Field(ge=1)] = 10
    """Sweeps over users and items."""


class TaughtModule(ContentModule):
    """The teacher's vectors are constants."""

    def __init__(self, config: TaughtConfig, ctx: FitContext):
        super().__init__(config, ctx)
        found = wmf(
            ctx.train,
            config.width,
            config.teacher_regularisation,
            config.teacher_confidence,
            config.teacher_rounds,
            ctx.seed,
        )
        for name, vectors in zip(("teacher_UD", "teacher_ID"), found, strict=True):
            self.register_buffer(name, torch.from_numpy(vectors), persistent=False)

    def wanted(self, user_P: torch.Tensor, item_N: torch.Tensor) -> torch.Tensor:
        """[P, N] the teacher's scores."""
        return self.teacher_UD[user_P] @ self.teacher_ID[item_N].T

    def asked(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """(users, items), each once: those of the pairs, and drawn items."""
        items_N = torch.cat([batch["item_P"], self.drawn(self.config.negatives)])
        return batch["user_P"].unique(), items_N.unique()


class DropoutNetConfig(TaughtConfig):
    """Settings of DropoutNet."""

    dropout: Share = 0.5
    """Share of users, and of items, whose teacher's vector is hidden in a step."""


class DropoutNetModule(TaughtModule):
    """f_u([U; content]) . f_v([V; content]) is the teacher's score, though U or V may be hidden."""

    def __init__(self, config: DropoutNetConfig, ctx: FitContext):
        super().__init__(config, ctx)
        self.users = ContentTower(ctx, "user", self.known_U, config, extra=config.width)
        self.items = ContentTower(ctx, "item", self.known_I, config, extra=config.width)

    def forward(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        users_B, items_N = self.asked(batch)
        users_BD = self.users(users_B, self._hidden(self.teacher_UD[users_B]))
        items_ND = self.items(items_N, self._hidden(self.teacher_ID[items_N]))
        return (users_BD @ items_ND.T - self.wanted(users_B, items_N)).square().mean(), {}

    def _hidden(self, vectors_ND: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return vectors_ND
        return vectors_ND * (torch.rand_like(vectors_ND[:, :1]) >= self.config.dropout)

    def vectors(self) -> tuple[torch.Tensor, torch.Tensor]:
        rows = (torch.arange(len(one), device=one.device) for one in (self.teacher_UD, self.teacher_ID))
        return self.users(next(rows), self.teacher_UD), self.items(next(rows), self.teacher_ID)

    def encoding(self) -> LayeredItems:
        return self.items.learnt()

    def asked_cold(self) -> np.ndarray:
        return ~self.known_U & self.users.there_EF.any(1).cpu().numpy()


class DropoutNet(ContentModel[DropoutNetConfig]):
    """After Volkovs, Yu and Poutanen, "DropoutNet: Addressing Cold Start in Recommender Systems" (NeurIPS 2017).

    Departure: an unknown user with a history asks with the mean of its items' output vectors, where the paper puts
    that of their teacher's vectors through the user network.
    """

    Config = DropoutNetConfig
    Module = DropoutNetModule


class HeaterConfig(TaughtConfig):
    """Settings of Heater."""

    experts: Annotated[int, Field(ge=1)] = 5
    """Networks that map content into the teacher's space, weighed by a gate."""
    dropout: Share = 0.5
    """Share of items that stand in with their mapped content in a step, the others with the teacher's vector."""
    alpha: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the likeness of mapped content and the teacher's vector."""


class HeaterModule(TaughtModule):
    """Content goes to the teacher's space by a mixture of experts; a map on each side follows, whichever stands in."""

    def __init__(self, config: HeaterConfig, ctx: FitContext):
        super().__init__(config, ctx)
        self.items = ContentTower(ctx, "item", self.known_I, config, experts=config.experts)
        self.user_map, self.item_map = (nn.Parameter(torch.eye(config.width)) for _ in range(2))

    def forward(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        users_B, items_N = self.asked(batch)
        mapped_ND, own_ND = self.items(items_N), self.teacher_ID[items_N]
        takes_N1 = torch.rand_like(own_ND[:, :1]) < self.config.dropout
        items_ND = torch.where(takes_N1, mapped_ND, own_ND) @ self.item_map
        scores_BN = self.teacher_UD[users_B] @ self.user_map @ items_ND.T
        error = (scores_BN - self.wanted(users_B, items_N)).square().mean()
        alike = (mapped_ND - own_ND).square().sum(1).mean()
        return error + self.config.alpha * alike, {"error": error.item(), "alike": alike.item()}

    def vectors(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.teacher_UD @ self.user_map, self.teacher_ID @ self.item_map

    def encoding(self) -> LayeredItems:
        return self.items.learnt(self.item_map.detach().cpu().numpy())


class Heater(ContentModel[HeaterConfig]):
    """After Zhu et al., "Recommendation for New Users and New Items via Randomized Training and Mixture-of-Experts
    Transformation" (SIGIR 2020), its item side.

    Departures: the maps after the experts are linear, so that a new item's vector is one network; what is regressed is
    the teacher's score.
    """

    Config = HeaterConfig
    Module = HeaterModule


class ALDIConfig(TaughtConfig):
    """Settings of ALDI."""

    alpha: Annotated[float, Field(ge=0)] = 0.9
    """Weight of the alignment of scores."""
    beta: Annotated[float, Field(ge=0)] = 0.05
    """Weight of the alignment of rankings."""
    gamma: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the alignment of which item is taken at all."""
    half_weight: Annotated[float, Field(gt=0)] = 4.0
    """Training rows at which an item teaches with half its weight."""


class ALDIModule(TaughtModule):
    """Warm items teach the tower of their content what the teacher says of them, the more the warmer they are."""

    def __init__(self, config: ALDIConfig, ctx: FitContext):
        super().__init__(config, ctx)
        self.items = ContentTower(ctx, "item", self.known_I, config)
        counts_I = ctx.train.item_counts()
        weight_I = torch.from_numpy(counts_I / (counts_I + config.half_weight)).float()
        self.register_buffer("weight_I", weight_I, persistent=False)

    def forward(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        config, user_P, item_P = self.config, batch["user_P"], batch["item_P"]
        other_P = self.drawn(len(item_P))
        users_PD = self.teacher_UD[user_P]
        teach_P2 = torch.stack([(users_PD * self.teacher_ID[rows]).sum(1) for rows in (item_P, other_P)], 1)
        student_P2 = torch.stack([(users_PD * self.items(rows)).sum(1) for rows in (item_P, other_P)], 1)
        weight_P = self.weight_I[item_P]
        scores_P = (student_P2 - teach_P2).square().mean(1)
        student_P, teach_P = (one[:, 0] - one[:, 1] for one in (student_P2, teach_P2))
        order_P = F.binary_cross_entropy_with_logits(student_P, torch.sigmoid(teach_P), reduction="none")
        taken_P = F.binary_cross_entropy_with_logits(
            student_P2, torch.sigmoid(teach_P2), reduction="none"
        ).mean(1)
        aligned_P = config.alpha * scores_P + config.beta * order_P + config.gamma * taken_P
        own = F.softplus(-student_P).mean()
        aligned = (weight_P * aligned_P).sum() / weight_P.sum()
        return own + aligned, {"own": own.item(), "aligned": aligned.item()}

    def vectors(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.teacher_UD, self.teacher_ID

    def encoding(self) -> LayeredItems:
        return self.items.learnt()


class ALDI(ContentModel[ALDIConfig]):
    """After the abstract of Huang et al., "Aligning Distillation for Cold-Start Item Recommendation" (SIGIR 2023), and
    the names of its terms; their exact form is ours.

    Departure: the student has no user tower of its own, so that warm and cold items stand in one space.
    """

    Config = ALDIConfig
    Module = ALDIModule

"""The embedders that NoteLLM-2 is measured against, and distilled into: matrices over frozen features.

A linear head on concatenated frozen features, trained on the same pairs with the same loss, is the baseline that a
language model has to beat. With hidden layers and a teacher it is the student that embeds a new item in microseconds.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import nn

from recsys.errors import ModelError
from recsys.models.embedders.config import PairLossConfig
from recsys.models.embedders.contract import Embedder, ItemContent, PairContext, standard, unit
from recsys.models.embedders.loss import PairLoss, TeacherLoss

if TYPE_CHECKING:
    from recsys.models.notellm2.language import Open


class FrozenHeadConfig(PairLossConfig):
    """A linear map or a small network over feature tables."""

    tables: Annotated[tuple[str, ...], Field(min_length=1)] = ("image", "text")
    """Feature tables that are concatenated."""
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Widths of hidden layers with GELU; empty = linear."""
    teacher_weight: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the loss that is distillation of the context's teacher vectors, whose width is the last of `widths`;
    1 = pairs teach nothing."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of training items that lose one table, where they have another."""

    @model_validator(mode="after")
    def _tables_once(self):
        if len(set(self.tables)) != len(self.tables):
            raise ValueError("each table once")
        return self


class Training(nn.Module):
    """The network under its losses. Features are standardised by the items that pairs name; what is absent is zero,
    and its flag says so."""

    def __init__(
        self, config: FrozenHeadConfig, mean_F: np.ndarray, scale_F: np.ndarray, teacher_ID: np.ndarray | None
    ):
        super().__init__()
        self.config = config
        self.register_buffer("mean_F", torch.from_numpy(mean_F))
        self.register_buffer("scale_F", torch.from_numpy(scale_F))
        widths = [len(mean_F) + len(config.tables), *config.hidden, config.widths[-1]]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.GELU()]
        self.net = nn.Sequential(*layers[:-1])
        self.loss = PairLoss(config.widths, config.log_scale, config.false_negative_margin)
        self.teaching = TeacherLoss(config.widths)
        self._teacher_ID = teacher_ID

    def vectors(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        mask_RF = batch["mask"]
        standard_RF = torch.where(mask_RF, (batch["values"] - self.mean_F) * self.scale_F, 0.0)
        return self.net(torch.cat([standard_RF, batch["present"]], 1)).float()

    def forward(self, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        share, parts = self.config.teacher_weight, {}
        vectors_RD = self.vectors(batch)
        loss = vectors_RD.new_zeros(())
        if share < 1:
            pairs = self.loss(vectors_RD, int(batch["pairs"]), batch["allied"])
            loss, parts["joint"] = (1 - share) * pairs, pairs.item()
        if share > 0:
            taught_RD = torch.from_numpy(self._teacher_ID[batch["items"].cpu().numpy()]).to(vectors_RD.device)
            teacher = self.teaching(vectors_RD, taught_RD)
            loss, parts["teacher"] = loss + share * teacher, teacher.item()
        return loss, parts


class FrozenHead(Embedder[FrozenHeadConfig]):
    """Vectors "joint" of the tables that the config names."""

    Config = FrozenHeadConfig
    loop: ClassVar[Mapping[str, Any]] = {"epochs": 40, "lr": 1e-3, "weight_decay": 0.01, "schedule": "cosine"}

    @property
    def tables(self) -> tuple[str, ...]:
        return self.config.tables

    @property
    def takes_teacher(self) -> bool:
        return super().takes_teacher or self.config.teacher_weight > 0

    def setup(self, ctx: PairContext) -> None:
        super().setup(ctx)
        teacher_ID = None
        if self.config.teacher_weight > 0:
            if ctx.teacher_ID is None:
                raise ModelError(
                    "teacher_weight without teacher vectors", fix="give a table of vectors as the teacher"
                )
            if ctx.teacher_ID.shape[1] != self.config.widths[-1]:
                raise ModelError(
                    f"teacher vectors of {ctx.teacher_ID.shape[1]} values",
                    expected=f"{self.config.widths[-1]}, the widest",
                )
            teacher_ID = np.ascontiguousarray(ctx.teacher_ID, np.float32)
        known = ctx.content.take(np.unique(ctx.pairs_P2))
        statistics = [standard(*self._values(known, name)) for name in self.config.tables]
        mean_F, scale_F = (np.concatenate(parts) for parts in zip(*statistics, strict=True))
        self.module = Training(self.config, mean_F, scale_F, teacher_ID).to(ctx.device)

    def rows(self, content: ItemContent, rng: np.random.Generator | None = None) -> dict[str, torch.Tensor]:
        found = [self._values(content, name) for name in self.config.tables]
        present_RT = np.stack([present for _, present in found], 1)
        if rng is not None and self.config.dropout:
            lost_R = rng.random(len(content)) < self.config.dropout
            column_R = rng.integers(len(found), size=len(content))
            lost_R &= present_RT.sum(1) > 1
            present_RT[lost_R, column_R[lost_R]] = False
        widths = [values.shape[1] for values, _ in found]
        arrays = {
            "values": np.concatenate([values for values, _ in found], 1),
            "mask": np.repeat(present_RT, widths, axis=1),
            "present": present_RT.astype(np.float32),
        }
        return {name: torch.from_numpy(value) for name, value in arrays.items()}

    @torch.inference_mode()
    def encode(self, content: ItemContent, batch_size: int = 1024) -> dict[str, np.ndarray]:
        self.module.eval()
        device, parts = self.module.mean_F.device, []
        for start in range(0, len(content), batch_size):
            rows = self.rows(content.take(np.arange(start, min(start + batch_size, len(content)))))
            parts.append(
                self.module.vectors({name: value.to(device) for name, value in rows.items()}).cpu().numpy()
            )
        return {"joint": unit(np.concatenate(parts))}

    def state(self) -> dict[str, np.ndarray]:
        return {name: value.detach().cpu().numpy() for name, value in self.module.state_dict().items()}

    @classmethod
    def from_state(
        cls, config: FrozenHeadConfig, state: Mapping[str, np.ndarray], open_language: "Open | None" = None
    ) -> Self:
        found = cls(config)
        found.module = Training(config, state["mean_F"].copy(), state["scale_F"].copy(), None)
        found.module.load_state_dict(
            {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
        )
        return found

    def _values(self, content: ItemContent, name: str) -> tuple[np.ndarray, np.ndarray]:
        table = content.table(name)
        return np.where(table.present_E[:, None], table.values_EF, 0).astype(np.float32), table.present_E

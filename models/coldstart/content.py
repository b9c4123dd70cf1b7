"""The content tower that specialists share, and what a model of pairs with one in it is."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Self, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from recsys.config import Config
from recsys.features.whitening import Whitening
from recsys.fields import as_vectors
from recsys.fusion import below
from recsys.item_encoding import TableMap, unit
from recsys.layered_items import SLOPE, LayeredItems
from recsys.models.base import FitContext
from recsys.models.pairs import PairBatches
from recsys.models.vectors import VectorModel, Vectors
from recsys.profile import Profile
from recsys.schema import Dense, Form

_ENCODING = "encoding."


class ContentConfig(Config):
    """Settings of a model with a content tower."""

    tables: Annotated[tuple[str, ...], Field(min_length=1)] = ("text",)
    """Feature tables of items, and of users where the model reads any; several stand side by side."""
    width: Annotated[int, Field(ge=2)] = 64
    """Width of the vectors."""
    hidden: Annotated[int, Field(ge=1)] = 256
    """Hidden units of the content tower."""
    whiten: Annotated[int, Field(ge=1)] = 128
    """Most principal dimensions kept of each table."""
    batch_size: Annotated[int, Field(ge=1)] = 1024
    """Pairs a step."""
    negatives: Annotated[int, Field(ge=1)] = 1024
    """Items drawn a step, evenly among those of the training rows."""


ConfigT = TypeVar("ConfigT", bound=ContentConfig)


class ContentTower(nn.Module):
    """`recsys.layered_items.LayeredItems` as it is learnt, over the rows of items or users.

    extra: width of a vector that enters the hidden layer beside the content, zeros where there is none. apart: one
    expert a table, which sees nothing else.
    """

    def __init__(
        self,
        ctx: FitContext,
        entity: str,
        known_E: np.ndarray,
        config: ContentConfig,
        *,
        extra: int = 0,
        experts: int = 1,
        apart: bool = False,
        unit_length: bool = False,
    ):
        super().__init__()
        self.unit_length = unit_length
        self.whitenings, blocks, present = {}, [np.zeros((len(known_E), 0), np.float32)], []
        for name in config.tables:
            if (entity, name) not in ctx.tables:
                continue
            table = as_vectors(ctx.tables[entity, name])
            whitening = Whitening.fit(table, known_E, config.whiten, scaled=False)
            self.whitenings[name] = whitening
            blocks.append(unit(whitening(table.values_EF, table.present_E)).astype(np.float32))
            present.append(table.present_E)
        sizes = [block.shape[1] for block in blocks[1:]]
        self.register_buffer("values_EF", torch.from_numpy(np.concatenate(blocks, axis=1)), persistent=False)
        there_EF = (
            np.repeat(np.stack(present, axis=1), sizes, axis=1) if present else self.values_EF.numpy() > 0
        )
        self.register_buffer("there_EF", torch.from_numpy(there_EF), persistent=False)
        self.missing = nn.Parameter(torch.randn(sum(sizes)) * 0.01)
        experts = len(sizes) if apart else experts
        entries = max(sum(sizes) + extra, 1)
        self.inner = nn.Parameter(torch.randn(experts, config.hidden, sum(sizes)) / entries**0.5)
        self.inner_bias = nn.Parameter(torch.zeros(experts, config.hidden))
        self.extra = nn.Parameter(torch.randn(config.hidden, extra) / entries**0.5) if extra else None
        self.outer = nn.Parameter(torch.randn(experts, config.width, config.hidden) / config.hidden**0.5)
        self.outer_bias = nn.Parameter(torch.zeros(experts, config.width))
        self.gate = nn.Linear(sum(sizes), experts) if experts > 1 else None
        self.own = None
        if apart:  # zeros in the columns of other tables, where no gradient reaches
            own_KF = np.repeat(np.eye(len(sizes)), sizes, axis=1)
            self.inner.data *= torch.from_numpy(own_KF[:, None]).float()
            self.own = [slice(stop - size, stop) for size, stop in zip(sizes, np.cumsum(sizes), strict=True)]

    def forward(self, rows_N: torch.Tensor, extra_ND: torch.Tensor | None = None) -> torch.Tensor:
        """[N, D]."""
        x_NF = torch.where(self.there_EF[rows_N], self.values_EF[rows_N], self.missing)
        hidden_KNH = self._hidden(x_NF) + self.inner_bias[:, None]
        if extra_ND is not None:
            hidden_KNH = hidden_KNH + extra_ND @ self.extra.T
        hidden_KNH = F.leaky_relu(hidden_KNH, SLOPE)
        out_KND = torch.einsum("knh,kdh->knd", hidden_KNH, self.outer) + self.outer_bias[:, None]
        if self.gate is None:
            out_ND = out_KND[0]
        else:
            out_ND = torch.einsum("nk,knd->nd", torch.softmax(self.gate(x_NF), 1), out_KND)
        return F.normalize(out_ND, dim=1) if self.unit_length else out_ND

    def _hidden(self, x_NF: torch.Tensor) -> torch.Tensor:
        """[K, N, H]."""
        if self.own is None:
            return torch.einsum("nf,khf->knh", x_NF, self.inner)
        parts = zip(self.own, self.inner, strict=True)
        return torch.stack([x_NF[:, columns] @ inner_HF[:, columns].T for columns, inner_HF in parts])

    def learnt(self, after_DD: np.ndarray | None = None) -> LayeredItems:
        """As it stands now, for rows as tables have them, without anything extra. after_DD: a map that follows."""
        maps, start = {}, 0
        for name, whitening in self.whitenings.items():
            stop = start + whitening.map_FK.shape[1]
            missing_K = self.missing.detach().cpu().numpy()[start:stop].copy()
            maps[name], start = TableMap(whitening.mean_F, whitening.map_FK, missing_K), stop
        weights = {
            "inner.weight": self.inner,
            "inner.bias": self.inner_bias,
            "outer.weight": self.outer,
            "outer.bias": self.outer_bias,
        }
        if self.gate is not None:
            weights |= {"gate.weight": self.gate.weight, "gate.bias": self.gate.bias}
        found = {name: value.detach().cpu().numpy().copy() for name, value in weights.items()}
        if after_DD is not None:
            found["outer.weight"] = np.einsum("kdh,de->keh", found["outer.weight"], after_DD)
            found["outer.bias"] = found["outer.bias"] @ after_DD
        return LayeredItems(maps, found | {"unit": np.array([self.unit_length], np.float32)})


class ContentModule(nn.Module):
    """What the modules of specialists have. `vectors()` gives users [U, D] and items [I, D] with what training saw of
    them; `encoding()` makes the vectors of items that it never saw."""

    def __init__(self, config: ContentConfig, ctx: FitContext):
        super().__init__()
        self.config, counts_I = config, ctx.train.item_counts()
        self.known_U, self.known_I = np.diff(ctx.train.indptr_U1) > 0, counts_I > 0
        self.register_buffer("draw_I", torch.from_numpy(self.known_I).float(), persistent=False)

    def drawn(self, count: int) -> torch.Tensor:
        """Items of the training rows, evenly."""
        return torch.multinomial(self.draw_I, count, replacement=True)

    def vectors(self) -> tuple[torch.Tensor, torch.Tensor]:
        raise NotImplementedError

    def encoding(self) -> LayeredItems:
        raise NotImplementedError

    def asked_cold(self) -> np.ndarray:
        """[U] users without a training row whose vector says something all the same."""
        return np.zeros(len(self.known_U), bool)


class ContentModel(VectorModel[ConfigT], PairBatches[ConfigT]):
    """A known user asks with its own vector, any other with the mean vector of its history's items, one without a
    history with that of its attributes or with the mean of all users. Items that training never saw have a vector of
    their content."""

    Config = ContentConfig
    Module: type[ContentModule]
    scores_cold_items = True

    @property
    def widths(self) -> tuple[int, ...]:
        return (self.config.width,)

    def setup(self, ctx: FitContext) -> None:
        for name in self.config.tables:
            if ("user", name) not in ctx.tables:
                ctx.item_table(name)  # says which tables there are
        self.module = self.Module(self.config, ctx)
        cold_I = ~self.module.known_I
        self.cold_rows = {name: ctx.item_table(name).take(cold_I) for name in self.module.encoding().tables}
        self.take_pairs(ctx)

    @torch.inference_mode()
    def learnt(self) -> Vectors:
        module = self.module.eval()
        users_UD, items_ID = (value.cpu().numpy().copy() for value in module.vectors())
        self.made = module.encoding()
        if not module.known_I.all():  # a tower's rounding differs from that of the same in NumPy
            items_ID[~module.known_I] = self.made.vectors(self.cold_rows)
        profile = self.profile(users_UD, items_ID)
        return Vectors(profile, items_ID, np.zeros(len(items_ID), np.float32))

    def profile(self, users_UD: np.ndarray, items_ID: np.ndarray) -> Profile:
        known_U, cold_U = self.module.known_U, self.module.asked_cold()
        mean_D = users_UD[known_U].mean(axis=0) if known_U.any() else np.zeros_like(items_ID[0])
        return Profile(items_ID, mean_D, users_UD, known_U, cold_U=cold_U if cold_U.any() else None)

    @property
    def encoding(self) -> LayeredItems:
        self.vectors  # noqa: B018 - makes it of the weights as they are
        return self.made

    def encode_items(self, feature_rows: Mapping[str, Dense]) -> np.ndarray:
        """[N, D] vectors of items from their content."""
        return self.encoding.vectors(feature_rows)

    def state(self) -> dict[str, np.ndarray]:
        names: Sequence[str] = self.encoding.tables
        found = {_ENCODING + name: value for name, value in self.encoding.arrays().items()}
        order = np.array([self.config.tables.index(name) for name in names])
        return super().state() | found | {"tables": order}

    @classmethod
    def from_state(cls, config: ConfigT, state: Mapping[str, np.ndarray]) -> Self:
        model = super().from_state(config, state)
        names = [config.tables[place] for place in state["tables"].tolist()]
        model.made = LayeredItems.of({"tables": names}, below(state, _ENCODING))
        return model

    def serving_form(self) -> Form:
        return replace(super().serving_form(), encoding=self.encoding)

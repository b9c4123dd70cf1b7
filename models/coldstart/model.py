"""A cold-start model: fields weighed and fused, contrastive pairs, ids where there are any and content where not.

Inspired by Hu et al., "Contrastive Learning for Cold Start Recommendation with Adaptive Feature Fusion"
(arXiv 2502.03664). Its abstract names adaptive feature selection, fusion of user attributes, item metadata and context,
and a contrastive loss; form of the gates, encoders, pairs, temperature and weights are unspecified there, and all of
them are ours. Pairs of an id vector and content follow CLCRec (Wei et al., MM 2021), whole hidden ids DropoutNet
(Volkovs et al., NeurIPS 2017).
"""

from collections.abc import Iterator, Mapping
from typing import Any, Self

import numpy as np
import torch

from recsys.fields import as_vectors
from recsys.fusion import Fused, Fusion, GatedItems, below, names_of, with_bias
from recsys.models.base import FitContext, LoopedModel
from recsys.models.batching import batches_of_rows, steps
from recsys.models.coldstart.config import ColdStartConfig
from recsys.models.coldstart.module import ColdStartModule, Side
from recsys.models.vectors import VectorModel, Vectors
from recsys.schema import Dense, Form, Queries, Ragged
from recsys.tower import QueryTower

_ENCODING, _WEIGHTS = "items.", "weights."


class ColdStart(VectorModel[ColdStartConfig], LoopedModel[ColdStartConfig]):
    """score = query vector . item vector; see `recsys.fusion` for how either comes about.

    An item without a training row has its content alone, a user without one its attributes and its history; a query
    may bring attributes of its own (`Queries.user_fields`: table -> rows).
    """

    Config = ColdStartConfig
    uses_user_fields = True

    @property
    def widths(self) -> tuple[int, ...]:
        """Of all of a vector: the network's values, those of the closed-form half, and the bias."""
        linear = self.config.linear
        return (self.config.width + (0 if linear is None else linear.width),)

    @property
    def scores_cold_items(self) -> bool:
        return bool(self.config.tables)

    @property
    def uses_context(self) -> bool:
        return self.config.context

    def setup(self, ctx: FitContext) -> None:
        for name in self.config.tables:
            if ("user", name) not in ctx.tables:
                ctx.item_table(name)  # says which tables there are
        self.module = ColdStartModule(self.config, ctx)
        self.user_rows = {
            name: as_vectors(ctx.tables["user", name])
            for name in self.config.tables
            if ("user", name) in ctx.tables
        }
        self.item_rows = {
            name: ctx.item_table(name) for name in self.config.tables if ("item", name) in ctx.tables
        }
        self.seed, self.log = ctx.seed, ctx.train
        self.active = np.flatnonzero(np.diff(ctx.train.indptr_U1))

    def steps_per_epoch(self, world: int = 1) -> int:
        return steps(len(self.active), self.config.batch_size, world)

    def batches(self, epoch: int, rank: int = 0, world: int = 1) -> Iterator[dict[str, torch.Tensor]]:
        sequences, size = self.log.sequences, self.config.batch_size
        for _, taken in batches_of_rows(len(self.active), size, self.seed, epoch, rank, world):
            users = self.active[taken]
            row_P, item_P = sequences.take(users).flat()
            _, time_P = Ragged(self.log.time_N, sequences.starts, sequences.ends).take(users).flat()
            found = {"user_B": users, "row_P": row_P, "item_P": item_P, "time_P": time_P}
            yield {name: torch.from_numpy(value) for name, value in found.items()}

    @torch.inference_mode()
    def learnt(self) -> Vectors:
        module = self.module.eval()
        items, users = module.items, module.users
        bias_D, cold = module.bias.cpu().numpy(), module.cold.cpu().numpy()
        linear = module.linear
        encoding = GatedItems(
            _fusion(items), items.fields.learnt(), bias_D.copy(), cold.copy(), linear and linear.maps
        )
        items_ID, weights = self._items(encoding, items, module.own_bias.cpu().numpy())
        self.beside = encoding, weights
        context = {
            name: getattr(module, name).cpu().numpy().copy()
            for name in ("hour", "weekday")
            if self.config.context
        }
        tower = QueryTower(
            items_ID,
            _fusion(users),
            users.fields.learnt(),
            users.ids.cpu().numpy().copy(),
            users.strength_E.cpu().numpy(),
            module.history.cpu().numpy().copy(),
            np.array([module.decay], np.float32),
            self.user_rows,
            context,
            self.config.linear and np.array([self.config.linear.weight], np.float32),
        )
        return Vectors(tower, items_ID, np.zeros(len(items_ID), np.float32))

    def _items(self, encoding: GatedItems, side: Side, own_bias_I: np.ndarray) -> tuple[np.ndarray, Fused]:
        """([I, D] of the catalogue, ids included where they were learnt; their weights)."""
        strength_I = side.strength_E.cpu().numpy()
        vectors_NFD, strength_NF = encoding.fields(self.item_rows, len(strength_I))
        ids_I1D = side.ids.cpu().numpy().astype(np.float64)[:, None]
        found = encoding.fusion(
            np.concatenate([ids_I1D, vectors_NFD.reshape(len(ids_I1D), -1, ids_I1D.shape[2])], axis=1),
            np.concatenate([strength_I[:, None], strength_NF], axis=1),
        )
        own_I = np.where(strength_I > 0, own_bias_I, encoding.cold[0])
        bias_I = found.vectors_ND @ encoding.bias_D + own_I
        linear = self.module.linear
        parts = [found.vectors_ND] if linear is None else [found.vectors_ND, linear.items_IL]
        return with_bias(np.concatenate(parts, axis=1), bias_I), found

    def gates(
        self, *, items: Mapping[str, Dense] | np.ndarray | None = None, queries: Queries | None = None
    ) -> dict[str, float]:
        """Mean weight of every field (`field.NAME`) and group (`group.NAME`): of items, as catalogue rows (None = all)
        or as content rows of new ones, or of the users who ask.

        Over those that have any field; one that lacks a field gives it no weight.
        """
        tower, encoding = self.vectors.profile, self.encoding
        if queries is not None:
            last = ["hour", "weekday"] if tower.context else []
            fields, groups = names_of(["id", "history"], tower.fields, last)
            found = tower.fused(queries)
        else:
            fields, groups = names_of(["id"], encoding.fields, [])
            if isinstance(items, Mapping):
                found = encoding.fused(items)
            else:
                rows = slice(None) if items is None else items
                found = Fused(*(value[rows] for value in self.item_weights))
        some_N = found.selection_NF.any(axis=1)
        weights: dict[str, float] = {}
        for kind, names, values in (
            ("field", fields, found.selection_NF),
            ("group", groups, found.fusion_NG),
        ):
            means = values[some_N].mean(axis=0) if some_N.any() else np.zeros(len(names))
            weights |= {f"{kind}.{name}": float(mean) for name, mean in zip(names, means, strict=True)}
        return weights

    @property
    def encoding(self) -> GatedItems:
        return self._made_with(0)

    @property
    def item_weights(self) -> Fused:
        """Weights of the catalogue's items, ids among them."""
        return self._made_with(1)

    def _made_with(self, place: int) -> Any:
        self.vectors  # noqa: B018 - makes both of the weights as they are
        return self.beside[place]

    def encode_items(self, feature_rows: Mapping[str, Dense]) -> np.ndarray:
        """[N, D] vectors of items from their content."""
        return self.encoding.vectors(feature_rows)

    def state(self) -> dict[str, np.ndarray]:
        found = {_ENCODING + name: value for name, value in self.encoding.arrays().items()}
        weights = {"selection": self.item_weights.selection_NF, "fusion": self.item_weights.fusion_NG}
        found |= {_WEIGHTS + name: value.astype(np.float32) for name, value in weights.items()}
        return super().state() | found

    @classmethod
    def from_state(cls, config: ColdStartConfig, state: Mapping[str, np.ndarray]) -> Self:
        model = cls(config)
        tower = QueryTower.from_arrays(state, state["items"])
        model.loaded = Vectors(tower, state["items"], state["bias"])
        weights = Fused(state["items"], state[_WEIGHTS + "selection"], state[_WEIGHTS + "fusion"])
        model.beside = GatedItems.of({}, below(state, _ENCODING)), weights
        return model

    def serving_form(self) -> Form:
        tower, items_ID, bias_I = self.vectors
        encoding = self.encoding if self.scores_cold_items else None
        return Form("tower", tower.arrays(), {}, items_ID, bias_I, self.widths, encoding)


def _fusion(side: Side) -> Fusion:
    group_F = side.fusion.member_GF.int().argmax(0).cpu().numpy()
    return Fusion(group_F, side.fusion.arrays())

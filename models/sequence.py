"""Next-item ranking from a history: what all sequence models share. They differ in their defaults alone."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import torch
from pydantic import Field, field_validator, model_validator
from torch import nn

from recsys.errors import ModelError
from recsys.features.whitening import Whitening
from recsys.models.base import FitContext, LoopedModel
from recsys.models.items import Features, ItemEncoder, ItemsConfig
from recsys.models.losses import Repeats, Scores, Widths, nested_softmax
from recsys.models.packing import pack, windows
from recsys.models.sampled import gbce, mixed_sample, sampled_softmax
from recsys.models.trunk import Trunk
from recsys.schema import Dense, Form, Queries, Ragged, legal_width
from recsys.scoring import RECENCY_BUCKETS, dot_scores, past_of_positions

_REPEAT_LR = 30.0
"""Learning rate of the repeat bias against the rest: a handful of logits that have far to go."""


class SequenceConfig(ItemsConfig):
    """Settings of a sequence model."""

    batch_size: Annotated[int, Field(ge=1)] = 32
    """Rows (windows) a step."""
    loss: Literal["full", "sampled", "in_batch", "gbce"] = "full"
    """Softmax over the whole catalogue, over the labels of the step and drawn items, over the labels alone; or the
    binary cross-entropy of gSASRec over drawn items."""
    negatives: Annotated[int, Field(ge=1)] = 1024
    """sampled, gbce: items drawn a step, the same for all its positions."""
    negative_power: Annotated[float, Field(ge=0)] = 0.0
    """sampled, gbce: items are drawn in proportion to (training count)^power; 0 = uniformly."""
    log_q: bool = True
    """sampled, in_batch: correct for how likely each item was to be there."""
    gbce_t: Annotated[float, Field(ge=0, le=1)] = 0.75
    """gbce: calibration; 0 = plain binary cross-entropy, 1 = probabilities as of the full softmax."""
    width_weights: Literal["uniform", "inverse_sqrt", "inverse"] = "uniform"
    """Weight of each width in the loss: equal, or proportional to 1/sqrt(width), or to 1/width."""
    distil: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of a narrow width's target that is the full width's softmax in place of the label."""
    width_temperature: bool = False
    """A learnt scale of the logits at each width."""
    repeat_bias: bool = False
    """A learnt value, by how long ago, on the scores of items that stand in the history."""

    @field_validator("widths")
    @classmethod
    def _ascending(cls, widths):
        if not widths or widths[0] < 2 or any(b <= a for a, b in itertools.pairwise(widths)):
            raise ValueError("ascending widths from 2 on")
        return widths

    @model_validator(mode="after")
    def _fits(self):
        if self.trunk != "lru" and len(self.widths) > 1:
            raise ValueError(f"trunk {self.trunk!r} is not nested: give one width")
        if self.trunk == "attention" and self.widths[-1] % self.heads:
            raise ValueError(f"{self.heads} heads do not divide the width {self.widths[-1]}")
        if self.distil and self.loss == "gbce":
            raise ValueError("distil needs a softmax: choose another loss than gbce")
        if not self.tables and not self.id_vectors:
            raise ValueError("neither tables nor id_vectors: nothing tells items apart")
        return self


ConfigT = TypeVar("ConfigT", bound=SequenceConfig)


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


class SequenceModel(LoopedModel[ConfigT]):
    """A history, item by item, through a trunk; its last value scores what comes next."""

    Config = SequenceConfig

    @property
    def scores_cold_items(self) -> bool:
        return bool(self.config.tables)

    @property
    def widths(self) -> tuple[int, ...]:
        return self.config.widths

    def setup(self, ctx: FitContext) -> None:
        counts_I = ctx.train.item_counts()
        tables = {name: ctx.item_table(name) for name in self.config.tables}
        self.whitenings = {
            name: Whitening.fit(table, counts_I > 0, self.config.whiten) for name, table in tables.items()
        }
        self.module = SequenceModule(self.config, self._whitened(tables), counts_I)
        self.seed, self.rows = ctx.seed, windows(ctx.train.sequences, self.config.window)

    def _whitened(self, tables: Mapping[str, Dense]) -> Features:
        return {
            name: (whitening(tables[name].values_EF, tables[name].present_E), tables[name].present_E.copy())
            for name, whitening in self.whitenings.items()
        }

    def param_groups(self) -> list[dict[str, Any]]:
        groups = super().param_groups()
        repeat = self.module.repeat
        if repeat is None:
            return groups
        for group in groups:
            group["params"] = [value for value in group["params"] if value is not repeat]
        return [*groups, {"params": [repeat], "weight_decay": 0.0, "lr_scale": _REPEAT_LR}]

    def steps_per_epoch(self, world: int = 1) -> int:
        return -(-len(self.rows) // (self.config.batch_size * world))

    def batches(self, epoch: int, rank: int = 0, world: int = 1) -> Iterator[dict[str, torch.Tensor]]:
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.rows))
        if world > 1:  # the last rows are filled up from the front, so that every rank takes as many steps
            order = np.resize(order, self.steps_per_epoch(world) * world * self.config.batch_size)
        size = self.config.batch_size * world
        for start in range(0, len(order), size):
            rows = self.rows.take(order[start : start + size][rank::world])
            yield training_batch(rows, past=self.config.repeat_bias)

    @torch.inference_mode()
    def item_table(self) -> tuple[np.ndarray, np.ndarray]:
        """Item vectors [I, D] and biases [I] as they stand now (zero where the model has no bias)."""
        self.module.eval()
        items = self.module.items
        return items().cpu().numpy(), items.bias().cpu().numpy()

    def item_vectors(self, width: int | None = None) -> np.ndarray:
        return self.item_table()[0][:, : legal_width(width, self.widths)]

    @torch.inference_mode()
    def query_vectors(self, queries: Queries, width: int | None = None) -> np.ndarray:
        """[Q, width]: the trunk's last value of [start, history]."""
        self.module.eval()
        history = queries.history
        if self.config.trunk == "attention":
            history = history.tail(self.config.window - 1)
        packed = pack(history)
        tokens_P = np.concatenate([np.full(len(queries), -1), packed.items_P])
        counts = [len(queries), *packed.counts_T.tolist()]
        u_PD = self.module.trunk(self.module.items(), self._tensor(tokens_P), counts).cpu().numpy()
        last_B = np.where(packed.last_B < 0, np.arange(len(queries)), len(queries) + packed.last_B)
        vectors_QD = np.empty((len(queries), u_PD.shape[1]), np.float32)
        vectors_QD[packed.order_B] = u_PD[last_B]
        return vectors_QD[:, : legal_width(width, self.widths)]

    def scale(self, width: int | None = None) -> float:
        """What the dot product is multiplied by at this width; 1 without `width_temperature`."""
        return self.module.scales()[self.widths.index(legal_width(width, self.widths))].item()

    def score(
        self, queries: Queries, candidates: np.ndarray | None = None, width: int | None = None
    ) -> np.ndarray:
        width = legal_width(width, self.widths)
        vectors_ID, bias_I = self.item_table()
        repeat = self.module.repeat
        return dot_scores(
            self.query_vectors(queries, width),
            vectors_ID[:, :width],
            bias_I,
            candidates,
            scale=self.scale(width),
            history=queries.history,
            repeat=None if repeat is None else repeat.detach().cpu().numpy(),
        )

    @torch.inference_mode()
    def encode_items(self, feature_rows: Mapping[str, Dense]) -> np.ndarray:
        """[N, D] vectors of unseen items from their content; each row depends on its own content alone.

        Raises ModelError where the model has ids alone.
        """
        if not self.config.tables:
            raise ModelError("this model has no feature tables", fix="fit it with tables = [...]")
        self.module.eval()
        rows = self._whitened({name: feature_rows[name] for name in self.config.tables})
        tensors = {name: tuple(map(self._tensor, pair)) for name, pair in rows.items()}
        return self.module.items.content(tensors).cpu().numpy()

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self.module.trunk.start.device)

    def state(self) -> dict[str, np.ndarray]:
        arrays = {f"module.{name}": value.cpu().numpy() for name, value in self.module.state_dict().items()}
        for name, whitening in self.whitenings.items():
            arrays |= {f"whitening.{name}.mean": whitening.mean_F, f"whitening.{name}.map": whitening.map_FK}
        return arrays

    @classmethod
    def from_state(cls, config: ConfigT, state: Mapping[str, np.ndarray]) -> "SequenceModel":
        model = cls(config)
        model.whitenings = {
            name: Whitening(state[f"whitening.{name}.mean"], state[f"whitening.{name}.map"])
            for name in config.tables
        }
        weights = {
            name.removeprefix("module."): torch.from_numpy(np.array(value))
            for name, value in state.items()
            if name.startswith("module.")
        }
        features = {
            name: (
                state[f"module.items.whitened_{name}"].copy(),
                state[f"module.items.present_{name}"].copy(),
            )
            for name in config.tables
        }
        model.module = SequenceModule(config, features, state["module.items.trained_I"])
        model.module.load_state_dict(weights)
        return model

    @torch.inference_mode()
    def serving_form(self) -> Form:
        module, config = self.module, self.config
        module.eval()
        arrays = module.trunk.arrays() | {"scales": module.scales()}
        if module.repeat is not None:
            arrays["repeat"] = module.repeat
        meta = {
            "blocks": config.blocks,
            "ffn_multiple": config.ffn_multiple,
            "norm": config.norm,
            "eps": module.trunk.blocks[0].norm1.eps,
            "window": config.window if config.trunk == "attention" else None,
        }
        vectors_ID, bias_I = self.item_table()
        numpy_arrays = {name: np.ascontiguousarray(value.cpu().numpy()) for name, value in arrays.items()}
        return Form(config.trunk, numpy_arrays, meta, vectors_ID, bias_I, config.widths)

"""fMRLRec: a Matryoshka linear-recurrent sequence model over content and ids.

After Wang et al., "Train Once, Deploy Anywhere" (EMNLP 2024 Findings, arXiv 2409.16627). Departures:
a residual id vector with id dropout (the paper has content only), a LayerNorm on the item vectors
that enter the trunk, post-norm, whitened features, a learnt start vector in place of padding, a
learnt vector for a missing modality, and an optional item bias.
"""

import itertools
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import nn

from recsys.config import Config
from recsys.errors import ModelError
from recsys.features.whitening import Whitening
from recsys.models.base import FitContext, LoopedModel
from recsys.models.layers import BlockNorm, NestedBlock
from recsys.models.losses import nested_cross_entropy
from recsys.models.packing import pack, windows
from recsys.schema import Dense, Form, Queries, Ragged, legal_width, pick

Share = Annotated[float, Field(ge=0, lt=1)]
Features = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""name -> (whitened rows [N, K], presence mask [N])."""


class FMRLRecConfig(Config):
    """Settings of fMRLRec."""

    tables: tuple[str, ...] = ()
    """Item feature tables that enter the item vectors; none = ids alone."""
    widths: tuple[int, ...] = (16, 32, 64, 128)
    """Nested widths, ascending; the last is the full one."""
    blocks: Annotated[int, Field(ge=1)] = 2
    """Blocks of LRU and feed-forward."""
    ffn_multiple: Annotated[int, Field(ge=1)] = 1
    """Hidden units of the feed-forward, as a multiple of the width."""
    dropout: Share = 0.2
    """Dropout in the trunk and on its input."""
    id_vectors: bool = True
    """Add a learnt vector per item; off = content only."""
    id_dropout: Share = 0.1
    """Share of items whose id vector is zero in a training step, so that content alone learns to score."""
    item_bias: bool = True
    """A learnt popularity bias per item, in every width's scores; zero for items never trained on."""
    whiten: Annotated[int, Field(ge=1)] = 256
    """Most whitened dimensions kept of each table."""
    radius: tuple[float, float] = (0.3, 0.9)
    """Ring of the initial |lambda|: how much of the past a state starts out keeping."""
    window: Annotated[int, Field(ge=2)] = 100
    """Longest stretch of a history in one training row; scoring reads histories whole."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Rows (windows) a step."""
    width_weights: Literal["uniform", "inverse_sqrt"] = "uniform"
    """Weight of each width in the loss: equal, or proportional to 1/sqrt(width)."""

    @field_validator("widths")
    @classmethod
    def _ascending(cls, widths):
        if not widths or widths[0] < 2 or any(b <= a for a, b in itertools.pairwise(widths)):
            raise ValueError("ascending widths from 2 on")
        return widths


class ItemEncoder(nn.Module):
    """Item vectors as the sum of one projection per modality (or its missing vector) and an id vector."""

    def __init__(self, config: FMRLRecConfig, features: Features, trained_I: np.ndarray):
        super().__init__()
        width = config.widths[-1]
        self.id_dropout = config.id_dropout
        for name, (whitened_IK, present_I) in features.items():
            self.register_buffer(f"whitened_{name}", torch.from_numpy(whitened_IK))
            self.register_buffer(f"present_{name}", torch.from_numpy(present_I))
        self.projections = nn.ModuleDict(
            {name: nn.Linear(rows.shape[1], width, bias=False) for name, (rows, _) in features.items()}
        )
        self.missing = nn.ParameterDict({name: nn.Parameter(torch.zeros(width)) for name in features})
        for projection in self.projections.values():
            nn.init.normal_(projection.weight, std=0.1 / projection.in_features**0.5)
        self.register_buffer("trained_I", torch.from_numpy(trained_I.astype(np.float32)))
        self.ids = nn.Embedding(len(trained_I), width) if config.id_vectors else None
        if self.ids is not None:
            nn.init.normal_(self.ids.weight, std=0.02)

    def content(self, features: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor | float:
        """[N, D] from whitened rows and presence masks; 0 where the model has no tables."""
        total: torch.Tensor | float = 0.0
        for name, projection in self.projections.items():
            whitened_NK, present_N = features[name]
            total = total + torch.where(present_N[:, None], projection(whitened_NK), self.missing[name])
        return total

    def forward(self) -> torch.Tensor:
        """[I, D] vectors of the catalogue; an item never trained on has no id vector."""
        own = {
            name: (self.get_buffer(f"whitened_{name}"), self.get_buffer(f"present_{name}"))
            for name in self.missing
        }
        items_ID = self.content(own)
        if self.ids is not None:
            keep_I = self.trained_I
            if self.training and self.id_dropout:
                keep_I = keep_I * (torch.rand_like(keep_I) >= self.id_dropout)
            items_ID = items_ID + keep_I[:, None] * self.ids.weight
        return items_ID


class Trunk(nn.Module):
    """Start vector, input norm and blocks over packed tokens."""

    def __init__(self, config: FMRLRecConfig):
        super().__init__()
        self.start = nn.Parameter(torch.randn(config.widths[-1]) * 0.02)
        self.in_norm = BlockNorm(config.widths)
        self.dropout = nn.Dropout(config.dropout)
        arguments = (config.widths, config.ffn_multiple, config.dropout, *config.radius)
        self.blocks = nn.ModuleList([NestedBlock(*arguments) for _ in range(config.blocks)])

    def forward(self, items_ID: torch.Tensor, tokens_P: torch.Tensor, counts: list[int]) -> torch.Tensor:
        """tokens_P: item of every token, -1 = start. Returns [P, D]."""
        x_PD = torch.where(tokens_P[:, None] < 0, self.start, items_ID[tokens_P.clamp_min(0)])
        u_PD = self.dropout(self.in_norm(x_PD))
        for block in self.blocks:
            u_PD = block(u_PD, counts)
        return u_PD


class FMRLRecModule(nn.Module):
    """Items, trunk and loss; `forward` is the loss of a batch."""

    def __init__(self, config: FMRLRecConfig, features: Features, trained_I: np.ndarray):
        super().__init__()
        self.widths = config.widths
        self.items = ItemEncoder(config, features, trained_I)
        self.trunk = Trunk(config)
        self.bias = nn.Parameter(torch.zeros(len(trained_I))) if config.item_bias else None
        power = {"uniform": 0.0, "inverse_sqrt": -0.5}[config.width_weights]
        weights = torch.tensor(config.widths, dtype=torch.float32) ** power
        self.register_buffer("weights", weights / weights.sum(), persistent=False)

    def item_bias(self) -> torch.Tensor | None:
        return None if self.bias is None else self.bias * self.items.trained_I

    def forward(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        items_ID = self.items()
        queries_PD = self.trunk(items_ID, batch["tokens_P"], batch["counts_T"].tolist())
        return nested_cross_entropy(
            queries_PD, items_ID, self.item_bias(), batch["labels_P"], self.widths, self.weights
        )


def training_batch(sequences: Ragged) -> dict[str, torch.Tensor]:
    """Tokens [start, i1, ..., i(n-1)] and labels [i1, ..., in] of every row, packed: all positions count."""
    packed = pack(sequences)
    tokens_P = np.full(len(packed.items_P), -1, np.int64)
    offsets_T = np.cumsum(packed.counts_T) - packed.counts_T
    for step in range(1, len(offsets_T)):
        before, here, rows = offsets_T[step - 1], offsets_T[step], packed.counts_T[step]
        tokens_P[here : here + rows] = packed.items_P[before : before + rows]
    arrays = {"tokens_P": tokens_P, "labels_P": packed.items_P, "counts_T": packed.counts_T}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


class FMRLRec(LoopedModel[FMRLRecConfig]):
    """Next-item ranking from the whole history; every nested width is a model of its own."""

    Config = FMRLRecConfig

    @property
    def scores_cold_items(self) -> bool:
        return bool(self.config.tables)

    @property
    def widths(self) -> tuple[int, ...]:
        return self.config.widths

    def setup(self, ctx: FitContext) -> None:
        trained_I = ctx.train.item_counts() > 0
        tables = {name: ctx.item_table(name) for name in self.config.tables}
        self.whitenings = {
            name: Whitening.fit(table, trained_I, self.config.whiten) for name, table in tables.items()
        }
        self.module = FMRLRecModule(self.config, self._whitened(tables), trained_I)
        self.seed, self.rows = ctx.seed, windows(ctx.train.sequences, self.config.window)

    def _whitened(self, tables: Mapping[str, Dense]) -> Features:
        return {
            name: (whitening(tables[name].values_EF, tables[name].present_E), tables[name].present_E.copy())
            for name, whitening in self.whitenings.items()
        }

    def steps_per_epoch(self, world: int = 1) -> int:
        return -(-len(self.rows) // (self.config.batch_size * world))

    def batches(self, epoch: int, rank: int = 0, world: int = 1) -> Iterator[dict[str, torch.Tensor]]:
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.rows))
        if world > 1:  # the last rows are filled up from the front, so that every rank takes as many steps
            order = np.resize(order, self.steps_per_epoch(world) * world * self.config.batch_size)
        size = self.config.batch_size * world
        for start in range(0, len(order), size):
            yield training_batch(self.rows.take(order[start : start + size][rank::world]))

    @torch.inference_mode()
    def item_table(self) -> tuple[np.ndarray, np.ndarray]:
        """Item vectors [I, D] and biases [I] as they stand now (zero where the model has no bias)."""
        self.module.eval()
        vectors_ID = self.module.items().cpu().numpy()
        bias = self.module.item_bias()
        return vectors_ID, np.zeros(len(vectors_ID), np.float32) if bias is None else bias.cpu().numpy()

    def item_vectors(self, width: int | None = None) -> np.ndarray:
        return self.item_table()[0][:, : legal_width(width, self.widths)]

    @torch.inference_mode()
    def query_vectors(self, queries: Queries, width: int | None = None) -> np.ndarray:
        """[Q, width]: the trunk's last state of [start, history]."""
        self.module.eval()
        packed = pack(queries.history)
        tokens_P = np.concatenate([np.full(len(queries), -1), packed.items_P])
        counts = [len(queries), *packed.counts_T.tolist()]
        u_PD = self.module.trunk(self.module.items(), self._tensor(tokens_P), counts).cpu().numpy()
        last_B = np.where(packed.last_B < 0, np.arange(len(queries)), len(queries) + packed.last_B)
        vectors_QD = np.empty((len(queries), u_PD.shape[1]), np.float32)
        vectors_QD[packed.order_B] = u_PD[last_B]
        return vectors_QD[:, : legal_width(width, self.widths)]

    def score(
        self, queries: Queries, candidates: np.ndarray | None = None, width: int | None = None
    ) -> np.ndarray:
        width = legal_width(width, self.widths)
        vectors_ID, bias_I = self.item_table()
        scores_QI = self.query_vectors(queries, width) @ vectors_ID[:, :width].T + bias_I
        return pick(scores_QI, candidates)

    @torch.inference_mode()
    def encode_items(self, feature_rows: Mapping[str, Dense]) -> np.ndarray:
        """[N, D] vectors of unseen items from their content; each row depends on its own content alone.

        Raises ModelError where the model has ids alone.
        """
        if not self.config.tables:
            raise ModelError(
                "this fMRLRec has no feature tables", fix="fit it with models.fmrlrec.tables = [...]"
            )
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
    def from_state(cls, config: FMRLRecConfig, state: Mapping[str, np.ndarray]) -> "FMRLRec":
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
        model.module = FMRLRecModule(config, features, state["module.items.trained_I"] > 0)
        model.module.load_state_dict(weights)
        return model

    @torch.inference_mode()
    def serving_form(self) -> Form:
        trunk = self.module.trunk
        arrays = {"start": trunk.start, "in.weight": trunk.in_norm.weight, "in.bias": trunk.in_norm.bias}
        for number, block in enumerate(trunk.blocks):
            lru, gamma_D = block.lru, torch.exp(block.lru.gamma_log)
            lambda_re, lambda_im = lru.transition()
            arrays |= {
                f"{number}.{name}": value
                for name, value in {
                    "lambda_re": lambda_re,
                    "lambda_im": lambda_im,
                    "B_re": gamma_D[:, None] * lru.in_re.masked_weight(),
                    "B_im": gamma_D[:, None] * lru.in_im.masked_weight(),
                    "b_re": gamma_D * lru.in_re.bias,
                    "b_im": gamma_D * lru.in_im.bias,
                    "C_re": lru.out_re.masked_weight(),
                    "C_im": lru.out_im.masked_weight(),
                    "c": lru.out_re.bias,
                    "norm1.weight": block.norm1.weight,
                    "norm1.bias": block.norm1.bias,
                    "norm2.weight": block.norm2.weight,
                    "norm2.bias": block.norm2.bias,
                    "gate": block.gate.masked_weight(),
                    "gate_bias": block.gate.bias,
                    "up": block.up.masked_weight(),
                    "up_bias": block.up.bias,
                    "down": block.down.masked_weight(),
                    "down_bias": block.down.bias,
                }.items()
            }
        vectors_ID, bias_I = self.item_table()
        meta = {
            "blocks": self.config.blocks,
            "ffn_multiple": self.config.ffn_multiple,
            "eps": trunk.in_norm.eps,
        }
        numpy_arrays = {name: np.ascontiguousarray(value.cpu().numpy()) for name, value in arrays.items()}
        return Form("lru", numpy_arrays, meta, vectors_ID, bias_I, self.config.widths)

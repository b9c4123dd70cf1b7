"""The neighbour encoder as an item embedder: which items go together, learnt from pairs of items.

After Yoon et al., "Multimodal Graph Learning for Generative Tasks" (arXiv 2310.07478), with the contrastive loss of the
other embedders in place of generation. An item reads its own content, the known items that resemble it, and what those
go with; it is no neighbour of its own, and what it is paired with enters only where a look-alike has that pair too, so
that an unseen item is read as the learnt ones were.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
import scipy.sparse as sp
import torch
from pydantic import Field, model_validator
from torch import nn

from recsys.features.whitening import Whitening
from recsys.item_graph import ITEM, Relation
from recsys.models.embedders.config import PairLossConfig
from recsys.models.embedders.contract import Embedder, ItemContent, PairContext, unit
from recsys.models.embedders.loss import PairLoss
from recsys.models.graph.encoder import Ego, EncoderConfig, NeighbourEncoder, Rows
from recsys.nearest import nearest

if TYPE_CHECKING:
    from recsys.models.notellm2.language import Open

ALIKE, TOGETHER = "alike", "together"
_SAME = 1 - 1e-6
"""A cosine from which on a row is the item's own, met among the known ones."""


class NeighbourEmbedderConfig(PairLossConfig, EncoderConfig):
    """The neighbour encoder over frozen features, learnt from pairs."""

    tables: Annotated[tuple[str, ...], Field(min_length=1)] = ("image", "text")
    """Feature tables, one modality each."""
    relations: tuple[Literal["alike", "together"], ...] = (ALIKE, TOGETHER)
    """Of every table. alike: the nearest known items. together: what the nearest known items are paired with. Empty =
    own content alone."""
    whiten: Annotated[int, Field(ge=1)] = 256
    """Most whitened dimensions kept of each table."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the encoder's output that is dropped in training."""
    modality_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of items whose row of a table is taken for missing in a training step, never all that an item has."""

    @model_validator(mode="after")
    def _fits(self):
        if len(set(self.tables)) != len(self.tables) or len(set(self.relations)) != len(self.relations):
            raise ValueError("each table and each relation once")
        if self.widths[-1] % self.heads:
            raise ValueError(f"heads = {self.heads} does not divide the width {self.widths[-1]}")
        if self.position in ("laplacian", "gnn") or self.encoder == "sa_hop":
            raise ValueError(
                "edges among neighbours are not kept here: position rank, hop or none; not sa_hop"
            )
        return self


class LinkModule(nn.Module):
    """Encoder and loss; `forward` is the loss of a batch of pairs. The known items are its memory."""

    def __init__(self, config: NeighbourEmbedderConfig, known: Mapping[str, tuple[np.ndarray, np.ndarray]]):
        super().__init__()
        self.config = config
        for name, (rows_NK, present_N) in known.items():
            self.register_buffer(f"rows_{name}", torch.from_numpy(rows_NK))
            self.register_buffer(f"present_{name}", torch.from_numpy(present_N))
        relations = len(config.relations) * len(known)
        widths = {name: rows_NK.shape[1] for name, (rows_NK, _) in known.items()}
        self.encoder = NeighbourEncoder(config, config.widths[-1], widths, relations, values=0)
        self.norm, self.dropout = nn.LayerNorm(config.widths[-1]), nn.Dropout(config.dropout)
        self.loss = PairLoss(config.widths, config.log_scale, config.false_negative_margin)

    def vectors(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """[R, D]."""
        tables = self.config.tables
        memory: Rows = {n: (self.get_buffer(f"rows_{n}"), self.get_buffer(f"present_{n}")) for n in tables}
        nobody = batch["nodes"].new_zeros(0)
        tokens = self.encoder.node_tokens(self.encoder.content(memory), nobody)
        rows: Rows = {name: (batch[f"rows_{name}"], batch[f"present_{name}"]) for name in tables}
        found_RD = self.encoder(rows, Ego(batch["nodes"], batch["weights"], None, None), tokens)
        return self.dropout(self.norm(found_RD))

    def forward(self, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        loss = self.loss(self.vectors(batch), int(batch["pairs"]), batch["allied"])
        return loss, {"joint": loss.item()}


class NeighbourEmbedder(Embedder[NeighbourEmbedderConfig]):
    """Vectors "joint" of content and neighbours. The known items are those that the training pairs name."""

    Config = NeighbourEmbedderConfig
    loop: ClassVar[Mapping[str, Any]] = {"epochs": 15, "lr": 1e-3, "weight_decay": 0.01, "schedule": "cosine"}

    @property
    def tables(self) -> tuple[str, ...]:
        return self.config.tables

    def setup(self, ctx: PairContext) -> None:
        super().setup(ctx)
        known = np.unique(ctx.pairs_P2)
        content = ctx.content.take(known)
        self.whitenings = {
            name: Whitening.fit(content.table(name), np.ones(len(known), bool), self.config.whiten)
            for name in self.config.tables
        }
        place_I = np.full(len(ctx.content), -1)
        place_I[known] = np.arange(len(known))
        both_E2 = np.concatenate([place_I[ctx.pairs_P2], place_I[ctx.pairs_P2][:, ::-1]])
        self.partners_E2 = np.unique(both_E2, axis=0)
        self._own = self._whitened(ctx.content)
        memory = {name: (rows_IK[known], there_I[known]) for name, (rows_IK, there_I) in self._own.items()}
        self.module = LinkModule(self.config, memory).to(ctx.device)
        self._neighbours = self.neighbours(self._own)  # found once: they are the same in every step

    def training_rows(self, items_R: np.ndarray, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        own = {
            name: (rows_IK[items_R], present_I[items_R]) for name, (rows_IK, present_I) in self._own.items()
        }
        nodes_RN, weights_RN = (array[items_R] for array in self._neighbours)
        if self.config.modality_dropout:
            own = _thinned(own, self.config.modality_dropout, rng)
            kept_RT = np.stack([present_R for _, present_R in own.values()], 1)
            kept_RN = np.repeat(kept_RT, len(self.config.relations) * self.config.fanout, axis=1)
            nodes_RN, weights_RN = np.where(kept_RN, nodes_RN, -1), np.where(kept_RN, weights_RN, 0)
        return _tensors(own, nodes_RN, weights_RN)

    def rows(self, content: ItemContent, rng: np.random.Generator | None = None) -> dict[str, torch.Tensor]:
        """Nothing is dropped here: `training_rows` does that."""
        own = self._whitened(content)
        return _tensors(own, *self.neighbours(own))

    def neighbours(self, own: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        """(nodes [R, N] as places among the known items, -1 = none; weights [R, N], above 0), relation by relation,
        `fanout` places each, strongest first. own: whitened rows by table."""
        nodes, weights = [], []
        for name, (rows_RK, _) in own.items():
            keys_NK = self.module.get_buffer(f"rows_{name}").cpu().numpy()
            near_RM, cosine_RM = nearest(rows_RK, keys_NK, self.config.fanout + 1)
            itself_RM = cosine_RM >= _SAME
            there_RM = (cosine_RM > 0) & ~itself_RM
            edges = there_RM.nonzero()[0], near_RM[there_RM], cosine_RM[there_RM]
            for relation in self.config.relations:
                read = edges
                if relation == TOGETHER:
                    read = self._partners(*edges, itself_RM.nonzero()[0], near_RM[itself_RM], len(rows_RK))
                found = Relation.of_edges(ITEM, len(keys_NK), len(rows_RK), *read)
                for part, kept in zip(found.strongest(self.config.fanout), (nodes, weights), strict=True):
                    kept.append(part)
        if not nodes:
            count = len(next(iter(own.values()))[0])
            return np.zeros((count, 0), np.int64), np.zeros((count, 0), np.float32)
        return np.concatenate(nodes, axis=1), np.concatenate(weights, axis=1)

    def _partners(
        self,
        row_E: np.ndarray,
        near_E: np.ndarray,
        cosine_E: np.ndarray,
        itself_S: np.ndarray,
        place_S: np.ndarray,
        count: int,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(row, known item, sum of cosines on the way) of what the near items are paired with; a row itself, known
        under place_S, is left out."""
        size = int(self.partners_E2.max()) + 1  # every known item has a partner
        near_RN = sp.csr_matrix((cosine_E, (row_E, near_E)), shape=(count, size))
        ones_P = np.ones(len(self.partners_E2), np.float32)
        found = (near_RN @ sp.csr_matrix((ones_P, self.partners_E2.T), shape=(size, size))).tocoo()
        row_F, target_F = found.row.astype(np.int64), found.col.astype(np.int64)
        others_F = ~np.isin(row_F * size + target_F, itself_S * size + place_S)
        return row_F[others_F], target_F[others_F], found.data[others_F]

    def _whitened(self, content: ItemContent) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        found = {}
        for name, whitening in self.whitenings.items():
            table = content.table(name)
            rows_RK = whitening(table.values_EF, table.present_E)
            found[name] = np.where(table.present_E[:, None], rows_RK, 0), table.present_E.copy()
        return found

    @torch.inference_mode()
    def encode(self, content: ItemContent, batch_size: int = 1024) -> dict[str, np.ndarray]:
        self.module.eval()
        device, parts = self.module.norm.weight.device, []
        for start in range(0, len(content), batch_size):
            rows = self.rows(content.take(np.arange(start, min(start + batch_size, len(content)))))
            found = self.module.vectors({name: value.to(device) for name, value in rows.items()})
            parts.append(found.cpu().numpy())
        return {"joint": unit(np.concatenate(parts))}

    def state(self) -> dict[str, np.ndarray]:
        arrays = {
            f"module.{n}": value.detach().cpu().numpy() for n, value in self.module.state_dict().items()
        }
        for name, whitening in self.whitenings.items():
            arrays |= whitening.state(f"whitening.{name}")
        return arrays | {"partners": self.partners_E2}

    @classmethod
    def from_state(
        cls,
        config: NeighbourEmbedderConfig,
        state: Mapping[str, np.ndarray],
        open_language: "Open | None" = None,
    ) -> Self:
        found = cls(config)
        found.whitenings = {name: Whitening.from_state(state, f"whitening.{name}") for name in config.tables}
        found.partners_E2 = state["partners"]
        weights = {n.removeprefix("module."): v for n, v in state.items() if n.startswith("module.")}
        known = {n: (weights[f"rows_{n}"].copy(), weights[f"present_{n}"].copy()) for n in config.tables}
        found.module = LinkModule(config, known)
        found.module.load_state_dict({n: torch.from_numpy(np.array(v)) for n, v in weights.items()})
        return found


def _tensors(
    own: Mapping[str, tuple[np.ndarray, np.ndarray]], nodes_RN: np.ndarray, weights_RN: np.ndarray
) -> dict[str, torch.Tensor]:
    arrays = {"nodes": nodes_RN, "weights": weights_RN}
    for name, (rows_RK, present_R) in own.items():
        arrays |= {f"rows_{name}": rows_RK, f"present_{name}": present_R}
    return {name: torch.from_numpy(value) for name, value in arrays.items()}


def _thinned(
    own: Mapping[str, tuple[np.ndarray, np.ndarray]], share: float, rng: np.random.Generator
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    present_MR = np.stack([present_R for _, present_R in own.values()])
    luck_MR = np.where(present_MR, rng.random(present_MR.shape), -1.0)
    kept_MR = present_MR & ((luck_MR >= share) | (luck_MR == luck_MR.max(axis=0)))
    return {
        name: (np.where(kept_R[:, None], rows_RK, 0), kept_R)
        for (name, (rows_RK, _)), kept_R in zip(own.items(), kept_MR, strict=True)
    }

"""Vectors of users and items with the neighbour encoder inside, and the loss of a batch of pairs."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from recsys.models.graph.content import Content
from recsys.models.graph.ego import Neighbours, Read
from recsys.models.graph.encoder import NeighbourEncoder, Rows
from recsys.models.graph.mmgl_config import MMGLConfig
from recsys.models.graph.propagation import UserItems, pairs_of, to_users
from recsys.models.pairs import PairsModule
from recsys.schema import Log

_BLOCK = 4096
"""Items encoded at a time for scoring."""
_PULL = 0.05
"""What the mean of a history's vectors is multiplied by at first: they are as long as the root of the width."""


class Inputs(NamedTuple):
    """What the module is made from: whitened tables and the relations that are read."""

    content: Mapping[str, Content]
    read: Sequence[Read]


class MMGLModule(PairsModule):
    """e_i = LN(content_i + gate * id_i), content_i from the neighbour encoder; items never trained on are left zero."""

    def __init__(self, config: MMGLConfig, log: Log, inputs: Inputs):
        super().__init__(config, log)
        content, read, width = inputs.content, inputs.read, config.widths[-1]
        if not config.id_vectors:
            self.items = None
        if (
            self.own_bias is not None
        ):  # what counts tell need not be learnt; a new item's 0 is that of one taken once
            with torch.no_grad():
                self.own_bias.copy_(torch.from_numpy(np.maximum(log.item_counts(), 1)).log())
        self.tables = list(content)
        for name, table in content.items():
            self.register_buffer(f"rows_{name}", torch.from_numpy(table.rows_IK), persistent=False)
            self.register_buffer(f"present_{name}", torch.from_numpy(table.present_I), persistent=False)
        self.neighbours = Neighbours(read, log.num_items, config)
        widths = {name: table.rows_IK.shape[1] for name, table in content.items()}
        values = sum(one.relation.size for one in read if one.column is not None)
        self.encoder = NeighbourEncoder(config, width, widths, len(read), values)
        self.gate = nn.Parameter(torch.ones(())) if config.id_vectors else None
        self.norm = nn.LayerNorm(width)
        self.graph = UserItems(log) if config.head == "propagation" else None
        self.pull = None
        if config.users == "history":
            self.pull = nn.Parameter(torch.tensor(_PULL).log())  # a logarithm, so that it stays above zero
            self.history_UI = to_users(log, "mean")
            counts_U = np.bincount(pairs_of(log)[0], minlength=log.num_users).astype(np.float32)
            self.register_buffer("counts_U", torch.from_numpy(counts_U), persistent=False)
        self.register_buffer("all_trained", self.trained_I.nonzero()[:, 0], persistent=False)
        if config.mode == "cached":  # both are part of a checkpoint, so that a resumed run goes on with them
            self.register_buffer("cache_ID", torch.zeros(log.num_items, width))
            self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def rows(self, items_N: torch.Tensor) -> Rows:
        return {
            name: (self.get_buffer(f"rows_{name}")[items_N], self.get_buffer(f"present_{name}")[items_N])
            for name in self.tables
        }

    def encoded(self, items_B: torch.Tensor) -> torch.Tensor:
        """[B, D] vectors of trained items."""
        config = self.config
        ego = self.neighbours(items_B, drawn=config.mode == "sampled")
        if self.training and config.edge_dropout:
            ego = self.neighbours.without(ego, self._luck(items_B) < config.edge_dropout)
        there_BN = ego.nodes_BN >= 0
        nodes, place = torch.unique(ego.nodes_BN[there_BN], return_inverse=True)
        count = self.trained_I.shape[0]
        items, values = nodes[nodes < count], nodes[nodes >= count] - count
        tokens = self.encoder.node_tokens(self._content(items), values)
        if len(tokens) == 0:  # nobody has a neighbour: one token that nobody reads
            tokens = tokens.new_zeros(1, *tokens.shape[1:])
        ego = ego._replace(nodes_BN=ego.nodes_BN.masked_scatter(there_BN, place))
        vectors_BD = self.encoder(self._thinned(self.rows(items_B)), ego, tokens)
        if self.gate is not None:
            keep_B = self.trained_I[items_B]
            if self.training and config.id_dropout:
                keep_B = keep_B * (self._luck(items_B) >= config.id_dropout)
            vectors_BD = vectors_BD + self.gate * keep_B[:, None] * self.items[items_B]
        return self.norm(vectors_BD)

    def _luck(self, items_B: torch.Tensor) -> torch.Tensor:
        return torch.rand(len(items_B), device=items_B.device)

    def _content(self, items_N: torch.Tensor) -> torch.Tensor:
        """[N, D] of neighbours: by their own content alone; in cached mode, in training, as it was."""
        if self.config.mode == "cached" and self.training:
            return self.cache_ID[items_N]
        return self.encoder.content(self.rows(items_N))

    def _thinned(self, rows: Rows) -> Rows:
        """Rows with some taken for missing, never all that an item has."""
        share = self.config.modality_dropout
        if not (self.training and share):
            return rows
        present_MB = torch.stack([present_B for _, present_B in rows.values()])
        luck_MB = torch.rand(present_MB.shape, device=present_MB.device).masked_fill(~present_MB, -1.0)
        kept_MB = present_MB & ((luck_MB >= share) | (luck_MB == luck_MB.amax(0)))
        return {
            name: (values, kept_B) for (name, (values, _)), kept_B in zip(rows.items(), kept_MB, strict=True)
        }

    def all_items(self) -> torch.Tensor:
        """[I, D]; zeros for items never trained on."""
        size = len(self.all_trained) if self.training else _BLOCK
        parts = [self.encoded(part) for part in self.all_trained.split(size)]
        items_ID = self.users.new_zeros(len(self.trained_I), self.encoder.width)
        return items_ID.index_copy(0, self.all_trained, torch.cat(parts))

    def vectors(self) -> tuple[torch.Tensor, torch.Tensor]:
        items_ID = self.all_items()
        if self.graph is not None:
            return self.graph(self.users, items_ID, self.config.layers)
        if self.pull is not None:
            return self.users + self.pull.exp() * self.history_UI(items_ID), items_ID
        return self.users, items_ID

    def _asking(self, batch: dict[str, torch.Tensor], items_ID: torch.Tensor) -> torch.Tensor:
        """[P, D] vectors of the pairs' users, their histories without the pair's own item."""
        user_P, item_P = batch["user_P"], batch["item_P"]
        counts_P1 = self.counts_U[user_P][:, None]
        others_PD = counts_P1 * self.history_UI(items_ID)[user_P] - items_ID[item_P]
        users_PD = self.users[user_P]
        if self.training and self.config.user_dropout:
            users_PD = users_PD * (self._luck(user_P) >= self.config.user_dropout)[:, None]
        return users_PD + self.pull.exp() * others_PD / (counts_P1 - 1).clamp(min=1)

    def forward(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        if self.config.mode == "cached" and self.training:
            self._refresh()
        if self.graph is not None:
            return super().forward(batch)
        columns = self.objective.columns(batch["item_P"])
        if self.pull is None:
            users_PD, items_ND = self.users[batch["user_P"]], self.encoded(columns.rows_N)
        else:
            items_ID = self.all_items()
            users_PD, items_ND = self._asking(batch, items_ID), items_ID[columns.rows_N]
        return self.objective(self.objective.scores(users_PD, items_ND, self.bias()[columns.rows_N]), columns)

    @torch.no_grad()
    def _refresh(self) -> None:
        if self.steps % self.config.refresh == 0:
            everything = torch.arange(len(self.trained_I), device=self.trained_I.device)
            parts = [self.encoder.content(self.rows(part)) for part in everything.split(_BLOCK)]
            self.cache_ID.copy_(torch.cat(parts))
        self.steps += 1

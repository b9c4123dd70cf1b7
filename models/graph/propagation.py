"""Graphs as sparse maps: users with items, and items with items whose content is alike."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from recsys.models.sparse import SparseMap, csr, symmetric_product
from recsys.schema import Log

Edges = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Source, target and value of each edge."""


def pairs_of(log: Log) -> np.ndarray:
    """[2, N] user and item of every pair that was seen, each once."""
    return np.unique(np.stack([log.user_N, log.item_N]), axis=1)


class UserItems(nn.Module):
    """A = D^-1/2 (0 R; R' 0) D^-1/2 over users and items together; `forward` gives the mean of A^l x, l = 0 .. layers.

    A sample of the edges can take its place in training (`sample`); scoring always goes over all of them.
    """

    def __init__(self, log: Log):
        super().__init__()
        self.users, self.size = log.num_users, log.num_users + log.num_items
        self.pairs_2N = pairs_of(log)
        self.register_buffer("graph_NN", self._normalised(self.pairs_2N), persistent=False)
        self.register_buffer("sampled_NN", None, persistent=False)

    def _normalised(self, pairs_2N: np.ndarray) -> torch.Tensor:
        both_2N = np.stack([pairs_2N[0], pairs_2N[1] + self.users])
        edges_2N = torch.from_numpy(np.concatenate([both_2N, both_2N[::-1]], axis=1))
        edges_2N, weights_N = gcn_norm(edges_2N, num_nodes=self.size, add_self_loops=False)
        return csr(edges_2N, weights_N, self.size)

    def sample(self, share: float, rng: np.random.Generator) -> None:
        """Go on with this share of the edges, drawn without replacement in proportion to 1 / sqrt(d_user d_item)."""
        users_N, items_N = self.pairs_2N
        degrees_N = np.bincount(users_N)[users_N] * np.bincount(items_N)[items_N]
        waits_N = rng.exponential(size=len(users_N)) * np.sqrt(degrees_N)  # the first to come are such a draw
        count = max(round(share * len(users_N)), 1)
        kept_2N = self.pairs_2N[:, np.argpartition(waits_N, count - 1)[:count]]
        self.sampled_NN = self._normalised(kept_2N).to(self.graph_NN.device)

    @property
    def current_NN(self) -> torch.Tensor:
        return self.sampled_NN if self.training and self.sampled_NN is not None else self.graph_NN

    def step(self, users_UD: torch.Tensor, items_ID: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A x, users and items apart."""
        found_ND = symmetric_product(self.current_NN, torch.cat([users_UD, items_ID]))
        return found_ND.split([len(users_UD), len(items_ID)])

    def forward(
        self, users_UD: torch.Tensor, items_ID: torch.Tensor, layers: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        layer_ND = total_ND = torch.cat([users_UD, items_ID])
        for _ in range(layers):
            layer_ND = symmetric_product(self.current_NN, layer_ND)
            total_ND = total_ND + layer_ND
        mean_ND = total_ND / (layers + 1)
        return mean_ND.split([len(users_UD), len(items_ID)])


def to_users(log: Log, kind: Literal["sum", "mean", "symmetric"]) -> SparseMap:
    """[U, I] what a user gathers from its items: their sum, their mean, or with 1 / sqrt(d_user d_item) each."""
    pairs_2N = pairs_of(log)
    user_N, item_N = (np.bincount(side)[side].astype(np.float32) for side in pairs_2N)
    values_N = {"sum": np.ones_like(user_N), "mean": 1 / user_N, "symmetric": 1 / np.sqrt(user_N * item_N)}[
        kind
    ]
    return SparseMap(torch.from_numpy(pairs_2N), torch.from_numpy(values_N), (log.num_users, log.num_items))


def averaging(log: Log) -> SparseMap:
    """[U + I, U + I] the mean over neighbours in the graph of users and items; a node without any has zeros."""
    users_N, items_N = pairs_of(log)
    items_N = items_N + log.num_users
    places_2N = np.stack([np.concatenate([users_N, items_N]), np.concatenate([items_N, users_N])])
    values_N = 1 / np.bincount(places_2N[0])[places_2N[0]].astype(np.float32)
    size = log.num_users + log.num_items
    return SparseMap(torch.from_numpy(places_2N), torch.from_numpy(values_N), (size, size))


def row_means(edges: Edges) -> Edges:
    """Values of each source scaled to the sum of one, negative ones taken as zero."""
    source_E, target_E, value_E = edges
    value_E = np.maximum(value_E, 0).astype(np.float64)
    sums = np.bincount(source_E, value_E)
    keep_E = value_E > 0
    return source_E[keep_E], target_E[keep_E], value_E[keep_E] / sums[source_E[keep_E]]


def mixed(graphs: Sequence[Edges], weights: Sequence[float], size: int) -> Edges:
    """The weighted mean of graphs whose rows sum to one; a row that a graph lacks is left to the others."""
    rows_I = np.zeros(size)
    for (source_E, _, _), weight in zip(graphs, weights, strict=True):
        rows_I[np.unique(source_E)] += weight
    parts = [(s, t, weight * v / rows_I[s]) for (s, t, v), weight in zip(graphs, weights, strict=True)]
    return _merged(parts, size, np.add)


def strongest(graphs: Sequence[Edges], size: int) -> Edges:
    """The largest value of each edge among the graphs."""
    return _merged(list(graphs), size, np.maximum)


def _merged(parts: list[Edges], size: int, how: np.ufunc) -> Edges:
    source_E, target_E, value_E = (np.concatenate(found) for found in zip(*parts, strict=True))
    places, inverse = np.unique(source_E * size + target_E, return_inverse=True)
    values = np.zeros(len(places))
    how.at(values, inverse, value_E)
    return places // size, places % size, values


def item_map(edges: Edges, size: int) -> SparseMap:
    """[I, I]."""
    source_E, target_E, value_E = edges
    places_2E = torch.from_numpy(np.stack([source_E, target_E]))
    return SparseMap(places_2E, torch.from_numpy(value_E.astype(np.float32)), (size, size))


def equal_or(weights: Sequence[float], tables: Mapping[str, object]) -> list[float]:
    """The weights of the tables, of sum one; equal ones where none are given."""
    found = np.array(weights or [1.0] * len(tables))
    return (found / found.sum()).tolist()

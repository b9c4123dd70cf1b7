"""FREEDOM: a frozen graph of items, and a thinned one of users and items.

After Zhou and Shen, "A Tale of Two Graphs: Freezing and Denoising Graph Structures for Multimodal Recommendation" (MM
2023): item = LGC(ID) + S ID, S the weighted mean of the tables' kNN graphs, unweighted edges, made once. Each epoch
trains on a share of the interactions, drawn in proportion to 1 / sqrt(d_u d_i); scoring goes over all. Loss: the
ranking of users and items, and that of users and each table's W_m x^m.

In public code the "symmetric Laplacian" of S comes to a plain mean, since every row has as many entries; and an item is
its own neighbour. Here it is a mean without the item itself, whose id is in LGC already. A new item has the row of S
that it would have, and no id.
"""

from collections.abc import Mapping
from typing import Annotated

import numpy as np
import torch
from pydantic import Field, model_validator

from recsys.item_encoding import ItemEncoding
from recsys.models.graph.config import ItemGraphConfig
from recsys.models.graph.content import Content
from recsys.models.graph.propagation import UserItems, equal_or, item_map, mixed
from recsys.models.graph.recommender import GraphModule, GraphRec, Step
from recsys.schema import Log


class FrozenGraphConfig(ItemGraphConfig):
    """Settings of a model with one frozen graph of items."""

    table_weights: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Weights of the tables in the graph of items, in their order; empty = all alike."""
    edge_share: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of the interactions that an epoch smooths over."""

    @model_validator(mode="after")
    def _one_weight_each(self):
        if self.table_weights and len(self.table_weights) != len(self.tables):
            raise ValueError(f"table_weights: {len(self.tables)} of them, one per table, or none")
        return self


class FREEDOMConfig(FrozenGraphConfig):
    """Settings of FREEDOM."""

    content_weight: Annotated[float, Field(ge=0)] = 1e-3
    """Weight of each table's ranking by content alone."""


class FrozenGraphModule(GraphModule):
    """The graph of items, made once, and that of users and items, thinned each epoch."""

    weighted = False

    def __init__(self, config: FrozenGraphConfig, log: Log, content: Mapping[str, Content]):
        super().__init__(config, log, content)
        self.graph = UserItems(log)
        self.weights = dict(zip(content, equal_or(config.table_weights, content), strict=True))
        graphs = [self.item_edges(name) for name in content]
        self.similar = item_map(mixed(graphs, list(self.weights.values()), log.num_items), log.num_items)

    def begin(self, epoch: int, rng: np.random.Generator) -> None:
        if self.config.edge_share < 1:
            self.graph.sample(self.config.edge_share, rng)


class FREEDOMModule(FrozenGraphModule):
    def views(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.graph(self.users, self.ids(), self.config.layers)

    def fuse(self, views: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        return views[0], views[1] + self.similar(self.ids())

    def auxiliary(self, views: tuple[torch.Tensor, torch.Tensor], step: Step) -> dict[str, torch.Tensor]:
        weight = self.config.content_weight
        if not weight:
            return {}
        return {
            f"content.{name}": weight * self.ranking(step, items_ID)[0]
            for name, items_ID in self.content().items()
        }

    def encoding(self, items_ID: np.ndarray) -> ItemEncoding:
        return ItemEncoding("sum", {}, near=(self.near(self.ids().detach().cpu().numpy(), self.weights),))


class FREEDOM(GraphRec[FREEDOMConfig]):
    """LightGCN on thinned edges and a frozen graph of items."""

    Config = FREEDOMConfig
    Module = FREEDOMModule

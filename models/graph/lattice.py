"""LATTICE: a graph of items that is learnt with the vectors.

After Zhang et al., "Mining Latent Structures for Multimedia Recommendation" (MM 2021):

    A = share * sum_m a_m S^m + (1 - share) * normalised(sum_m a_m T^m),   a = softmax of one scalar a table
    item = LGC(ID) + A ID / |A ID|

S^m: nearest items by the features, as they are; T^m: by the projected features W_m x^m, found anew every epoch, with
cosines of the weights as they are at every step. Departures: published code holds every S, T and A as a dense matrix of
items by items and lets gradients into T in the first batch of an epoch alone; an item without one of the tables has
the others' weights scaled up; edges are of the features as they came, even where features are learnt. A new item has
the row of A that it would have, and no id.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from recsys.item_encoding import ItemEncoding
from recsys.models.graph.config import ItemGraphConfig
from recsys.models.graph.content import Content
from recsys.models.graph.propagation import UserItems, item_map
from recsys.models.graph.recommender import GraphModule, GraphRec
from recsys.models.sparse import Pattern
from recsys.schema import Log


class LATTICEConfig(ItemGraphConfig):
    """Settings of LATTICE."""

    raw_share: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Of the graph of the features as they are, against the learnt one."""


class LATTICEModule(GraphModule):
    """anchor_*: the maps at the beginning of the epoch, which the learnt graph's edges are of. A checkpoint has them,
    so that a resumed epoch goes on with its own edges."""

    def __init__(self, config: LATTICEConfig, log: Log, content: Mapping[str, Content]):
        super().__init__(config, log, content)
        self.graph = UserItems(log)
        self.importance = nn.Parameter(torch.zeros(len(content)))
        self.raw = nn.ModuleDict({name: item_map(self.item_edges(name), log.num_items) for name in content})
        for name, graph in self.raw.items():
            rows_I = torch.diff(graph.matrix_NM.crow_indices()) > 0
            self.register_buffer(f"has_{name}", rows_I.float()[:, None], persistent=False)
        self.register_buffer("anchored", torch.tensor(-1))
        for name, linear in self.content.maps.items():
            self.register_buffer(f"anchor_{name}", linear.weight.detach().clone())
        self.content.missing.requires_grad_(False)  # what an item lacks has no edges: nothing stands for it
        self.patterns: dict[str, Pattern] = {}
        self.patterns_of: dict[str, torch.Tensor] = {}

    def begin(self, epoch: int, rng: np.random.Generator) -> None:
        if self.anchored.item() != epoch:
            self.anchored.fill_(epoch)
            for name, linear in self.content.maps.items():
                self.get_buffer(f"anchor_{name}").copy_(linear.weight.detach())

    def learnt_edges(self, name: str) -> Pattern:
        """Those that the anchor gives, from item to neighbour."""
        anchor_DK = self.get_buffer(f"anchor_{name}")
        if name not in self.patterns or not self.patterns_of[name].equal(anchor_DK):
            source_E, target_E, _ = self.known[name].nearest(
                self.config.neighbours,
                mutual=self.config.mutual,
                in_degree=self.config.in_degree,
                map_KP=anchor_DK.cpu().numpy().T,
            )
            self.patterns_of[name] = anchor_DK.clone()
            sides = (torch.from_numpy(side).to(anchor_DK.device) for side in (source_E, target_E))
            self.patterns[name] = Pattern(*sides, len(self.items))
        return self.patterns[name]

    def views(self) -> torch.Tensor:
        """[I, D] what the graph of items says: A ID."""
        ids_ID, importance = self.ids(), torch.softmax(self.importance, 0)
        ids_IE = F.pad(ids_ID, (0, 1), value=1.0)  # what comes of the ones is the sum of the weights
        present, raw_ID, raw_I1, learnt_IE = self.content.present(), 0.0, 0.0, 0.0
        for name, weight in zip(self.known, importance, strict=True):
            raw_ID = raw_ID + weight * self.raw[name](ids_ID)
            raw_I1 = raw_I1 + weight * self.get_buffer(f"has_{name}")
            projected_IP = self.content.maps[name](self.content.rows_of(name)).float()
            unit_IP = F.normalize(projected_IP, dim=1, eps=1e-6) * present[name][:, None]
            edges = self.learnt_edges(name)
            learnt_IE = learnt_IE + edges.product(weight * edges.dots(unit_IP).clamp_min(0), ids_IE)
        share, learnt_ID, learnt_I1 = self.config.raw_share, learnt_IE[:, :-1], learnt_IE[:, -1:]
        return share * raw_ID / _or_one(raw_I1) + (1 - share) * learnt_ID / _or_one(learnt_I1)

    def fuse(self, views: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        users_UD, items_ID = self.graph(self.users, self.ids(), self.config.layers)
        return users_UD, items_ID + F.normalize(views, dim=1)

    def encoding(self, items_ID: np.ndarray) -> ItemEncoding:
        ids_ID = self.ids().detach().cpu().numpy()
        importance = torch.softmax(self.importance, 0).tolist()
        weights, share = dict(zip(self.known, importance, strict=True)), self.config.raw_share
        raw = self.near(ids_ID, weights)
        maps = {name: linear.weight.detach().cpu().numpy().T for name, linear in self.content.maps.items()}
        keys = {name: table.keys(maps[name], weights[name]) for name, table in self.known.items()}
        return ItemEncoding(
            "sum",
            {},
            near=(replace(raw, share=share), replace(raw, tables=keys, pooled=True, share=1 - share)),
            unit_near=True,
        )


def _or_one(sums_I1: torch.Tensor) -> torch.Tensor:
    """Rows without anything to divide stay as they are."""
    return torch.where(sums_I1 > 0, sums_I1, torch.ones_like(sums_I1))


class LATTICE(GraphRec[LATTICEConfig]):
    """LightGCN and a learnt graph of items."""

    Config = LATTICEConfig
    Module = LATTICEModule

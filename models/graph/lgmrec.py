"""LGMRec: behaviour and modalities in graphs of their own, and hyperedges that span all items.

After Guo et al., "LGMRec: Local and Global Graph Learning for Multimodal Recommendation" (AAAI 2024):

    b = LGC(ID)
    g^m = A^2 [mean over a user's items of W_m x^m ; W_m x^m]
    H_I = gumbel(x^m V_m, t) for items, H_U = gumbel(R (x^m V_m), t) for users: shares in hyperedges, of sum one
    y^m = [H_U ; H_I] H_I' b_I, taken on as the items' vectors for more layers
    final = b + sum_m norm(g^m) + a * norm(sum_m y^m)

and InfoNCE between the hypergraph vectors of one table and the next. The Gumbel noise belongs to training: public code
draws it when scoring too, so that scores are random. A table that an item lacks has learnt logits of its own.
Departures: InfoNCE takes a user or item of a batch once, against the others of the batch. A new item gets the mean of
its nearest trained items' vectors.
"""

import itertools
from collections.abc import Mapping
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from recsys.models.graph.config import GraphRecConfig
from recsys.models.graph.content import Content
from recsys.models.graph.propagation import UserItems, to_users
from recsys.models.graph.recommender import GraphModule, GraphRec, Step, info_nce
from recsys.models.trunk import Share
from recsys.schema import Log

_HOPS = 2
"""Steps of a modality's vectors over the graph of users and items."""


class LGMRecConfig(GraphRecConfig):
    """Settings of LGMRec."""

    hyperedges: Annotated[int, Field(ge=2)] = 4
    """Hyperedges of each table."""
    hyper_layers: Annotated[int, Field(ge=1)] = 1
    """Times that vectors go over the hypergraph."""
    hyper_weight: Annotated[float, Field(ge=0)] = 0.3
    """Of the hypergraph in the final vector (alpha)."""
    dropout: Share = 0.5
    """Of shares in hyperedges."""
    temperature: Annotated[float, Field(gt=0)] = 0.2
    """Of the softmax that shares are of, and of InfoNCE."""
    contrast_weight: Annotated[float, Field(ge=0)] = 1e-4
    """Weight of InfoNCE between tables' hypergraph vectors."""


class Parts(NamedTuple):
    """[U + I, D], users first: behaviour, each table's graph view, each table's hypergraph view."""

    behaviour_ND: torch.Tensor
    graph: list[torch.Tensor]
    hyper: list[torch.Tensor]


class LGMRecModule(GraphModule):
    def __init__(self, config: LGMRecConfig, log: Log, content: Mapping[str, Content]):
        super().__init__(config, log, content)
        self.graph = UserItems(log)
        self.mean, self.sum = to_users(log, "mean"), to_users(log, "sum")
        self.hyperedges = nn.ParameterDict(
            {
                name: nn.Parameter(
                    nn.init.xavier_uniform_(torch.empty(t.rows_IK.shape[1], config.hyperedges))
                )
                for name, t in content.items()
            }
        )
        self.unassigned = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(config.hyperedges)) for name in content}
        )

    def views(self) -> Parts:
        behaviour_UD, behaviour_ID = self.graph(self.users, self.ids(), self.config.layers)
        present, graph, hyper = self.content.present(), [], []
        for name, items_ID in self.content(present).items():
            users_UD = self.mean(items_ID)
            for _ in range(_HOPS):
                users_UD, items_ID = self.graph.step(users_UD, items_ID)
            graph.append(torch.cat([users_UD, items_ID]))
            hyper.append(self.over_hyperedges(name, present[name], behaviour_ID))
        return Parts(torch.cat([behaviour_UD, behaviour_ID]), graph, hyper)

    def over_hyperedges(self, name: str, present_I: torch.Tensor, vectors_ID: torch.Tensor) -> torch.Tensor:
        logits_IH = torch.where(
            present_I[:, None], self.content.rows_of(name) @ self.hyperedges[name], self.unassigned[name]
        )
        items_IH, users_UH = self.shares(logits_IH), self.shares(self.sum(logits_IH))
        for _ in range(self.config.hyper_layers):
            edges_HD = items_IH.T @ (vectors_ID * self.trained_I[:, None])
            vectors_ID = items_IH @ edges_HD
        return torch.cat([users_UH @ edges_HD, vectors_ID])

    def shares(self, logits_NH: torch.Tensor) -> torch.Tensor:
        """Of sum one, before dropout; with noise in training."""
        temperature = self.config.temperature
        if not self.training:
            return torch.softmax(logits_NH / temperature, dim=1)
        return F.dropout(F.gumbel_softmax(logits_NH, temperature, dim=1), self.config.dropout)

    def fuse(self, views: Parts) -> tuple[torch.Tensor, torch.Tensor]:
        total_ND = views.behaviour_ND + self.config.hyper_weight * F.normalize(
            sum(views.hyper), dim=1, eps=1e-6
        )
        for part_ND in views.graph:
            total_ND = total_ND + F.normalize(part_ND, dim=1, eps=1e-6)
        return total_ND.split([len(self.users), len(self.items)])

    def auxiliary(self, views: Parts, step: Step) -> dict[str, torch.Tensor]:
        config = self.config
        if not config.contrast_weight or len(views.hyper) < 2:
            return {}
        both = [
            info_nce(one_ND, other_ND, rows, config.temperature)
            for one_ND, other_ND in itertools.pairwise(views.hyper)
            for rows in (step.user_P, step.item_P + len(self.users))
        ]
        return {"contrast": config.contrast_weight * sum(both)}


class LGMRec(GraphRec[LGMRecConfig]):
    """Behaviour, modalities, and hyperedges over all items."""

    Config = LGMRecConfig
    Module = LGMRecModule

"""What MGCN and SMORE share: ids gated by content and spread over graphs of items, beside a view of behaviour.

They differ in the graphs, in what opens the gates, and in how the side views become one.
"""

from collections.abc import Mapping
from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import nn

from recsys.models.graph.config import ItemGraphConfig
from recsys.models.graph.content import Content
from recsys.models.graph.propagation import Edges, UserItems, item_map, to_users
from recsys.models.graph.recommender import GraphModule, Step, info_nce
from recsys.schema import Log


class SideConfig(ItemGraphConfig):
    """Settings of a model that fuses side views with behaviour."""

    contrast_weight: Annotated[float, Field(ge=0)] = 0.01
    """Weight of InfoNCE between side views and behaviour."""
    temperature: Annotated[float, Field(gt=0)] = 0.2
    """Of InfoNCE."""


class SideViews(NamedTuple):
    """[U + I, D] each, users first. behaviour: LGC(ID); side: the side views as one."""

    behaviour_ND: torch.Tensor
    side_ND: torch.Tensor


class SideModule(GraphModule):
    """final = behaviour + side."""

    def __init__(self, config: SideConfig, log: Log, content: Mapping[str, Content]):
        super().__init__(config, log, content)
        self.graph, self.to_users = UserItems(log), to_users(log, "symmetric")
        self.similar = nn.ModuleDict(
            {name: item_map(edges, log.num_items) for name, edges in self.graphs().items()}
        )
        width = config.widths[-1]
        self.gates = nn.ModuleDict({name: nn.Linear(width, width) for name in self.similar})
        self.preferences = nn.ModuleDict({name: nn.Linear(width, width) for name in self.similar})

    def graphs(self) -> dict[str, Edges]:
        """A graph of items per side view."""
        raise NotImplementedError

    def signals(self) -> dict[str, torch.Tensor]:
        """What opens the gate of each side view, [I, D]."""
        raise NotImplementedError

    def side(self, spread: dict[str, torch.Tensor], prefer: dict[str, torch.Tensor]) -> torch.Tensor:
        """The side views as one; prefer: how much of each the behaviour of a user or item lets through."""
        raise NotImplementedError

    def views(self) -> SideViews:
        ids_ID = self.ids()
        behaviour_ND = torch.cat(self.graph(self.users, ids_ID, self.config.layers))
        spread, prefer = {}, {}
        for name, signal_ID in self.signals().items():
            items_ID = self.similar[name](ids_ID * torch.sigmoid(self.gates[name](signal_ID)))
            spread[name] = torch.cat([self.to_users(items_ID), items_ID])
            prefer[name] = torch.sigmoid(self.preferences[name](behaviour_ND))
        return SideViews(behaviour_ND, self.side(spread, prefer))

    def fuse(self, views: SideViews) -> tuple[torch.Tensor, torch.Tensor]:
        return (views.behaviour_ND + views.side_ND).split([len(self.users), len(self.items)])

    def auxiliary(self, views: SideViews, step: Step) -> dict[str, torch.Tensor]:
        config = self.config
        if not config.contrast_weight:
            return {}
        both = [
            info_nce(views.side_ND, views.behaviour_ND, rows, config.temperature)
            for rows in (step.user_P, step.item_P + len(self.users))
        ]
        return {"contrast": config.contrast_weight * sum(both)}

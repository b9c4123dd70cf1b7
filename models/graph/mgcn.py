"""MGCN: content purified by behaviour, and what modalities share apart from what is each one's own.

After Yu et al., "Multi-View Graph Convolutional Network for Multimedia Recommendation" (MM 2023):

    e^m = id * s(G_m W_m x^m + g_m),   h^m = S^m e^m for items, R h^m for users (R = D^-1/2 R D^-1/2)
    b = LGC(ID),   c = sum_m softmax_m(q(h^m)) h^m,   q(h) = v tanh(Q h + r)
    side = (sum_m s(P_m b + p_m) * (h^m - c) + c) / (M + 1),   final = b + side

and InfoNCE between side and behaviour. Departures: an item is not among its own neighbours in S^m; InfoNCE takes a user
or item of a batch once. A new item gets the mean of its nearest trained items' vectors.
"""

from collections.abc import Mapping

import torch
from torch import nn

from recsys.models.graph.content import Content
from recsys.models.graph.fusion import SideConfig, SideModule
from recsys.models.graph.propagation import Edges
from recsys.models.graph.recommender import GraphRec
from recsys.schema import Log


class MGCNConfig(SideConfig):
    """Settings of MGCN."""


class MGCNModule(SideModule):
    def __init__(self, config: MGCNConfig, log: Log, content: Mapping[str, Content]):
        super().__init__(config, log, content)
        width = config.widths[-1]
        self.question = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1, bias=False))

    def graphs(self) -> dict[str, Edges]:
        return {name: self.item_edges(name) for name in self.known}

    def signals(self) -> dict[str, torch.Tensor]:
        return self.content()

    def side(self, spread: dict[str, torch.Tensor], prefer: dict[str, torch.Tensor]) -> torch.Tensor:
        spread_MND = torch.stack(list(spread.values()))
        common_ND = (torch.softmax(self.question(spread_MND), 0) * spread_MND).sum(0)
        own = [prefer[name] * (own_ND - common_ND) for name, own_ND in spread.items()]
        return (sum(own) + common_ND) / (len(own) + 1)


class MGCN(GraphRec[MGCNConfig]):
    """Behaviour, and what modalities share and have of their own."""

    Config = MGCNConfig
    Module = MGCNModule

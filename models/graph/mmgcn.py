"""MMGCN: one graph convolution per modality, with preferences of the users.

After Wei et al., "MMGCN: Multi-modal Graph Convolution Network for Personalized Recommendation of Micro-video" (MM
2019). Per table, X = [preference of the user ; W_m x^m], and at each layer

    h = leaky(mean over neighbours of X W1),   X <- leaky(W3 h + leaky(X W2) + id)

The result is the mean over tables. Public code, the authors' own included, makes preferences and ids plain tensors that
no optimiser sees; here they are learnt. A new item gets the mean of its nearest trained items' vectors.
"""

from collections.abc import Mapping
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from recsys.models.graph.config import GraphRecConfig
from recsys.models.graph.content import Content
from recsys.models.graph.propagation import averaging
from recsys.models.graph.recommender import GraphModule, GraphRec
from recsys.schema import Log

_INITIAL = 0.1


class MMGCNConfig(GraphRecConfig):
    """Settings of MMGCN."""

    layers: Annotated[int, Field(ge=1)] = 3
    """Times that neighbours are averaged."""


class _Layer(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.gather, self.own, self.join = (
            nn.Linear(width, width, bias=bias) for bias in (False, True, True)
        )


class MMGCNModule(GraphModule):
    """`users` are the users' id vectors; each table has preferences of its own."""

    def __init__(self, config: MMGCNConfig, log: Log, content: Mapping[str, Content]):
        super().__init__(config, log, content)
        width = config.widths[-1]
        self.mean = averaging(log)
        self.preferences = nn.ParameterDict(
            {name: nn.Parameter(torch.randn(log.num_users, width) * _INITIAL) for name in content}
        )
        self.layers = nn.ModuleDict(
            {name: nn.ModuleList(_Layer(width) for _ in range(config.layers)) for name in content}
        )

    def views(self) -> list[torch.Tensor]:
        ids_ND = torch.cat([self.users, self.ids()])
        found = []
        for name, items_ID in self.content().items():
            x_ND = torch.cat([self.preferences[name], items_ID])
            for layer in self.layers[name]:
                h_ND = F.leaky_relu(self.mean(layer.gather(x_ND)))
                x_ND = F.leaky_relu(layer.join(h_ND) + F.leaky_relu(layer.own(x_ND)) + ids_ND)
            found.append(x_ND)
        return found

    def fuse(self, views: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.stack(views).mean(0).split([len(self.users), len(self.items)])


class MMGCN(GraphRec[MMGCNConfig]):
    """A graph convolution per modality."""

    Config = MMGCNConfig
    Module = MMGCNModule

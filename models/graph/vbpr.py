"""VBPR: matrix factorisation with a content half.

After He and McAuley, "VBPR: Visual Bayesian Personalized Ranking from Implicit Feedback" (AAAI 2016), equation 4:
item = [id ; sum over tables of W_m x^m], user = a vector of both halves. Departures: any number of tables (theirs is
the image alone), their maps added up, and no visual bias vector. No graph: a new item has its own content half.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from recsys.item_encoding import ItemEncoding, TableMap
from recsys.models.graph.config import ContentConfig
from recsys.models.graph.content import Content
from recsys.models.graph.recommender import GraphModule, GraphRec
from recsys.schema import Log


class VBPRConfig(ContentConfig):
    """Settings of VBPR."""


class VBPRModule(GraphModule):
    """The first half of a vector is of the id, the rest of the content."""

    def __init__(self, config: VBPRConfig, log: Log, content: Mapping[str, Content]):
        super().__init__(config, log, content)
        self.items = nn.Parameter(self.items[:, : config.widths[-1] // 2].detach().clone())

    def content_widths(self) -> dict[str, int]:
        width = self.config.widths[-1]
        return dict.fromkeys(self.known, width - width // 2)

    def views(self) -> torch.Tensor:
        return sum(self.content().values())

    def fuse(self, views: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.users, torch.cat([self.ids(), views], dim=1)

    def encoding(self, items_ID: np.ndarray) -> ItemEncoding:
        ids = items_ID.shape[1] - next(iter(self.content_widths().values()))
        tables = {}
        for name, table in self.known.items():
            own = self.content.table_map(name, table.whitening)
            map_FD, missing_D = np.pad(own.map_FD, [(0, 0), (ids, 0)]), np.pad(own.missing_D, (ids, 0))
            tables[name] = TableMap(own.mean_F, map_FD, missing_D)
        return ItemEncoding("sum", tables)


class VBPR(GraphRec[VBPRConfig]):
    """Ids and content side by side."""

    Config = VBPRConfig
    Module = VBPRModule

"""PGL: items are their content, smoothed over both graphs; no item has an id.

After "Mind Individual Information! Principal Graph Learning for Multimedia Recommendation" (AAAI 2025), the local form:
x = [W_m x^m / |W_m x^m| for every table], item = LGC(x) + S x, S as in FREEDOM. Each epoch trains on a share of the
interactions, drawn in proportion to 1 / sqrt(d_u d_i); scoring goes over all. Beside the ranking, InfoNCE between two
dropouts of the same vectors. Departures: the global form, which trains on a truncated decomposition, is left out. The
configuration of a public toolbox sets the weight of InfoNCE to 0, which is another model; here it counts.

A new item is a node without users: its own x in the zeroth layer, and the mean of its neighbours' x.
"""

from collections.abc import Mapping
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field

from recsys.item_encoding import ItemEncoding
from recsys.models.graph.content import Content
from recsys.models.graph.freedom import FrozenGraphConfig, FrozenGraphModule
from recsys.models.graph.recommender import GraphRec, Step, info_nce
from recsys.models.trunk import Share
from recsys.schema import Log


class PGLConfig(FrozenGraphConfig):
    """Settings of PGL."""

    edge_share: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Share of the interactions that an epoch smooths over."""
    dropout: Share = 0.1
    """Of values, between the two forms of a vector that InfoNCE brings together."""
    contrast_weight: Annotated[float, Field(ge=0)] = 0.05
    """Weight of InfoNCE."""
    temperature: Annotated[float, Field(gt=0)] = 0.2
    """Of InfoNCE."""


class PGLModule(FrozenGraphModule):
    def __init__(self, config: PGLConfig, log: Log, content: Mapping[str, Content]):
        super().__init__(config, log, content)
        self.items = None

    def content_widths(self) -> dict[str, int]:
        parts = np.array_split(np.arange(self.config.widths[-1]), len(self.known))
        return {name: len(part) for name, part in zip(self.known, parts, strict=True)}

    def views(self) -> torch.Tensor:
        return torch.cat([F.normalize(part, dim=1, eps=1e-6) for part in self.content().values()], dim=1)

    def fuse(self, views: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        users_UD, items_ID = self.graph(self.users, views, self.config.layers)
        return users_UD, items_ID + self.similar(views)

    def auxiliary(self, views: torch.Tensor, step: Step) -> dict[str, torch.Tensor]:
        config, total = self.config, 0.0
        if not config.contrast_weight:
            return {}
        for vectors_ND, rows in ((step.users_UD, step.user_P), (step.items_ID, step.item_P)):
            one_ND, other_ND = (F.dropout(vectors_ND, config.dropout, self.training) for _ in range(2))
            total = total + info_nce(one_ND, other_ND, rows, config.temperature)
        return {"contrast": config.contrast_weight * total}

    def encoding(self, items_ID: np.ndarray) -> ItemEncoding:
        tables = {name: self.content.table_map(name, table.whitening) for name, table in self.known.items()}
        near = self.near(self.views().detach().cpu().numpy(), self.weights)
        return ItemEncoding("beside", tables, scale=1 / (self.config.layers + 1), near=(near,))


class PGL(GraphRec[PGLConfig]):
    """Content alone, smoothed."""

    Config = PGLConfig
    Module = PGLModule
    own = "beside"

"""BM3: no negatives; each side predicts the other, and content predicts the item.

After Zhou et al., "Bootstrap Latent Representations for Multi-modal Recommendation" (WWW 2023). u = LGC(users),
i = LGC(ID) + ID, P one linear map, c = cosine, and bars for copies under dropout that no gradient passes:

    loss = [1 - c(P u, i~)] + [1 - c(P i, u~)] + w * sum_m ([1 - c(P e_m, i~)] + [1 - c(P e_m, e_m~)]),  e_m = W_m x^m

Scores are dot products of P u and P i. A new item gets the mean of its nearest trained items' vectors: what P makes of
its own content says a direction alone. Departure: a ranking loss can be added.
"""

from collections.abc import Mapping
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from recsys.models.graph.config import GraphRecConfig
from recsys.models.graph.content import Content
from recsys.models.graph.propagation import UserItems
from recsys.models.graph.recommender import GraphModule, GraphRec, Step
from recsys.models.trunk import Share
from recsys.schema import Log


class BM3Config(GraphRecConfig):
    """Settings of BM3."""

    layers: Annotated[int, Field(ge=1)] = 1
    """Times that vectors are smoothed over the graph of users and items."""
    dropout: Share = 0.3
    """Of values of the copies that are predicted."""
    content_weight: Annotated[float, Field(ge=0)] = 2.0
    """Weight of what each table predicts."""
    ranking_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the ranking loss; 0 = as published, no negatives."""


class BM3Module(GraphModule):
    def __init__(self, config: BM3Config, log: Log, content: Mapping[str, Content]):
        super().__init__(config, log, content)
        width = config.widths[-1]
        self.graph, self.predictor = UserItems(log), nn.Linear(width, width)
        nn.init.xavier_normal_(self.predictor.weight)

    def views(self) -> tuple[torch.Tensor, torch.Tensor]:
        users_UD, items_ID = self.graph(self.users, self.ids(), self.config.layers)
        return users_UD, items_ID + self.ids()

    def fuse(self, views: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        return self.predictor(views[0]), self.predictor(views[1])

    @property
    def ranking_weight(self) -> float:
        return self.config.ranking_weight

    def auxiliary(self, views: tuple[torch.Tensor, torch.Tensor], step: Step) -> dict[str, torch.Tensor]:
        """Each vector against copies of what it predicts, mean over the pairs of the batch."""
        user_P, item_P = step.user_P, step.item_P
        user_copy_PD, item_copy_PD = self.copy(views[0][user_P]), self.copy(views[1][item_P])
        parts = {
            "user": _apart(step.users_UD[user_P], item_copy_PD),
            "item": _apart(step.items_ID[item_P], user_copy_PD),
        }
        for name, items_ID in self.content().items():
            own_PD = items_ID[item_P]
            predicted_PD = self.predictor(own_PD)
            both = _apart(predicted_PD, item_copy_PD) + _apart(predicted_PD, self.copy(own_PD))
            parts[f"content.{name}"] = self.config.content_weight * both
        return parts

    def copy(self, vectors_PD: torch.Tensor) -> torch.Tensor:
        return F.dropout(vectors_PD.detach(), self.config.dropout, self.training)


def _apart(a_PD: torch.Tensor, b_PD: torch.Tensor) -> torch.Tensor:
    return 1 - F.cosine_similarity(a_PD, b_PD, dim=1).mean()


class BM3(GraphRec[BM3Config]):
    """Bootstrapped vectors: no negatives."""

    Config = BM3Config
    Module = BM3Module

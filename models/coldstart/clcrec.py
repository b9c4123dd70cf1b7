"""CLCRec: id vectors and content of an item are drawn together, and either may stand in for the other."""

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from recsys.layered_items import LayeredItems
from recsys.models.base import FitContext
from recsys.models.coldstart.content import ContentConfig, ContentModel, ContentModule, ContentTower
from recsys.models.trunk import Share

_INITIAL = 0.1


class CLCRecConfig(ContentConfig):
    """Settings of CLCRec."""

    negatives: Annotated[int, Field(ge=1)] = 512
    """Items drawn a step, the same for all its pairs, evenly among those of the training rows."""
    contrast: Annotated[float, Field(ge=0, le=1)] = 0.5
    """lambda: weight of item id against content; the rest is that of user against item."""
    hybrid: Share = 0.5
    """Share of items that stand in with their content where users choose."""
    temperature: Annotated[float, Field(gt=0)] = 0.2
    """Of both losses."""


class CLCRecModule(ContentModule):
    """L = lambda L(id, content) + (1 - lambda) L(user, item)."""

    def __init__(self, config: CLCRecConfig, ctx: FitContext):
        super().__init__(config, ctx)
        self.users = nn.Parameter(torch.randn(len(self.known_U), config.width) * _INITIAL)
        self.ids = nn.Parameter(torch.randn(len(self.known_I), config.width) * _INITIAL)
        self.items = ContentTower(ctx, "item", self.known_I, config)

    def forward(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        config, item_P = self.config, batch["item_P"]
        items_N, place = torch.cat([item_P, self.drawn(config.negatives)]).unique(return_inverse=True)
        own_P = place[: len(item_P)]
        ids_ND, content_ND = self.ids[items_N], self.items(items_N)
        alike_PN = F.normalize(ids_ND, dim=1)[own_P] @ F.normalize(content_ND, dim=1).T / config.temperature
        stands_N1 = torch.rand_like(ids_ND[:, :1]) < config.hybrid
        taken_ND = torch.where(stands_N1, content_ND, ids_ND)
        chosen_PN = self.users[batch["user_P"]] @ taken_ND.T / config.temperature
        alike, chosen = (F.cross_entropy(one, own_P) for one in (alike_PN, chosen_PN))
        loss = config.contrast * alike + (1 - config.contrast) * chosen
        return loss, {"alike": alike.item(), "chosen": chosen.item()}

    def vectors(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.users, self.ids

    def encoding(self) -> LayeredItems:
        return self.items.learnt()


class CLCRec(ContentModel[CLCRecConfig]):
    """After Wei et al., "Contrastive Learning for Cold-Start Recommendation" (MM 2021); several tables stand side by
    side, each of length one.

    Departures: negatives are drawn for a step, not for a pair; one temperature for both losses.
    """

    Config = CLCRecConfig
    Module = CLCRecModule

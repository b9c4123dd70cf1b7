"""SEMCo-like: content alone, trained so that items of one user are alike, by a sparse softmax."""

from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field

from recsys.layered_items import LayeredItems
from recsys.models.base import FitContext
from recsys.models.batching import batches_of_rows
from recsys.models.coldstart.content import ContentConfig, ContentModel, ContentModule, ContentTower
from recsys.models.coldstart.entmax import entmax_loss
from recsys.profile import Profile


class SEMCoConfig(ContentConfig):
    """Settings of the pure-content model."""

    alpha: Annotated[float, Field(gt=1, le=2)] = 1.5
    """Of entmax: near 1 a softmax, 2 the sparsest."""
    temperature: Annotated[float, Field(gt=0)] = 0.1
    """Of the cosines."""
    half_life: Annotated[float, Field(gt=0)] | None = 10.0
    """Events after which what a user did counts half; None = all alike."""


class SEMCoModule(ContentModule):
    """One expert a table, weighed by a gate: which modality speaks for an item is learnt."""

    def __init__(self, config: SEMCoConfig, ctx: FitContext):
        super().__init__(config, ctx)
        self.items = ContentTower(ctx, "item", self.known_I, config, apart=True, unit_length=True)

    def forward(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        item_P, other_P = batch["item_P"], batch["other_P"]
        needed = torch.cat([other_P, self.drawn(self.config.negatives)]).unique()
        rows, place = torch.cat([needed, item_P]).unique(return_inverse=True)
        vectors_RD = self.items(rows)
        needed_ND, own_PD = vectors_RD[place].split([len(needed), len(item_P)])
        logits_PN = own_PD @ needed_ND.T / self.config.temperature
        labels_P = torch.searchsorted(needed, other_P)
        own_PN = needed == item_P[:, None]  # the item itself is no answer, unless it is the other one
        own_PN = own_PN.scatter(1, labels_P[:, None], False)
        return entmax_loss(logits_PN.masked_fill(own_PN, -torch.inf), labels_P, self.config.alpha), {}

    def vectors(self) -> tuple[torch.Tensor, torch.Tensor]:
        items_ID = self.items(torch.arange(len(self.known_I), device=self.draw_I.device))
        return items_ID[:0], items_ID

    def encoding(self) -> LayeredItems:
        return self.items.learnt()


class SEMCo(ContentModel[SEMCoConfig]):
    """After the abstract of SEMCo (arXiv 2604.12990): sampled entmax over items that share users, modality attention,
    no alignment with vectors of a warm model. What the abstract leaves open is ours.

    score(j) = weighted mean over history items i of cos(i, j). An empty history asks with the mean of what training
    users took.
    """

    Config = SEMCoConfig
    Module = SEMCoModule

    def setup(self, ctx: FitContext) -> None:
        super().setup(ctx)
        self.counts_I, self.log = ctx.train.item_counts(), ctx.train

    def batches(self, epoch: int, rank: int = 0, world: int = 1) -> Iterator[dict[str, torch.Tensor]]:
        """Each item of a user with another of the same user, drawn anew every epoch; alone, with itself."""
        size, log = self.config.batch_size, self.log
        start_U, length_U = log.indptr_U1[:-1], np.diff(log.indptr_U1)
        for place, taken in batches_of_rows(len(self.pairs_N2), size, self.seed, epoch, rank, world):
            user_P, item_P = self.pairs_N2[taken].T
            drawn_P = np.random.default_rng([self.seed, epoch, place, rank]).random(len(user_P))
            other_P = log.item_N[start_U[user_P] + (drawn_P * length_U[user_P]).astype(np.int64)]
            found = {"item_P": item_P, "other_P": other_P}
            yield {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in found.items()}

    @property
    def profile_settings(self) -> dict[str, Any]:
        return {"half_life": self.config.half_life}

    def profile(self, users_UD: np.ndarray, items_ID: np.ndarray) -> Profile:
        mean_D = (self.counts_I @ items_ID / max(self.counts_I.sum(), 1)).astype(np.float32)
        return Profile(items_ID, mean_D, **self.profile_settings)

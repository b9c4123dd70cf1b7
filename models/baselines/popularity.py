"""Popularity: the number of training interactions of an item. The floor of every report."""

from collections.abc import Mapping
from typing import Annotated

import numpy as np
from pydantic import Field

from recsys.config import Config
from recsys.models.base import FitContext, Model
from recsys.schema import Form, Queries, legal_width, pick


class PopularityConfig(Config):
    """Settings of Popularity."""

    window_days: Annotated[float, Field(gt=0)] | None = None
    """Count only the last so many days before the end of training; None counts everything."""


class Popularity(Model[PopularityConfig]):
    """Every query gets the same list: training counts, unseen items last."""

    Config = PopularityConfig
    uses_history = False

    def fit(self, ctx: FitContext) -> None:
        items = ctx.train.item_N
        if self.config.window_days is not None:
            since = ctx.train.time_N.max() - self.config.window_days * 86_400
            items = items[ctx.train.time_N >= since]
        self.scores_I = np.bincount(items, minlength=ctx.num_items).astype(np.float32)

    def score(
        self, queries: Queries, candidates: np.ndarray | None = None, width: int | None = None
    ) -> np.ndarray:
        legal_width(width, self.widths)
        return pick(np.broadcast_to(self.scores_I, (len(queries), len(self.scores_I))), candidates)

    def state(self) -> dict[str, np.ndarray]:
        return {"scores": self.scores_I}

    @classmethod
    def from_state(cls, config: PopularityConfig, state: Mapping[str, np.ndarray]) -> "Popularity":
        model = cls(config)
        model.scores_I = state["scores"]
        return model

    def serving_form(self) -> Form:
        return Form("popularity", {"scores": self.scores_I})

"""Popularity: the number of training interactions of an item, of late or in a segment. The floor of every report."""

from collections.abc import Mapping
from typing import Annotated, Self

import numpy as np
from pydantic import Field

from recsys.config import Config
from recsys.errors import ModelError
from recsys.fields import Categorical, Fields
from recsys.models.base import FitContext, Model
from recsys.schema import Form, Queries, legal_width
from recsys.scoring import segment_scores


class PopularityConfig(Config):
    """Settings of Popularity."""

    window_days: Annotated[float, Field(gt=0)] | None = None
    """Count only the last so many days before the end of training; None counts everything."""
    tables: Annotated[tuple[str, ...], Field(max_length=1)] = ()
    """A table of typed user fields (`entity = "user"`): users with the same values in all its categorical fields are a
    segment; none = everybody alike."""
    smoothing: Annotated[float, Field(ge=0)] = 100.0
    """Interactions of the whole that a segment's own counts are mixed with."""


class Popularity(Model[PopularityConfig]):
    """Training counts, unseen items last: one list for all, or one a segment.

    scores_SI: row 0 is everybody's, for unknown users and those without any of the fields; row s that of segment s:
    its own counts + smoothing * the item's share of all counts. segment_U: row of each user, None without segments.
    """

    Config = PopularityConfig
    uses_history = False
    version = 2

    def fit(self, ctx: FitContext) -> None:
        log = ctx.train
        if self.config.window_days is not None:
            log = log.take(log.time_N >= log.time_N.max() - self.config.window_days * 86_400)
        overall_I = np.bincount(log.item_N, minlength=ctx.num_items)
        self.scores_SI, self.segment_U = overall_I[None].astype(np.float32), None
        if not self.config.tables:
            return
        self.segment_U = self._segments(ctx)
        shape = (int(self.segment_U.max(initial=0)) + 1, ctx.num_items)
        cells = self.segment_U[log.user_N] * ctx.num_items + log.item_N
        own_SI = np.bincount(cells, minlength=shape[0] * shape[1]).reshape(shape)
        share_I = overall_I / max(overall_I.sum(), 1)
        own_SI = (own_SI + self.config.smoothing * share_I).astype(np.float32)
        self.scores_SI = np.concatenate([self.scores_SI, own_SI[1:]])

    def _segments(self, ctx: FitContext) -> np.ndarray:
        """[U]; 0 = none. Raises ModelError for a table without categorical user fields."""
        name = self.config.tables[0]
        table = ctx.tables.get(("user", name))
        known = table.fields.values() if isinstance(table, Fields) else ()
        fields = [field for field in known if isinstance(field, Categorical)]
        if not fields:
            raise ModelError(
                f"{name!r} has no categorical fields of users",
                fix='a table of kind = "metadata" and entity = "user"',
            )
        codes = [np.where(field.present_E, field.codes_E, -1) for field in fields]
        present = [field.present_E for field in fields]
        _, segment_U = np.unique(np.stack(codes, axis=1), axis=0, return_inverse=True)
        return np.where(np.any(present, axis=0), segment_U.ravel() + 1, 0)

    def score(
        self, queries: Queries, candidates: np.ndarray | None = None, width: int | None = None
    ) -> np.ndarray:
        legal_width(width, self.widths)
        return segment_scores(self.scores_SI, self.segment_U, queries, candidates)

    def state(self) -> dict[str, np.ndarray]:
        return {"scores": self.scores_SI} | ({"segments": self.segment_U} if self.config.tables else {})

    @classmethod
    def from_state(cls, config: PopularityConfig, state: Mapping[str, np.ndarray]) -> Self:
        model = cls(config)
        model.scores_SI, model.segment_U = state["scores"], state.get("segments")
        return model

    def serving_form(self) -> Form:
        return Form("popularity", self.state())

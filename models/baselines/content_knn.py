"""Content kNN: what resembles the history, by the content of items alone. The floor of every cold-start report."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Self

import numpy as np
from pydantic import Field

from recsys.config import Config
from recsys.features.whitening import Whitening
from recsys.item_encoding import ItemEncoding, TableMap, unit
from recsys.models.base import FitContext
from recsys.models.vectors import VectorModel, Vectors
from recsys.profile import Profile
from recsys.schema import Dense, Form


class ContentKNNConfig(Config):
    """Settings of content kNN."""

    tables: Annotated[tuple[str, ...], Field(min_length=1)] = ("text",)
    """Item feature tables; several are fused."""
    dims: Annotated[int, Field(ge=1)] = 256
    """Most principal dimensions kept of each table."""
    whiten: bool = False
    """Give all kept dimensions the same variance."""
    half_life: Annotated[float, Field(gt=0)] | None = 10.0
    """Events after which what a user did counts half; None = all alike."""


class ContentKNN(VectorModel[ContentKNNConfig]):
    """score(j) = weighted mean over history items i of cos(i, j), centred on the training items.

    Fused, the vectors of an item's present tables, each of length one, stand side by side and are scaled to length one
    together: a table that one of two items lacks says nothing about them. An empty history asks with the mean of what
    training users took; popularity, scaled to at most 1e-4, decides among equals.
    """

    Config = ContentKNNConfig
    scores_cold_items = True

    @property
    def widths(self) -> tuple[int, ...]:
        return (self.vectors.items_ID.shape[1],) if hasattr(self, "loaded") else ()

    @property
    def profile_settings(self) -> dict[str, Any]:
        return {"half_life": self.config.half_life}

    def fit(self, ctx: FitContext) -> None:
        counts_I = ctx.train.item_counts()
        tables = {name: ctx.item_table(name) for name in self.config.tables}
        self.whitenings = {
            name: Whitening.fit(table, counts_I > 0, self.config.dims, scaled=self.config.whiten)
            for name, table in tables.items()
        }
        items_ID = self.encode_items(tables)
        mean_D = (counts_I @ items_ID / max(counts_I.sum(), 1)).astype(np.float32)
        prior_I = (1e-4 * counts_I / max(counts_I.max(), 1)).astype(np.float32)
        self.loaded = Vectors(Profile(items_ID, mean_D, **self.profile_settings), items_ID, prior_I)

    def encode_items(self, feature_rows: Mapping[str, Dense]) -> np.ndarray:
        """[N, D] vectors of items from their content; zeros where an item has none."""
        parts = []
        for name, whitening in self.whitenings.items():
            table = feature_rows[name]
            part_NK = whitening(table.values_EF, table.present_E)
            part_NK[~table.present_E] = 0
            parts.append(unit(part_NK))
        return unit(np.concatenate(parts, axis=1))

    def serving_form(self) -> Form:
        tables = {
            name: TableMap(
                whitening.mean_F, whitening.map_FK, np.zeros(whitening.map_FK.shape[1], np.float32)
            )
            for name, whitening in self.whitenings.items()
        }
        return replace(super().serving_form(), encoding=ItemEncoding("unit", tables))

    def state(self) -> dict[str, np.ndarray]:
        arrays = super().state()
        for name, whitening in self.whitenings.items():
            arrays |= whitening.state(f"whitening.{name}")
        return arrays

    @classmethod
    def from_state(cls, config: ContentKNNConfig, state: Mapping[str, np.ndarray]) -> Self:
        model = super().from_state(config, state)
        model.whitenings = {name: Whitening.from_state(state, f"whitening.{name}") for name in config.tables}
        return model

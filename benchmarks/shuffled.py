"""A control: the rows of a dense table dealt out to other items. A model that gains from it gains from no content.

In a recipe, with this folder on the path: kind = "shuffled:Shuffled", of = "text".
"""

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from recsys.dataset import Dataset
from recsys.features.base import ExtractorConfig, FittedExtractor
from recsys.features.table import FeatureTable, Table
from recsys.splits import Split


class ShuffledConfig(ExtractorConfig):
    """Which table, and how it is dealt."""

    of: str
    """Name of a dense table of [features]."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the permutation."""


class Shuffled(FittedExtractor[ShuffledConfig]):
    """The same vectors, each present one at another item."""

    modality = "shuffled"
    Config = ShuffledConfig

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.config.of,)

    def identity(self) -> Mapping[str, Any]:
        return {"extractor": "shuffled", "of": self.config.of, "seed": self.config.seed}

    def table(
        self, name: str, dataset: Dataset, split: Split | None, tables: Mapping[str, Table]
    ) -> FeatureTable:
        source = tables[self.config.of]
        present = np.flatnonzero(source.present_E)
        values_EF = source.values_EF.copy()
        values_EF[present] = values_EF[np.random.default_rng(self.config.seed).permutation(present)]
        manifest = dict(self.identity()) | {"modality": self.modality, "split_id": split.id}
        return FeatureTable(
            source.entity, name, source.ids, source.hashes_E, manifest, values_EF, source.present_E
        )

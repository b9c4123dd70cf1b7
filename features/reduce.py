"""A dense table brought to fewer dimensions: PCA or whitening, fitted on the train part."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from recsys.dataset import Dataset
from recsys.errors import FeatureError
from recsys.features.base import ExtractorConfig, FittedExtractor, Served
from recsys.features.metadata import trained_ids
from recsys.features.table import FeatureTable, Table
from recsys.features.whitening import Whitening
from recsys.splits import Split


class ReduceConfig(ExtractorConfig):
    """Which table, and to how many dimensions."""

    of: str
    """Name of a dense table of [features]."""
    dims: Annotated[int, Field(ge=1)] = 256
    """Dimensions that are kept at most; directions of next to no variance go as well."""
    whiten: bool = False
    """Give every direction unit variance; off = PCA."""


class ReduceExtractor(FittedExtractor[ReduceConfig]):
    """The leading directions of the rows that training saw, applied to every row; absent rows stay absent."""

    modality = "reduced"
    Config = ReduceConfig

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.config.of,)

    def identity(self) -> Mapping[str, Any]:
        return {"extractor": "reduce"} | self.config.model_dump(
            mode="json", exclude=set(ExtractorConfig.model_fields)
        )

    def table(
        self, name: str, dataset: Dataset, split: Split | None, tables: Mapping[str, Table]
    ) -> FeatureTable:
        """Raises FeatureError where the table named by `of` is not dense or of another entity."""
        source = tables[self.config.of]
        if not isinstance(source, FeatureTable) or source.entity != self.config.entity:
            raise FeatureError(
                f"table {self.config.of!r} is no dense table of {self.config.entity}s",
                where=f"features.{name}.of",
                expected="a table of vectors",
            )
        reduction, fitted_E = self._fitted(source, split)
        values_EF = reduction(source.values_EF, source.present_E)
        values_EF[~source.present_E] = np.nan
        manifest = {"modality": source.manifest.get("modality", self.modality)} | dict(self.identity())
        manifest |= {
            "source": dict(source.manifest),
            "split_id": split.id,
            "fitted_rows": int(fitted_E.sum()),
        }
        table = FeatureTable(
            source.entity, name, source.ids, source.hashes_E, manifest, values_EF, source.present_E
        )
        return table.hidden(self.config.hide, self.config.hide_seed) if self.config.hide else table

    def served(self, table: Table, split: Split, source: Callable[[str], Table]) -> Served:
        """Fitted once more. Raises FeatureError where that gives another table than the one that is there."""
        read = source(self.config.of)
        reduction, _ = self._fitted(read, split)
        there_E = table.present_E & read.present_E
        expected_EK, again_EK = table.values_EF[there_E], reduction(read.values_EF, there_E)[there_E]
        if expected_EK.shape != again_EK.shape or not np.allclose(
            expected_EK, again_EK, rtol=1e-4, atol=1e-4
        ):
            raise FeatureError(
                f"fitted again it is not the reduction that made the table {table.name!r}",
                where=f"features.{table.name}", fix="remove the table's box, which another machine may have made",
            )  # fmt: skip
        settings = self.config.model_dump(mode="json", exclude_unset=True)
        return Served(settings, {"of": self.config.of}, None, reduction.files())

    def _fitted(self, source: FeatureTable, split: Split) -> tuple[Whitening, np.ndarray]:
        """The reduction, and the mask of the rows that training saw."""
        fitted_E = source.ids.is_in(trained_ids(split, source.entity).implode()).to_numpy()
        dense = source.align(source.ids)
        return Whitening.fit(dense, fitted_E, self.config.dims, scaled=self.config.whiten), fitted_E

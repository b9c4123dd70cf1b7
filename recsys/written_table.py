"""Text features of items whose text may be missing: [features.NAME] kind = "written_text"."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from recsys import schema
from recsys.dataset import Dataset
from recsys.errors import FeatureError
from recsys.features.base import ExtractorConfig, FittedExtractor, content_hash
from recsys.features.table import FeatureTable, Table
from recsys.features.text.extractor import TextConfig, TextExtractor, template_columns
from recsys.splits import Split
from recsys.written_text import WriterRun


class WrittenTextConfig(ExtractorConfig):
    """Who writes, and what encodes all texts."""

    entity: Literal["item"] = "item"
    """Items alone have writers."""
    run: Path
    """Folder of a trained writer."""
    text: TextConfig = TextConfig(template="{title}. {category}. {text}")
    """Encoder and template, which names the written column."""


class WrittenTextExtractor(FittedExtractor[WrittenTextConfig]):
    """Vectors of a template in which missing texts are written first. The manifest's "rows" has a letter for each item:
    o = its own text, w = a written one, - = none."""

    modality = "text"
    Config = WrittenTextConfig

    @cached_property
    def run(self) -> WriterRun:
        return WriterRun.open(self.config.run)

    @cached_property
    def encoder(self) -> TextExtractor:
        return TextExtractor(self.config.text)

    @property
    def sources(self) -> tuple[str, ...]:
        return self.run.recipe.tables

    @property
    def needs_split(self) -> bool:
        """A writer learns from content alone."""
        return False

    def identity(self) -> Mapping[str, Any]:
        column = self.run.recipe.column
        if column not in template_columns(self.config.text.template):
            raise FeatureError(
                f"the template leaves out {column!r}, which is written", fix="put it in braces"
            )
        return self.encoder.identity() | {"extractor": "written_text", "written_by": self.run.identity()}

    def table(
        self, name: str, dataset: Dataset, split: Split | None, tables: Mapping[str, Table]
    ) -> FeatureTable:
        identity, items = dict(self.identity()), dataset.items
        written = self.run.write(dataset, tables)
        frame = self.run.filled(dataset, written)
        contents = self.encoder.contents(frame, dataset.media_root)
        has_E = frame[self.run.recipe.column].is_not_null().to_list()
        letters = "".join("w" if row in written else "o" if has else "-" for row, has in enumerate(has_E))
        present_E = np.array([content is not None for content in contents])
        if not present_E.any():
            raise FeatureError("no item has a text", where=f"features.{name}")
        found_NF = self.encoder.encode([content for content in contents if content is not None])
        values_EF = np.full((len(contents), found_NF.shape[1]), np.nan, np.float32)
        values_EF[present_E] = found_NF
        hashes_E = tuple("" if content is None else content_hash(content) for content in contents)
        manifest = {"modality": self.modality} | identity | {"rows": letters}
        table = FeatureTable("item", name, items[schema.ITEM], hashes_E, manifest, values_EF, present_E)
        return table.hidden(self.config.hide, self.config.hide_seed) if self.config.hide else table

"""A trained item embedder on disk: a folder that gives vectors of any item.

run.json              recipe, what model, features and language model are, pairs, teacher, split, how training went
weights.safetensors   what was learnt; a frozen language model is named by its hash, not kept
embeddings/           vectors by the hash of what they were made from
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recsys.dataset import Dataset
from recsys.embedder_recipe import embedder_of
from recsys.errors import FeatureError, ModelError
from recsys.features.language import open_language_model
from recsys.features.table import FeatureTable, Table
from recsys.features.text.extractor import TextConfig, TextExtractor
from recsys.files import digest
from recsys.learnt_run import check_language, read_run, read_weights, run_files
from recsys.models.embedders.contract import Embedder, ItemContent
from recsys.models.notellm2.language import LanguageModel
from recsys.schema import Dense

VERSION = 2
"""Of what the folder of a run holds."""
KIND = "embedder"
_OF_ROWS = "rows"
"""What a manifest says of a data set's rows, and not of what made them."""


def item_content(dataset: Dataset, template: str | None, tables: Mapping[str, Table]) -> ItemContent:
    """Texts and vectors of all items of a Dataset, in its order. template: None = texts are not read. tables: by the
    names that a model knows them under."""
    ids = dataset.items["item_id"]
    dense = {}
    for name, table in tables.items():
        if not isinstance(table, FeatureTable) or table.entity != "item":
            held = "typed fields" if table.entity == "item" else f"rows of {table.entity}s"
            raise FeatureError(f"table {name!r} holds {held}", expected="a table of vectors of items")
        dense[name] = table.align(ids)
    return ItemContent(_texts(dataset.items, template), dense)


def _texts(items: pl.DataFrame, template: str | None) -> list[str | None]:
    if template is None:
        return [None] * len(items)
    return list(TextExtractor(TextConfig(template=template)).contents(items, None))


def language_model(name: str) -> LanguageModel:
    """By name, in float32. Raises FeatureError where it cannot be had."""
    found, tokenizer = open_language_model(name)
    return LanguageModel(found.model, tokenizer, found.facts)


def made_by(table: Table) -> dict[str, Any]:
    """What made a table, whatever the rows: its manifest without what it says of them."""
    return {name: value for name, value in table.manifest.items() if name != _OF_ROWS}


@dataclass(frozen=True)
class EmbedderRun:
    """facts: run.json."""

    folder: Path
    facts: Mapping[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> "EmbedderRun":
        """Reads the facts alone. Raises FeatureError where the folder is no run, or another version's."""
        run = cls(Path(folder), read_run(Path(folder), KIND, VERSION))
        if run.facts["model_version"] != run.untrained.version:
            raise FeatureError(
                f"made by version {run.facts['model_version']} of {run.name!r}", where=folder,
                expected=f"version {run.untrained.version}", fix="train it again",
            )  # fmt: skip
        return run

    @property
    def name(self) -> str:
        """The model's."""
        return self.facts["model"]

    @property
    def tables(self) -> dict[str, dict[str, Any]]:
        """Kind and settings of the tables that the model reads, and of those that these stand on, by name."""
        return self.facts["recipe"]["tables"]

    @property
    def template(self) -> str | None:
        """Of the texts that the model reads; None = it reads none."""
        return self.facts["recipe"]["template"]

    @cached_property
    def untrained(self) -> Embedder:
        """The model without its weights: what it reads and gives."""
        return embedder_of(self.name, self.facts["recipe"]["config"], where=self.folder)

    @property
    def split_id(self) -> str | None:
        """Of the split that what was learnt rests on: pairs, teacher or features."""
        return self.facts["split_id"]

    def identity(self) -> dict[str, Any]:
        """What a vector depends on besides the item: no paths."""
        facts = self.facts
        read = ("model", "model_version", "weights", "features")
        found = {"extractor": "embedder"} | {name: facts[name] for name in read}
        found |= {"config": facts["recipe"]["config"], "pairs": facts["pairs"]["fingerprint"]}
        if self.untrained.reads_texts:
            found |= {"language": facts["language"], "template": self.template}
        return found

    def content(self, dataset: Dataset, tables: Mapping[str, Table]) -> ItemContent:
        """What the model reads of all items of a Dataset. tables: by the names that it knows them under.

        Raises FeatureError where a table was made by another extractor than the one the run learnt with.
        """
        for name in self.untrained.tables:
            if digest(made_by(tables[name])) != digest(self.facts["features"][name]):
                raise FeatureError(
                    f"table {tables[name].name!r} is not made as the one that the run learnt with",
                    where=self.folder,
                    expected=f"kind and settings {self.tables[name]}",
                )
        read = {name: tables[name] for name in self.untrained.tables}
        return self._fitting(item_content(dataset, self.template, read))

    def new_content(self, items: pl.DataFrame, rows: Mapping[str, Dense]) -> ItemContent:
        """The same of items of no Dataset. items: a row each, with the template's columns. rows: in that order, by the
        names that the model knows the tables under; what made them is not checked."""
        read = {name: rows[name] for name in self.untrained.tables}
        return self._fitting(ItemContent(_texts(items, self.template), read))

    def _fitting(self, content: ItemContent) -> ItemContent:
        widths = self.facts["widths"]
        dense = {name: _of_width(one, widths[name]) for name, one in content.tables.items()}
        return ItemContent(content.texts, dense)

    def files(self) -> dict[str, bytes]:
        """What makes the same vectors elsewhere, as `open` finds it in a folder: without the folders of the runs that
        this one stands on. Raises FeatureError where the weights were changed."""
        tables = {
            name: {key: value for key, value in settings.items() if key != "run"}
            for name, settings in self.tables.items()
        }
        facts = dict(self.facts) | {"recipe": self.facts["recipe"] | {"tables": tables}}
        return run_files(self.folder, facts)

    @cached_property
    def model(self) -> Embedder:
        """Loaded with the language model that it reads by. Raises FeatureError where a hash is another than when it was
        trained."""
        weights, untrained = read_weights(self.folder, self.facts), self.untrained
        opens = self._language if untrained.reads_texts else None
        try:
            return type(untrained).from_state(untrained.config, weights, opens)
        except ModelError as error:
            raise FeatureError(str(error), where=self.folder, fix="train it again") from None

    def _language(self) -> LanguageModel:
        name = self.facts["recipe"]["language"]
        found = language_model(name)
        check_language(self.facts, found.facts, name)
        return found


def _of_width(one: Dense, width: int) -> Dense:
    """A table that has no row at all has lost its width."""
    if one.width == width or one.present_E.any():
        return one
    return Dense(np.full((len(one.present_E), width), np.nan, np.float32), one.present_E)

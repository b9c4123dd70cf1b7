"""A trained embedder as a maker of feature tables: [features.NAME] kind = "embedder"."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from pydantic import Field

from recsys.dataset import Dataset
from recsys.embedder_run import EmbedderRun
from recsys.errors import ConfigError, FeatureError
from recsys.features.base import ExtractorConfig, FittedExtractor, Served
from recsys.features.store import Store
from recsys.features.table import FeatureTable, Table
from recsys.files import digest
from recsys.models.embedders.contract import IMAGE, TEXT, ItemContent, unit
from recsys.progress import track
from recsys.schema import Dense
from recsys.splits import Split

_CHUNK = 512
_ATTEMPTS = 3
_LETTERS = {(True, True): "b", (True, False): "t", (False, True): "i", (False, False): "-"}


class EmbedderTableConfig(ExtractorConfig):
    """Which run, and which of its vectors."""

    entity: Literal["item"] = "item"
    """Items alone have embeddings."""
    run: Path
    """Folder of a trained run."""
    vector: Literal["joint", "visual"] = "joint"
    """joint: of all that the model reads. visual: read behind the visual note, for variants of NoteLLM-2 that have
    one."""
    inputs: Literal["both", "text", "image"] = "both"
    """What the model is shown; text or image alone is for telling what it learnt from which."""
    width: int | None = Field(default=None, ge=1)
    """Nested width, one of the run's; None = the widest."""
    of: dict[str, str] = Field(default_factory=dict)
    """Names that the run knows tables under -> tables of [features]; those that are left out have the run's names."""
    batch_size: int = Field(default=64, ge=1)
    """Items encoded at once."""


class EmbedderExtractor(FittedExtractor[EmbedderTableConfig]):
    """Vectors of length 1 for every item that has something of what the run reads.

    Learnt on one split's train part, they are refused under another split; a run that learnt from given pairs rests on
    none. What was encoded is kept in the run's folder, by the hash of text and features. The manifest's "rows" has a
    letter for each item: b = both, t = text, i = image, - = neither; a table is image where its name begins so.
    """

    modality = "embedding"
    Config = EmbedderTableConfig

    @cached_property
    def run(self) -> EmbedderRun:
        return EmbedderRun.open(self.config.run)

    @cached_property
    def _names(self) -> dict[str, str]:
        """The run's name of every table -> its name in [features]."""
        read, of = self.run.untrained.tables, self.config.of
        unread = [name for name in of if name not in read]
        if unread:
            raise ConfigError(
                f"of names {unread[0]!r}", where=self.config.run, expected=f"some of: {', '.join(read)}"
            )
        return {name: of.get(name, name) for name in read}

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self._names.values()))

    @property
    def needs_split(self) -> bool:
        """Nothing is fitted here: the run brings its split's id."""
        return False

    def identity(self) -> Mapping[str, Any]:
        config, model = self.config, self.run.untrained
        if config.width not in (None, *model.widths):
            raise FeatureError(f"width {config.width}", expected=f"one of: {model.widths}")
        if config.vector not in model.vectors:
            raise FeatureError(
                f"the run has no vector {config.vector!r}", where=config.run,
                expected=" or ".join(map(repr, model.vectors)),
            )  # fmt: skip
        return self._encoding() | {"width": config.width or model.widths[-1]}

    def _encoding(self) -> dict[str, Any]:
        return self.run.identity() | {"vector": self.config.vector, "inputs": self.config.inputs}

    def table(
        self, name: str, dataset: Dataset, split: Split | None, tables: Mapping[str, Table]
    ) -> FeatureTable:
        """Raises FeatureError where the run was trained under another split, or with other features."""
        run, config, identity = self.run, self.config, dict(self.identity())
        if split is not None and run.split_id not in (None, split.id):
            raise FeatureError(
                f"the run was trained under split {run.split_id[:12]}", where=config.run, expected=split.id[:12],
                fix="train it under this split",
            )  # fmt: skip
        sources = {known_as: tables[other] for known_as, other in self._names.items()}
        content = run.content(dataset, sources).only(config.inputs)
        seen = zip(content.has(TEXT), content.has(IMAGE), strict=True)
        letters = "".join(_LETTERS[bool(text), bool(image)] for text, image in seen)
        present_E = np.array([letter != "-" for letter in letters], bool)
        if config.required and not present_E.any():
            raise FeatureError("no item has anything that the run reads", where=f"features.{name}")
        ids = dataset.items["item_id"]
        read = [
            _hashes(content.tables[known_as].present_E, one, one.places(ids))
            for known_as, one in sources.items()
        ]
        hashes_E = tuple(
            _hash(text, [hashes[row] for hashes in read]) if present_E[row] else ""
            for row, text in enumerate(content.texts)
        )
        values_EF = self._cut(self._vectors(content, hashes_E))
        manifest = {"modality": self.modality} | identity | {"rows": letters}
        if run.split_id is not None:
            manifest["split_id"] = run.split_id
        table = FeatureTable("item", name, ids, hashes_E, manifest, values_EF, present_E)
        return table.hidden(config.hide, config.hide_seed) if config.hide else table

    def rows(self, items: pl.DataFrame, tables: Mapping[str, Dense]) -> np.ndarray:
        """[N, D] of new items, NaN where one has nothing of what the run reads. items and tables: as
        `EmbedderRun.new_content` takes them."""
        content = self.run.new_content(items, tables).only(self.config.inputs)
        there = np.flatnonzero(content.has(TEXT) | content.has(IMAGE))
        width = self.config.width or self.run.untrained.widths[-1]
        values_NF = np.full((len(items), width), np.nan, np.float32)
        if len(there):
            found = self.run.model.encode(content.take(there), self.config.batch_size)
            values_NF[there] = self._cut(found[self.config.vector])
        return values_NF

    def served(self, table: Table, split: Split, source: Callable[[str], Table]) -> Served:
        """The run itself, without what it embedded. Raises FeatureError where its weights were changed."""
        settings = self.config.model_dump(mode="json", exclude_unset=True, exclude={"run"})
        return Served(settings, self._names, self.run.template, self.run.files())

    def _cut(self, values_EF: np.ndarray) -> np.ndarray:
        return values_EF if self.config.width is None else unit(values_EF[:, : self.config.width])

    def _vectors(self, content: ItemContent, hashes_E: Sequence[str]) -> np.ndarray:
        """[E, D], NaN where there is nothing; what the store lacks is encoded, chunk by chunk."""
        rows = {value: row for row, value in enumerate(hashes_E) if value}  # equal contents count once
        if not rows:
            return np.full((len(hashes_E), self.run.untrained.widths[-1]), np.nan, np.float32)
        folder = self.run.folder / "embeddings" / digest(self._encoding())[:16]
        with Store.opened(folder) as kept:
            for _ in range(_ATTEMPTS):
                lacking = [value for value in rows if value not in kept]
                for start in track(range(0, len(lacking), _CHUNK), "embedding"):
                    chunk = lacking[start : start + _CHUNK]
                    some = content.take(np.array([rows[value] for value in chunk]))
                    found = self.run.model.encode(some, self.config.batch_size)[self.config.vector]
                    kept.commit(chunk, found, {}, where="embeddings")
                read = kept.read(list(hashes_E))
                if read is not None:  # else a chunk was damaged, and the store lacks its contents now
                    return read[0]
        raise FeatureError("what is written here does not come back", where=folder, fix="check the disk")


def _hashes(present_E: np.ndarray, table: Table, row_E: np.ndarray) -> list[str]:
    """Content hash of every item's row, "" where it is absent."""
    return [table.hashes_E[row] if there else "" for there, row in zip(present_E, row_E, strict=True)]


def _hash(text: str | None, rows: Sequence[str]) -> str:
    told = "" if text is None else f"text {text}"
    return hashlib.sha256("\0".join([told, *rows]).encode()).hexdigest()[:32]

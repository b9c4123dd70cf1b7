"""A trained embedder as a maker of feature tables: [features.NAME] kind = "notellm2"."""

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from recsys.dataset import Dataset
from recsys.embedder_run import EmbedderRun, item_content
from recsys.errors import FeatureError
from recsys.features.base import ExtractorConfig, FittedExtractor
from recsys.features.store import Store
from recsys.features.table import FeatureTable, Table
from recsys.files import digest
from recsys.models.embedders.contract import ItemContent
from recsys.progress import track
from recsys.splits import Split

_CHUNK = 512
_ATTEMPTS = 3
_LETTERS = {(True, True): "b", (True, False): "t", (False, True): "i", (False, False): "-"}


class NoteLLM2TableConfig(ExtractorConfig):
    """Which run, and which of its vectors."""

    entity: Literal["item"] = "item"
    """Items alone have embeddings."""
    run: Path
    """Folder of a trained run."""
    vector: Literal["joint", "visual"] = "joint"
    """joint: of picture and text. visual: read behind the visual note, for variants that have one."""
    inputs: Literal["both", "text", "image"] = "both"
    """What the model is shown; text or image alone is for telling what it learnt from which."""
    width: int | None = Field(default=None, ge=1)
    """Nested width, one of the run's; None = the widest."""
    of: str | None = None
    """The table of [features] with the visual features; None = the name that the run knows it under."""
    batch_size: int = Field(default=64, ge=1)
    """Items encoded at once."""


class NoteLLM2Extractor(FittedExtractor[NoteLLM2TableConfig]):
    """Vectors of length 1 for every item that has a text or a picture.

    Learnt on one split's train part, they are refused under another split; a run that learnt from given pairs rests on
    none. What was encoded is kept in the run's folder, by the hash of text and visual features.
    """

    modality = "notellm2"
    Config = NoteLLM2TableConfig

    @cached_property
    def run(self) -> EmbedderRun:
        return EmbedderRun.open(self.config.run)

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.config.of or self.run.table[0],)

    @property
    def needs_split(self) -> bool:
        """Nothing is fitted here: the run brings its split's id."""
        return False

    def identity(self) -> Mapping[str, Any]:
        config = self.config
        if config.width not in (None, *self.run.config.widths):
            raise FeatureError(f"width {config.width}", expected=f"one of: {self.run.config.widths}")
        if config.vector == "visual" and not self.run.config.micl:
            raise FeatureError(
                f"variant {self.run.config.variant!r} has no visual vector", expected="vector = 'joint'"
            )
        return self._encoding() | {"width": config.width or self.run.config.widths[-1]}

    def _encoding(self) -> dict[str, Any]:
        return self.run.identity() | {"vector": self.config.vector, "inputs": self.config.inputs}

    def table(
        self, name: str, dataset: Dataset, split: Split | None, tables: Mapping[str, Table]
    ) -> FeatureTable:
        """Raises FeatureError where the run was trained under another split, or with other visual features."""
        run, config, identity = self.run, self.config, dict(self.identity())
        if split is not None and run.split_id not in (None, split.id):
            raise FeatureError(
                f"the run was trained under split {run.split_id[:12]}", where=config.run, expected=split.id[:12],
                fix="train it under this split",
            )  # fmt: skip
        source = tables[self.sources[0]]
        run.check(source)
        known_as, _ = run.table
        content = item_content(dataset, run.facts["recipe"]["template"], {known_as: source}).only(
            config.inputs
        )
        ids = dataset.items["item_id"]
        row_E = source.places(ids)
        seen_E = content.tables[known_as].present_E
        inputs = "".join(
            _LETTERS[text is not None, bool(seen)] for text, seen in zip(content.texts, seen_E, strict=True)
        )
        hashes_E = tuple(
            "" if letter == "-" else _hash(text, source.hashes_E[row] if seen else "")
            for letter, text, row, seen in zip(inputs, content.texts, row_E, seen_E, strict=True)
        )
        values_EF = self._vectors(content, hashes_E)
        if config.width is not None:
            values_EF = _unit(values_EF[:, : config.width])
        manifest = {"modality": self.modality} | identity | {"rows": inputs}
        if run.split_id is not None:
            manifest["split_id"] = run.split_id
        present_E = np.array([letter != "-" for letter in inputs])
        if config.required and not present_E.any():
            raise FeatureError("no item has a text or a picture", where=f"features.{name}")
        table = FeatureTable("item", name, ids, hashes_E, manifest, values_EF, present_E)
        return table.hidden(config.hide, config.hide_seed) if config.hide else table

    def _vectors(self, content: ItemContent, hashes_E: Sequence[str]) -> np.ndarray:
        """[E, D], NaN where there is nothing; what the store lacks is encoded, chunk by chunk."""
        rows = {value: row for row, value in enumerate(hashes_E) if value}  # equal contents count once
        folder = self.run.folder / "embeddings" / digest(self._encoding())[:16]
        with Store.opened(folder) as kept:
            for _ in range(_ATTEMPTS):
                lacking = [value for value in rows if value not in kept]
                for start in track(range(0, len(lacking), _CHUNK), "embedding"):
                    chunk = lacking[start : start + _CHUNK]
                    some = content.take(np.array([rows[value] for value in chunk]))
                    found = self.run.model.encode(some, self.config.batch_size)[self.config.vector]
                    kept.commit(chunk, found, {}, where=f"{self.modality} embeddings")
                read = kept.read(list(hashes_E))
                if read is not None:  # else a chunk was damaged, and the store lacks its contents now
                    return (
                        read[0]
                        if rows
                        else np.full((len(hashes_E), self.run.config.widths[-1]), np.nan, np.float32)
                    )
        raise FeatureError("what is written here does not come back", where=folder, fix="check the disk")


def _hash(text: str | None, image: str) -> str:
    return hashlib.sha256(f"{'' if text is None else 'text ' + text}\0{image}".encode()).hexdigest()[:32]


def _unit(values_EF: np.ndarray) -> np.ndarray:
    return values_EF / np.maximum(np.linalg.norm(values_EF, axis=1, keepdims=True), 1e-12)

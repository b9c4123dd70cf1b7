"""What every extractor is: a typed config, a key that names its output exactly, and `encode`."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
import polars as pl
from pydantic import Field

from recsys.config import Config
from recsys.dataset import Dataset
from recsys.features.table import Table
from recsys.files import digest
from recsys.splits import Split


class ExtractorConfig(Config):
    """Settings that all extractors share."""

    entity: Literal["item", "user"] = "item"
    """Whose content is encoded."""
    required: bool = True
    """Stop where no row has this modality; off = go on with every row absent."""
    hide: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of present rows made absent after extraction (seed: hide_seed), for missing-modality experiments."""
    hide_seed: Annotated[int, Field(ge=0)] = 0
    """Seed of `hide`."""


ConfigT = TypeVar("ConfigT", bound=ExtractorConfig)
Content = str | Path
"""A text, or a file to read."""


class TableMaker(ABC, Generic[ConfigT]):
    """What makes a table of [features.*]: a modality, a config, an identity."""

    modality: ClassVar[str]
    Config: ClassVar[type[ExtractorConfig]]

    def __init__(self, config: ConfigT):
        self.config = config

    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """Everything a row depends on besides its content: encoder, weights hash, preprocessing, template."""


@dataclass(frozen=True)
class Served:
    """What a bundle carries so that a new item's rows in other tables become its row in this one.

    settings: of the maker, but for the folders that it reads. tables: name it knows a table under -> table of
    [features]. template: of the text that is read besides; None = none is. files: name -> content.
    """

    settings: Mapping[str, Any]
    tables: Mapping[str, str]
    template: str | None
    files: Mapping[str, bytes]


class FittedExtractor(TableMaker[ConfigT]):
    """Fitted on the train part and applied to every row: vocabularies, statistics, projections.

    Its table carries the split's id and refuses to be used under another one.
    """

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the feature tables that it stands on."""
        return ()

    @property
    def needs_split(self) -> bool:
        """False where the config says to fit on every row, for deployment; `table` then takes None."""
        return True

    @abstractmethod
    def table(self, name: str, dataset: Dataset, split: Split | None, tables: Mapping[str, Table]) -> Table:
        """The table `name`; `tables` holds those named by `sources`."""

    def served(self, table: Table, split: Split, source: Callable[[str], Table]) -> Served | None:
        """What makes rows of new items as `table` was made; None where serving can make none. source: loads one of
        `sources`."""
        return None


class Extractor(TableMaker[ConfigT]):
    """Raw content of one modality to vectors. Subclasses set `Config` and fill in the methods."""

    chunk_rows: ClassVar[int] = 512
    """Contents encoded between two commits to the store; a killed extraction repeats at most one chunk."""
    unit: bool = False
    """Vectors have length 1, and so has the mean of several that stand for one row."""
    workers: int = 0
    """Processes that decode ahead of the encoder, where files are decoded; 0 = this one. No part of a vector."""

    @abstractmethod
    def contents(
        self, rows: pl.DataFrame, media_root: Path | None
    ) -> Sequence[Content | tuple[Content, ...] | None]:
        """What every row holds: one content, several whose vectors are averaged, or None where it is missing."""

    @abstractmethod
    def encode(self, contents: Sequence[Content]) -> np.ndarray:
        """[n, F] float32. The same list gives the same bytes; may raise UnreadableContent."""

    def encode_chunks(
        self, chunks: Iterable[Sequence[Content]]
    ) -> Iterator[tuple[np.ndarray, dict[int, str]]]:
        """(vectors of the readable contents in their order, position -> why unreadable) of one chunk after the other.

        This is `encode`, again without the contents that it refuses. An extractor that can decode the next chunk
        while this one is encoded does so here; an engine that hands out single chunks calls it with a list of one.
        """
        for contents in chunks:
            vectors = np.zeros((0, 0), np.float32)
            unreadable: dict[int, str] = {}
            while kept := [position for position in range(len(contents)) if position not in unreadable]:
                try:
                    vectors = self.encode([contents[position] for position in kept])
                    break
                except UnreadableContent as error:
                    unreadable |= {kept[position]: error.reason for position in error.positions}
            yield vectors, unreadable

    def key(self) -> str:
        """Names the store of this extractor's vectors."""
        return digest(dict(self.identity()))


class UnreadableContent(Exception):
    """Some contents of a batch cannot be decoded. `positions`: which; `reason`: why, of the first."""

    def __init__(self, positions: list[int], reason: str):
        super().__init__(reason)
        self.positions, self.reason = positions, reason


def content_hash(content: Content) -> str:
    """32 hex digits naming a text, or a file's bytes."""
    data = content.encode() if isinstance(content, str) else content.read_bytes()
    return hashlib.sha256(data).hexdigest()[:32]

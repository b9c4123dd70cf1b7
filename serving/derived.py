"""Rows of tables that stand on others, for new items: by the reduction or the learnt embedder in the bundle."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from recsys.bundle import ENCODERS
from recsys.registry import load_function
from recsys.schema import Dense

Reader = Literal["torch", "vocabulary", "own", "none"]
"""What encodes raw content: an encoder that needs torch, the vocabularies in the bundle, an extractor of the user's
own; none: send vectors, or go without. Of a table that stands on others: what it takes to get there from raw content.
"""


def has_torch() -> bool:
    return find_spec("torch") is not None


@dataclass(frozen=True)
class Derived(ABC):
    """A table that stands on others. name: its own. tables: those below, by the names that it knows them under.
    template: of the text that is read besides, None = none is. folder: what the bundle carries of it."""

    name: str
    settings: Mapping[str, Any]
    width: int
    tables: Mapping[str, str]
    template: str | None
    folder: Path

    @abstractmethod
    def reader(self, below: Mapping[str, Reader]) -> Reader:
        """What encodes raw content, where that is what encodes it for the tables below."""

    @abstractmethod
    def rows(self, items: pl.DataFrame, below: Mapping[str, Dense]) -> np.ndarray:
        """[N, width], NaN where an item has nothing of what the table is made of, or nothing here makes it. items:
        with the template's columns. below: their rows in the tables below."""


class Reduced(Derived):
    """Another table in fewer dimensions. NumPy only."""

    def reader(self, below: Mapping[str, Reader]) -> Reader:
        return below[self.tables["of"]]

    def rows(self, items: pl.DataFrame, below: Mapping[str, Dense]) -> np.ndarray:
        source = below[self.tables["of"]]
        values_NF = self._reduction(source.values_EF, source.present_E)
        return np.where(source.present_E[:, None], values_NF, np.nan)

    @cached_property
    def _reduction(self) -> Any:
        return load_function("reduction")(self.folder)


class Learnt(Derived):
    """The vectors of a trained embedder, which needs torch."""

    def reader(self, below: Mapping[str, Reader]) -> Reader:
        read = self.template is not None or any(below[name] != "none" for name in self.tables.values())
        return "torch" if read and has_torch() else "none"

    def rows(self, items: pl.DataFrame, below: Mapping[str, Dense]) -> np.ndarray:
        read = {known_as: below[name] for known_as, name in self.tables.items()}
        something = self.template is not None or any(one.present_E.any() for one in read.values())
        if not (something and has_torch()):
            return np.full((len(items), self.width), np.nan, np.float32)
        return self._extractor.rows(items, read)

    @cached_property
    def _extractor(self) -> Any:
        settings = dict(self.settings) | {"run": str(self.folder)}
        return load_function("extractor")(settings, where=f"features.{self.name}")


_KINDS: Mapping[str, type[Derived]] = {"reduce": Reduced, "embedder": Learnt}


def derived(tables: Mapping[str, Mapping[str, Any]], bundle: Path) -> dict[str, Derived]:
    """Those of a bundle's tables that stand on others, where it carries what makes their rows; older ones do not."""
    found = {}
    for name, table in tables.items():
        made_of, kind = table.get("made_of"), table["settings"]["kind"]
        if made_of is not None and kind in _KINDS:
            folder = bundle / ENCODERS / name
            found[name] = _KINDS[kind](
                name, table["settings"], int(table["width"]), made_of["tables"], made_of["template"], folder
            )
    return found

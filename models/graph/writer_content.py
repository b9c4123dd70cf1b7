"""What a writer sees of items: prompts, known texts, frozen features, and who is whose neighbour."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recsys.errors import ModelError
from recsys.models.graph.build import centre
from recsys.models.graph.writer_language import Open
from recsys.nearest import nearest
from recsys.schema import Dense


@dataclass(frozen=True)
class WriterContent:
    """prompts: what is known of an item, ending where its text would begin. texts: None = to be written. tables: by
    name, rows of all items. neighbours_IN: other items, strongest first, -1 = none; never the item itself."""

    prompts: Sequence[str]
    texts: Sequence[str | None]
    tables: Mapping[str, Dense]
    neighbours_IN: np.ndarray

    def __len__(self) -> int:
        return len(self.prompts)

    def __post_init__(self):
        if (self.neighbours_IN == np.arange(len(self))[:, None]).any():
            raise ModelError("an item is its own neighbour: it would read the text that it is to write")

    @property
    def known(self) -> np.ndarray:
        """Items whose text is known."""
        return np.flatnonzero([text is not None for text in self.texts])


@dataclass(frozen=True)
class WriterContext:
    """All that fitting may see. open_language: loads the language model anew. The rest as in FitContext; nothing
    validates, the last epoch is kept."""

    content: WriterContent
    open_language: Open
    seed: int = 0
    device: str = "cpu"
    folder: Path | None = None
    validate: None = None


def alike(tables: Sequence[Dense], known_I: np.ndarray, count: int) -> np.ndarray:
    """[I, count] nearest of every item among the known ones but itself, -1 where there are fewer.

    By the mean cosine over tables, each centred on the known items; a table that an item lacks says nothing of it. The
    tables must not hold what is to be written: an item whose text is missing would find others than one that has it.
    """
    rows = np.flatnonzero(known_I)
    parts = []
    for table in tables:
        centred_EF = np.where(table.present_E[:, None], table.values_EF - centre(table, known_I), 0)
        lengths_E1 = np.linalg.norm(centred_EF, axis=1, keepdims=True)
        parts.append(centred_EF / np.maximum(lengths_E1, 1e-12))
    all_IF = np.concatenate(parts, axis=1)
    place_I = np.full(len(known_I), -1)
    place_I[rows] = np.arange(len(rows))
    places_IK, _ = nearest(all_IF, all_IF[rows], count, own_Q=place_I)
    found_IN = np.full((len(known_I), count), -1, np.int64)
    if len(rows):
        found_IN[:, : places_IK.shape[1]] = np.where(places_IK >= 0, rows[places_IK], -1)
    return found_IN

"""What the engine is asked, and what it answers."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple, overload

import numpy as np

from recsys.serving.catalogue import Catalogue
from recsys.serving.content import NewItem

Id = int | str
Fallback = Literal["popular", "content"]


@dataclass(frozen=True)
class Query:
    """Who asks: a user, or a history of item ids (oldest first), which wins over the stored one. at: UTC seconds; the
    engine's clock where None. user_fields: column of the users table -> value, for models that read attributes; they
    win over what the bundle has of the user."""

    user_id: Id | None = None
    history: Sequence[Id] | None = None
    width: int | None = None
    at: int | None = None
    user_fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Filters:
    """include: only these items; exclude: never these; category: items that carry one of these names."""

    include: Sequence[Id] | None = None
    exclude: Sequence[Id] = ()
    category: Sequence[str] = ()


@dataclass(frozen=True)
class Spread:
    """mmr: weight of relevance against likeness to what stands above, 0 to 1; None = relevance alone. category_cap:
    most items of any one category. explore: last places given to items drawn evenly; seed: of the draw."""

    mmr: float | None = None
    category_cap: int | None = None
    explore: int = 0
    seed: str = ""


class Source(NamedTuple):
    """A generator that found an item: at which place of its own list, with which score; "explore" has neither."""

    generator: str
    rank: int | None
    score: float | None


class RankedItem(NamedTuple):
    """One line of an answer. index: in the catalogue, -1 for an item that came with the request. score: None for an
    item drawn for exploration, and for one that nothing can score. contributions: what each feature adds to the score,
    where asked for and trees rank."""

    item_id: Id
    score: float | None
    title: str | None = None
    index: int = -1
    sources: tuple[Source, ...] = ()
    contributions: Mapping[str, float] | None = None


class Lines(Sequence[RankedItem]):
    """The lines of an answer, as columns: two hundred objects take longer to make than the JSON of them, and a line
    becomes one where somebody looks at it."""

    def __init__(
        self,
        catalogue: Catalogue,
        columns: np.ndarray,
        scores: np.ndarray,
        new: Sequence[NewItem] = (),
        sources: Sequence[tuple[Source, ...]] | None = None,
        contributions: Sequence[Mapping[str, float] | None] | None = None,
    ):
        """columns [N]: catalogue indices, and from the catalogue's length on places in `new`. scores [N]: NaN where
        there is none. sources, contributions: a line's each, None where no line has any."""
        self.catalogue, self.columns, self.scores, self.new = catalogue, columns, scores, new
        self.sources, self.contributions = sources, contributions

    @cached_property
    def indices(self) -> list[int]:
        """`columns` as plain integers."""
        return self.columns.tolist()

    @property
    def ids(self) -> list[Id]:
        ids, size = self.catalogue.ids, len(self.catalogue)
        if not self.new:
            return [ids[index] for index in self.indices]
        return [ids[i] if i < size else self.new[i - size].item_id for i in self.indices]

    @property
    def told(self) -> list[float | None]:
        """`scores` as plain numbers."""
        return [None if score != score else score for score in self.scores.tolist()]

    def __len__(self) -> int:
        return len(self.columns)

    @overload
    def __getitem__(self, at: int) -> RankedItem: ...

    @overload
    def __getitem__(self, at: slice) -> list[RankedItem]: ...

    def __getitem__(self, at: int | slice) -> RankedItem | list[RankedItem]:
        if isinstance(at, slice):
            return [self._line(place) for place in range(*at.indices(len(self)))]
        return self._line(range(len(self))[at])

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented

    def _line(self, place: int) -> RankedItem:
        index, score = self.indices[place], float(self.scores[place])
        told = None if score != score else score
        sources = () if self.sources is None else self.sources[place]
        why = None if self.contributions is None else self.contributions[place]
        beyond = index - len(self.catalogue)
        if beyond >= 0:
            return RankedItem(self.new[beyond].item_id, told, self.new[beyond].title, -1, sources, why)
        return RankedItem(self.catalogue.ids[index], told, self.catalogue.titles[index], index, sources, why)


@dataclass(frozen=True)
class Ranked:
    """An answer, best first. fallback "popular": nothing was known of the user; "content": only that of items sent
    along was used. unknown_items: ids outside the catalogue, in the history or among the candidates; not ranked.
    missing: of items sent along, the tables that each lacks. timings: stage -> milliseconds."""

    items: Lines
    fallback: Fallback | None = None
    unknown_items: list[Id] = field(default_factory=list)
    history_length: int = 0
    missing: Mapping[Id, list[str]] = field(default_factory=dict)
    timings: Mapping[str, float] = field(default_factory=dict, compare=False)


class Timer:
    """Milliseconds by stage."""

    def __init__(self):
        self._start = self._last = time.perf_counter()
        self.stages: dict[str, float] = {}

    def mark(self, stage: str) -> None:
        """The stage that ends here."""
        now = time.perf_counter()
        self.stages[stage] = self.stages.get(stage, 0.0) + 1000 * (now - self._last)
        self._last = now

    def done(self) -> dict[str, float]:
        return self.stages | {"total": 1000 * (time.perf_counter() - self._start)}

"""RankingEngine: a bundle and live state to ranked lists. No HTTP, no torch."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from recsys import schema
from recsys.bundle import Bundle
from recsys.errors import ModelError, RequestError
from recsys.schema import Queries, Ragged, legal_width
from recsys.serving.state import Event, StateStore

Id = int | str


@dataclass(frozen=True)
class Query:
    """Who asks: a user, or a history of item ids (oldest first), which wins over the stored one."""

    user_id: Id | None = None
    history: Sequence[Id] | None = None
    width: int | None = None


@dataclass(frozen=True)
class Filters:
    """include: only these items; exclude: never these; category: items that carry one of these names."""

    include: Sequence[Id] | None = None
    exclude: Sequence[Id] = ()
    category: Sequence[str] = ()


@dataclass(frozen=True)
class RankedItem:
    """One line of an answer."""

    item_id: Id
    score: float
    title: str | None = None


@dataclass(frozen=True)
class Ranked:
    """An answer, best first. fallback "popular": nothing was known of the user. unknown_items: ids outside the
    catalogue, in the history or among the candidates; they are not ranked."""

    items: list[RankedItem]
    fallback: Literal["popular"] | None = None
    unknown_items: list[Id] = field(default_factory=list)
    history_length: int = 0


class RankingEngine:
    """Rank, recommend, similar, observe. Safe to call from several threads."""

    def __init__(
        self, bundle: Bundle, store: StateStore | None = None, clock: Callable[[], float] = time.time
    ):
        """clock gives the time of a query or event that names none, in UTC seconds."""
        self.bundle, self.store, self.clock = bundle, store or StateStore(), clock
        self.program = bundle.scorer()
        self.item_ids: list[Id] = bundle.items[schema.ITEM].to_list()
        self.index_of = {item_id: index for index, item_id in enumerate(self.item_ids)}
        titles = bundle.items[schema.TITLE].to_list() if schema.TITLE in bundle.items.columns else None
        self.titles: list[str | None] = titles or [None] * len(self.item_ids)
        users = [] if bundle.users is None else bundle.users[schema.USER].to_list()
        self.user_index = {user_id: index for index, user_id in enumerate(users)}
        self.times = None if bundle.users is None else bundle.users["times"]
        self.popularity_I = bundle.item_counts_I.astype(np.float32)
        categories = (
            bundle.items[schema.CATEGORY].to_list() if schema.CATEGORY in bundle.items.columns else None
        )
        self.categories: list[set[str]] = [
            set(names or ()) for names in categories or [None] * len(self.item_ids)
        ]

    @property
    def widths(self) -> tuple[int, ...]:
        return self.program.widths

    def parse_id(self, entity: Literal["user", "item"], value: Id) -> Id:
        """The value as the bundle's ids are typed. Raises RequestError for the wrong type."""
        wanted = self.bundle.id_type[entity]
        right = (
            isinstance(value, str)
            if wanted == "str"
            else isinstance(value, int) and not isinstance(value, bool)
        )
        if not right:
            kind = "text" if wanted == "str" else "an integer"
            raise RequestError(f"{entity}_id {value!r}", expected=kind, fix='ids are typed: 42 is not "42"')
        return value

    def recommend(
        self, query: Query, k: int = 10, filters: Filters | None = None, *, exclude_seen: bool = True
    ) -> Ranked:
        """The k best items of the catalogue. Raises RequestError for k beyond the catalogue or an illegal width."""
        if not 1 <= k <= len(self.item_ids):
            raise RequestError(f"k = {k}", expected=f"1 to {len(self.item_ids)}, the size of the catalogue")
        history, unknown = self._history(query)
        scores_I, fallback = self._scores(query, history, None)
        allowed_I = self._allowed(filters or Filters())
        if exclude_seen:
            allowed_I[history] = False
        eligible = np.flatnonzero(allowed_I)
        order = eligible[np.argsort(-scores_I[eligible], kind="stable")[:k]]
        return Ranked(self._lines(order, scores_I[order]), fallback, unknown, len(history))

    def rank(self, query: Query, candidates: Sequence[Id]) -> Ranked:
        """The candidates, best first; those outside the catalogue are named, not ranked.

        Raises RequestError for a repeated candidate.
        """
        history, unknown = self._history(query)
        known, strangers = self._indices(candidates)
        if len(set(known)) != len(known):
            raise RequestError("a candidate stands twice", where="candidates", fix="send each item once")
        columns = np.asarray(known, np.int64)
        scores_C, fallback = self._scores(query, history, columns)
        order = np.lexsort((columns, -scores_C))
        return Ranked(
            self._lines(columns[order], scores_C[order]), fallback, unknown + strangers, len(history)
        )

    def similar(self, item_id: Id, k: int = 10) -> Ranked:
        """The k items most alike by the model: cosine of its item vectors, or its item-item weights.

        Raises RequestError for an unknown item, k beyond the catalogue, or a model that knows no similarity.
        """
        index = self.index_of.get(self.parse_id("item", item_id))
        if index is None:
            raise RequestError(f"item {item_id!r} is not in the catalogue", fix="send an item of this bundle")
        if not 1 <= k < len(self.item_ids):
            raise RequestError(f"k = {k}", expected=f"1 to {len(self.item_ids) - 1}, the other items")
        alike = self.program.similarity(index)
        if alike is None:
            raise RequestError(f"the model {self.bundle.manifest['model']!r} knows no similarity of items")
        others = np.delete(np.arange(len(alike)), index)
        order = others[np.argsort(-alike[others], kind="stable")[:k]]
        return Ranked(self._lines(order, alike[order]))

    def observe(self, event_id: str, user_id: Id, item_id: Id, at: int | None = None) -> bool:
        """Keep an event; False where this event_id was kept before. `at`: UTC seconds, the clock's time by default.

        An event of an unknown user or item is kept too: a later bundle may know them.
        """
        user, item = self.parse_id("user", user_id), self.parse_id("item", item_id)
        moment = int(self.clock()) if at is None else at
        return self.store.add(Event(event_id, json.dumps(user), json.dumps(item), moment))

    def _indices(self, item_ids: Sequence[Id]) -> tuple[list[int], list[Id]]:
        """Catalogue indices of the known ids in order, and the unknown ids."""
        known, unknown = [], []
        for item_id in item_ids:
            index = self.index_of.get(self.parse_id("item", item_id))
            if index is None:
                unknown.append(item_id)
            else:
                known.append(index)
        return known, unknown

    def _history(self, query: Query) -> tuple[np.ndarray, list[Id]]:
        """Item indices, oldest first: the given history, or the stored one with the observed events put in
        at their times."""
        user = None if query.user_id is None else self.parse_id("user", query.user_id)
        if query.history is not None:
            known, unknown = self._indices(query.history)
            return np.asarray(known, np.int64), unknown
        if user is None:
            return np.zeros(0, np.int64), []
        row = self.user_index.get(user)
        stored = np.zeros(0, np.int64) if row is None else self.bundle.histories[row]
        live = self.store.events(json.dumps(user))
        if not live:
            return stored, []
        known, unknown = self._indices([json.loads(event.item_id) for event in live])
        gone = set(unknown)
        times = [event.time for event in live if json.loads(event.item_id) not in gone]
        before = np.zeros(0, np.int64) if row is None else self.times[row].to_numpy()
        merged = np.concatenate([stored, np.asarray(known, np.int64)])
        return merged[np.argsort(np.concatenate([before, times]), kind="stable")], unknown

    def _scores(
        self, query: Query, history: np.ndarray, columns: np.ndarray | None
    ) -> tuple[np.ndarray, Literal["popular"] | None]:
        try:
            legal_width(query.width, self.widths)
        except ModelError as error:
            raise RequestError(str(error)) from None
        if len(history) == 0 and self.program.uses_history:
            return self.popularity_I if columns is None else self.popularity_I[columns], "popular"
        row = self.user_index.get(query.user_id, -1) if query.user_id is not None else -1
        asked = Queries(np.array([row]), Ragged.of([history]), np.array([int(self.clock())]))
        return self.program.score(asked, columns, query.width)[0], None

    def _allowed(self, filters: Filters) -> np.ndarray:
        allowed_I = np.ones(len(self.item_ids), bool)
        if filters.include is not None:
            allowed_I[:] = False
            allowed_I[self._indices(filters.include)[0]] = True
        allowed_I[self._indices(filters.exclude)[0]] = False
        if filters.category:
            wanted = set(filters.category)
            allowed_I &= np.fromiter(
                (bool(wanted & names) for names in self.categories), bool, len(allowed_I)
            )
        return allowed_I

    def _lines(self, indices: np.ndarray, scores: np.ndarray) -> list[RankedItem]:
        pairs = zip(indices.tolist(), scores.tolist(), strict=True)
        return [RankedItem(self.item_ids[index], score, self.titles[index]) for index, score in pairs]

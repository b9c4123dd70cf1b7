"""RankingEngine: a bundle and live state to ranked lists. No HTTP, no torch."""

import json
import logging
import re
import time
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from recsys.bundle import Bundle
from recsys.errors import ModelError, RequestError
from recsys.item_encoding import unit
from recsys.schema import legal_width
from recsys.serving.answering import Candidates, best_first, explained, lines, spread_out, with_drawn
from recsys.serving.answers import Fallback, Filters, Id, Lines, Query, Ranked, Spread, Timer
from recsys.serving.asking import Question
from recsys.serving.catalogue import Catalogue, Encoded
from recsys.serving.content import NewItem
from recsys.serving.finders import finder_of
from recsys.serving.forms import Program, VectorProgram, open_form
from recsys.serving.live import LiveUsers
from recsys.serving.live_items import LiveItems
from recsys.serving.stages import Stages
from recsys.serving.state import Event, StateStore, open_state
from recsys.serving.user_fields import UserFields
from recsys.serving.user_states import stepping
from recsys.two_stage import best

logger = logging.getLogger("recsys")


class RankingEngine:
    """Rank, recommend, similar, observe, add and remove items. Safe to call from several threads."""

    def __init__(
        self,
        bundle: Bundle,
        store: StateStore | None = None,
        clock: Callable[[], float] = time.time,
        coarse: tuple[int, int] | None = None,
    ):
        """clock gives the time of a query or event that names none, in UTC seconds. coarse: (width, size): the first
        columns of the item vectors pick so many items, and the full width ranks those.

        Raises ConfigError for a coarse width that the model does not have below its full one.
        """
        self.bundle, self.store, self.clock = bundle, store or open_state(None), clock
        self.ranker, self.user_fields = bundle.ranker, UserFields(bundle)
        own = bundle.scorer()
        programs: dict[str, Program] = {}
        for name, form in bundle.generators.items():
            programs[name] = own if form is bundle.form else open_form(form)
        self.main = next(
            (name for name, program in programs.items() if program is own), bundle.manifest["model"]
        )
        programs.setdefault(self.main, own)
        self.live = LiveItems(bundle, self.store, programs, self._changed)
        finder, warning = finder_of(bundle, own, coarse)
        if warning is not None:
            logger.warning("%s", warning)
        self.stages = Stages(self.main, self.ranker, self.live, finder)
        self.item_ids: list[Id] = list(self.live.now.ids)
        self.users = LiveUsers(bundle, self.store, stepping(programs), self._index)
        self.live.refresh(force=True)

    # What it is

    @property
    def catalogue(self) -> Catalogue:
        """As it is now."""
        return self.live.now

    @property
    def program(self) -> Program:
        return self.catalogue.programs[self.main]

    @property
    def widths(self) -> tuple[int, ...]:
        return self.program.widths

    @property
    def generators(self) -> tuple[str, ...]:
        return self.stages.generators

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

    def id_from_text(self, entity: Literal["user", "item"], text: str) -> Id:
        """An id of a path or command line, typed as the bundle's ids are. Raises RequestError for "abc" where ids are
        integers."""
        if self.bundle.id_type[entity] == "str":
            return text
        if not re.fullmatch(r"-?[0-9]{1,19}", text):  # int() would also take " 4_2 "
            raise RequestError(f"{entity}_id {text!r}", expected="an integer")
        return int(text)

    def picture(self, item_id: Id) -> bytes | None:
        """An item's picture: the one it was added with, or the bundle's thumbnail."""
        added = self.catalogue.added.get(item_id)
        if added is not None and added.image is not None:
            return added.image
        return self.bundle.thumbnails.get(self.catalogue.index_of.get(item_id, -1))

    def close(self) -> None:
        """Let go of what runs beside; the store stays open, it is the caller's."""
        self.users.close()

    # Questions

    def recommend(
        self,
        query: Query,
        k: int = 10,
        filters: Filters | None = None,
        *,
        exclude_seen: bool = True,
        explain: bool = False,
        spread: Spread | None = None,
    ) -> Ranked:
        """The k best items of the catalogue. Raises RequestError for k beyond the catalogue or an illegal width."""
        timer = Timer()
        catalogue = self.live.refresh()
        if not 1 <= k <= len(catalogue):
            raise RequestError(f"k = {k}", expected=f"1 to {len(catalogue)}, the size of the catalogue")
        question, unknown = self._question(query, catalogue)
        allowed_I = self._allowed(catalogue, filters or Filters())
        if exclude_seen:
            allowed_I[question.items] = False
        timer.mark("history")
        fallback: Fallback | None = None
        features_CF = None
        if self._silent(question):
            fallback, scores_I = "popular", self._popular(catalogue)
            columns = best(np.where(allowed_I, scores_I, -np.inf), k)
            found, scores_C = Candidates(columns, scores_I[None, columns]), scores_I[columns]
            timer.mark("retrieve")
        else:
            found = self.stages.retrieved(catalogue, question, allowed_I, self.stages.depth(k), query.width)
            timer.mark("retrieve")
            scores_C, features_CF = self.stages.ranked(catalogue, question, found, None, timer)
        if spread is None:
            order, drawn = best_first(found, scores_C)[:k], np.zeros(0, np.int64)
        else:
            order, drawn = spread_out(
                catalogue, self.program, question, found, scores_C, k, spread, allowed_I
            )
        items = self._lines(catalogue, found, scores_C, order, features_CF if explain else None)
        if len(drawn):
            items = with_drawn(items, drawn)
        timer.mark("answer")
        return Ranked(items, fallback, unknown, len(question.items), timings=timer.done())

    def rank(
        self,
        query: Query,
        candidates: Sequence[Id],
        new: Sequence[NewItem] = (),
        *,
        explain: bool = False,
    ) -> Ranked:
        """The candidates, and items that come with their content, best first; ids outside the catalogue are named, not
        ranked.

        Raises RequestError for a repeated candidate, and for new items none of which has content that can be read here.
        """
        timer = Timer()
        catalogue = self.live.refresh()
        question, unknown = self._question(query, catalogue)
        known, strangers = self._indices(catalogue, candidates)
        ids = [*candidates, *(self.parse_id("item", item.item_id) for item in new)]
        if len(set(ids)) != len(ids):
            raise RequestError("a candidate stands twice", where="candidates", fix="send each item once")
        columns = np.asarray(known, np.int64)
        timer.mark("history")
        encoded = self._encoded(new) if new else None
        timer.mark("encode")
        fallback: Fallback | None = None
        features_CF = None
        if self._silent(question) and encoded is None:
            fallback, scores_C = "popular", self._popular(catalogue)[columns]
            found = Candidates(columns, scores_C[None])
            timer.mark("retrieve")
        else:
            fallback = "content" if self._silent(question) else None
            found = self.stages.scored(catalogue, question, columns, encoded, query.width)
            timer.mark("retrieve")
            scores_C, features_CF = self.stages.ranked(catalogue, question, found, encoded, timer)
        order = best_first(found, scores_C)
        items = self._lines(catalogue, found, scores_C, order, features_CF if explain else None)
        timer.mark("answer")
        missing = {} if encoded is None else dict(encoded.missing)
        return Ranked(items, fallback, unknown + strangers, len(question.items), missing, timer.done())

    def similar(self, item_id: Id, k: int = 10) -> Ranked:
        """The k items most alike by the model: cosine of its item vectors, or its item-item weights.

        Raises RequestError for an unknown item, k beyond the catalogue, or a model that knows no similarity.
        """
        timer = Timer()
        catalogue = self.live.refresh()
        index = catalogue.index_of.get(self.parse_id("item", item_id))
        if index is None:
            raise RequestError(f"item {item_id!r} is not in the catalogue", fix="send an item of this bundle")
        if not 1 <= k < len(catalogue):
            raise RequestError(f"k = {k}", expected=f"1 to {len(catalogue) - 1}, the other items")
        program = catalogue.programs[self.main]
        alike = program.similarity(index) if index < catalogue.original or _covers(program, index) else None
        if alike is None:
            raise RequestError(
                f"the model {self.bundle.manifest['model']!r} knows no similarity of this item"
            )
        allowed_I = catalogue.available_I[: len(alike)].copy()
        allowed_I[index] = False
        order = best(np.where(allowed_I, alike, -np.inf), k)
        timer.mark("retrieve")
        items = Lines(catalogue, order, alike[order])
        return Ranked(items, timings=timer.done())

    def similar_to_new(self, item: NewItem, k: int = 10) -> Ranked:
        """The k items of the catalogue most alike to one that comes with its content, by cosine of the model's vectors.

        Raises RequestError where its content cannot be read here.
        """
        timer = Timer()
        catalogue = self.live.refresh()
        encoded = self._encoded([item])
        timer.mark("encode")
        program = catalogue.programs[self.main]
        if self.main not in encoded.vectors or not isinstance(program, VectorProgram):
            raise RequestError(f"the model {self.bundle.manifest['model']!r} reads no content")
        vectors_ID = unit(program.form.item_vectors_ID)
        alike = vectors_ID @ unit(encoded.vectors[self.main])[0]
        order = best(np.where(catalogue.available_I, alike, -np.inf), k)
        timer.mark("retrieve")
        items = Lines(catalogue, order, alike[order])
        return Ranked(items, missing=dict(encoded.missing), timings=timer.done())

    # Events and items

    def observe(self, event_id: str, user_id: Id, item_id: Id, at: int | None = None) -> bool:
        """Keep an event; False where this event_id was kept before. `at`: UTC seconds, the clock's time by default.

        An event of an unknown user or item is kept too: a later bundle may know them.
        """
        return self.observe_all([(event_id, user_id, item_id, at)])[0]

    def observe_all(self, events: Sequence[tuple[str, Id, Id, int | None]]) -> list[bool]:
        """Several at once: all of them are kept, or none. Durable when this returns."""
        now = int(self.clock())
        rows = [
            Event(
                event_id,
                json.dumps(self.parse_id("user", user_id)),
                json.dumps(self.parse_id("item", item_id)),
                now if at is None else at,
            )
            for event_id, user_id, item_id, at in events
        ]
        return self.store.add(rows)

    def forget_user(self, user_id: Id) -> int:
        """Delete what is known of a user; the bundle's own history of them counts no more. Number of events deleted."""
        user = self.parse_id("user", user_id)
        deleted = self.store.forget(json.dumps(user), int(self.clock()))
        self.users.drop(user)
        return deleted

    def add_items(self, new: Sequence[NewItem]) -> dict[Id, list[str]]:
        """Add items, or replace them; kept in the store. The tables that each lacks.

        Raises RequestError for features that do not fit, before anything is kept.
        """
        for item in new:
            self.parse_id("item", item.item_id)
        return self.live.add(new)

    def remove_items(self, item_ids: Sequence[Id]) -> None:
        """Take items out of all answers until they are added again. Raises RequestError for an unknown one."""
        self.live.remove([self.parse_id("item", item_id) for item_id in item_ids])

    # Parts

    def _index(self, item_id: Id) -> int | None:
        return self.catalogue.index_of.get(item_id)

    def _changed(self, catalogue: Catalogue) -> None:
        self.users.programs = stepping(catalogue.programs)
        self.users.clear()

    def _popular(self, catalogue: Catalogue) -> np.ndarray:
        counts_I = np.zeros(len(catalogue), np.float32)
        counts_I[: catalogue.original] = self.bundle.item_counts_I
        return counts_I

    def _silent(self, question: Question) -> bool:
        """Nothing is known that the model could use."""
        return len(question.items) == 0 and self.program.silent(question.queries)

    def _indices(self, catalogue: Catalogue, item_ids: Sequence[Id]) -> tuple[list[int], list[Id]]:
        """Catalogue indices of the known ids in order, and the unknown ids."""
        kind = str if self.bundle.id_type["item"] == "str" else int
        if not set(map(type, item_ids)) <= {kind}:
            for item_id in item_ids:
                self.parse_id("item", item_id)
        found = list(map(catalogue.index_of.get, item_ids))
        if None not in found:
            return found, []
        unknown = [item_id for item_id, index in zip(item_ids, found, strict=True) if index is None]
        return [index for index in found if index is not None], unknown

    def _question(self, query: Query, catalogue: Catalogue) -> tuple[Question, list[Id]]:
        """The given history, or the stored one with the observed events put in at their times."""
        try:
            legal_width(query.width, self.widths)
        except ModelError as error:
            raise RequestError(str(error)) from None
        user = None if query.user_id is None else self.parse_id("user", query.user_id)
        at = int(self.clock()) if query.at is None else query.at
        row = -1 if user is None else self.users.row_of.get(user, -1)
        fields = self.user_fields.rows(query.user_fields)
        if query.history is not None:
            known, unknown = self._indices(catalogue, query.history)
            items = np.asarray(known, np.int64)
            return Question(row, items, None, at, catalogue.original, self.users, fields=fields), unknown
        if user is None:
            nothing = np.zeros(0, np.int64)
            return Question(-1, nothing, None, at, catalogue.original, self.users, fields=fields), []
        live = self.users.of(user)
        row = row if live.gone is None else -1  # what the bundle learnt of a forgotten user counts no more
        question = Question(row, live.items, live.times, at, catalogue.original, self.users, live, fields)
        return question, list(live.unknown)

    def _encoded(self, new: Sequence[NewItem]) -> Encoded:
        encoded = self.live.cataloguer.encoded(new)
        tables = len(self.live.cataloguer.encoder.tables)
        if not encoded.vectors or all(len(encoded.missing.get(item.item_id, ())) == tables for item in new):
            why = "no content that can be read here" if encoded.vectors else "the model reads no content"
            raise RequestError(
                f"new items cannot be ranked: {why}", where="items", fix="send features, or see /v1/models"
            )
        return encoded

    def _allowed(self, catalogue: Catalogue, filters: Filters) -> np.ndarray:
        allowed_I = catalogue.available_I.copy()
        if filters.include is not None:
            inside = np.zeros(len(catalogue), bool)
            inside[self._indices(catalogue, filters.include)[0]] = True
            allowed_I &= inside
        allowed_I[self._indices(catalogue, filters.exclude)[0]] = False
        if filters.category:
            nothing = np.zeros(len(catalogue), bool)
            masks = [catalogue.with_category.get(name, nothing) for name in filters.category]
            allowed_I &= np.logical_or.reduce(masks)
        return allowed_I

    def _lines(
        self,
        catalogue: Catalogue,
        found: Candidates,
        scores_C: np.ndarray,
        order: np.ndarray,
        features_CF: np.ndarray | None,
    ) -> Lines:
        """features_CF: where explanations are asked for."""
        why = None if features_CF is None else explained(self.ranker.trees, features_CF[order])
        return lines(catalogue, self.generators, found, scores_C, order, why)


def _covers(program: Program, index: int) -> bool:
    vectors_ID = program.form.item_vectors_ID
    return vectors_ID is not None and index < len(vectors_ID)

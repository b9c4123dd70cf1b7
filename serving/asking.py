"""One question to the programs: a user's history is read once, and every program scores from it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from recsys.ranking_features import Asked, Items, UserSide
from recsys.schema import Queries, Ragged
from recsys.scoring import seen_items
from recsys.serving.forms import Dot, Program, Sequence, VectorProgram

if TYPE_CHECKING:
    from recsys.serving.live import Known, LiveUsers

Made = TypeVar("Made")


@dataclass(frozen=True)
class Question:
    """Who asks, as indices. items, times: the history, oldest first (times None where only items were given).
    original: items that were in the bundle; programs without content know no others. known: the live user whose states
    are kept, None for a history that came with the request. fields: user table -> [1, F], attributes that came with
    it."""

    row: int
    items: np.ndarray
    times: np.ndarray | None
    at: int
    original: int
    users: "LiveUsers"
    known: "Known | None" = None
    fields: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def asked(self) -> Asked:
        return Asked(self.items, self.times, self.at)

    @cached_property
    def queries(self) -> Queries:
        return self._queries(self.items)

    @cached_property
    def _older(self) -> Queries:
        """For programs that know the bundle's own items only."""
        return self._queries(self.items[self.items < self.original])

    def _queries(self, items: np.ndarray) -> Queries:
        history = Ragged(items, np.array([0]), np.array([len(items)]))
        return Queries(np.array([self.row]), history, np.array([self.at]), self.fields)

    def vector(self, name: str, program: VectorProgram) -> np.ndarray:
        """[1, D] of the full width."""
        if not isinstance(program, Sequence) or not program.steps:
            return self._kept_vector(name, program)
        if self.known is not None:
            return self.users.state(self.known, name).vectors_BD
        return program.network.read(self.items).vectors_BD

    def _kept_vector(self, name: str, program: VectorProgram) -> np.ndarray:
        """Read anew for every question where more than the history is asked with."""
        if self.fields or program.uses_context:
            return program.query_vectors(self.queries)
        return self._once(f"vector of {name}", lambda: program.query_vectors(self.queries))

    def user_side(self, items: Items) -> UserSide:
        """What the ranker is told of the history; items: those of the catalogue that the question is asked of."""
        return self._once("side", lambda: UserSide.of(self.items, items))

    def _once(self, name: str, make: Callable[[], Made]) -> Made:
        """Kept with a live user until the history changes, which makes a new array of it. Two threads may both make
        it: each takes its own, and they are equal."""
        if self.known is None:
            return make()
        kept = self.known.made.get(name)
        if kept is None or kept[0] is not self.items:
            kept = self.items, make()
            self.known.made[name] = kept
        return kept[1]

    def scores(
        self, name: str, program: Program, columns: np.ndarray | None, size: int, width: int | None
    ) -> np.ndarray:
        """[size] of the whole catalogue, or those of the columns; NaN for added items that the program cannot read."""
        if isinstance(program, Sequence | Dot) and len(program.form.item_vectors_ID) == size:
            vector_1D = self.vector(name, program)
            if isinstance(program, Dot):
                return program.score_vectors(vector_1D, columns, width)[0]
            seen = None
            if "repeat" in program.form.arrays:
                seen = self._once("seen", lambda: seen_items(self.queries.history))
            return program.score_vectors(vector_1D, self.queries, columns, width, seen)[0]
        if size == self.original:
            return program.score(self.queries, columns, width)[0]
        if columns is None:
            own = program.score(self._older, None, width)[0]
            return (
                own
                if len(own) == size
                else np.concatenate([own, np.full(size - len(own), np.nan, np.float32)])
            )
        scores_C = np.full(len(columns), np.nan, np.float32)
        inside = columns < self.original
        scores_C[inside] = program.score(self._older, columns[inside], width)[0]
        return scores_C

    def new_scores(
        self, name: str, program: Program, vectors: Mapping[str, np.ndarray], count: int, width: int | None
    ) -> np.ndarray:
        """[count] of items that come with the request; NaN where the program cannot read content."""
        if name not in vectors or not isinstance(program, VectorProgram):
            return np.full(count, np.nan, np.float32)
        width = width or program.widths[-1]
        dots_N = vectors[name][:, :width] @ self.vector(name, program)[0, :width]
        return (program.scale(width) * dots_N).astype(np.float32)

"""One question to the programs: a user's history is read once, and every program scores from it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from recsys.ranking_features import Asked
from recsys.schema import Queries, Ragged
from recsys.serving.forms import Dot, Program, Sequence, VectorProgram

if TYPE_CHECKING:
    from recsys.serving.live import Known, LiveUsers


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
        return Queries(np.array([self.row]), Ragged.of([items]), np.array([self.at]), self.fields)

    def vector(self, name: str, program: VectorProgram) -> np.ndarray:
        """[1, D] of the full width."""
        if not isinstance(program, Sequence) or not program.steps:
            return self._kept_vector(name, program)
        if self.known is not None:
            return self.users.state(self.known, name).vectors_BD
        return program.network.read(self.items).vectors_BD

    def _kept_vector(self, name: str, program: VectorProgram) -> np.ndarray:
        """Read once per state of a live user's history, where nothing else is asked with."""
        if self.known is None or self.fields or program.uses_context:
            return program.query_vectors(self.queries)
        kept = self.known.vectors.get(name)
        if kept is None or kept[0] != len(self.items):
            kept = len(self.items), program.query_vectors(self.queries)
            self.known.vectors[name] = kept
        return kept[1]

    def scores(
        self, name: str, program: Program, columns: np.ndarray | None, size: int, width: int | None
    ) -> np.ndarray:
        """[size] of the whole catalogue, or those of the columns; NaN for added items that the program cannot read."""
        covers = isinstance(program, VectorProgram) and len(program.form.item_vectors_ID) == size
        if covers and isinstance(program, Sequence):
            return program.score_vectors(self.vector(name, program), self.queries, columns, width)[0]
        if covers and isinstance(program, Dot):
            return program.score_vectors(self.vector(name, program), columns, width)[0]
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

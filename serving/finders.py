"""Ways to find the best items without scoring all of them: a pool that holds them, which exact scores then rank."""

from importlib import import_module
from importlib.util import find_spec
from typing import Protocol

import numpy as np

from recsys.bundle import Bundle
from recsys.errors import ConfigError, ModelError
from recsys.schema import legal_width
from recsys.serving.forms import Dot, Sequence, VectorProgram
from recsys.serving.index import Index
from recsys.serving.retrieval import coarse_pool

_FEW = 0.2
"""Share of the items below which scoring the allowed ones alone is as quick, and exact."""


class Finder(Protocol):
    """A way to find a pool for questions at a program's full width."""

    def pool(
        self, program: VectorProgram, query_D: np.ndarray, allowed_I: np.ndarray, depth: int
    ) -> np.ndarray | None:
        """Items, ascending, all of them allowed; None where the best `depth` may not be among them: score every item.

        query_D: the question's vector of the full width.
        """


class Coarse:
    """The first columns of nested item vectors pick the pool."""

    def __init__(self, program: VectorProgram, width: int, size: int):
        """Raises ConfigError for a width that the program does not have below its full one."""
        try:
            legal_width(width, program.widths[:-1])
        except ModelError as error:
            raise ConfigError(f"coarse retrieval: {error}") from None
        self.width, self.size = width, size

    def pool(
        self, program: VectorProgram, query_D: np.ndarray, allowed_I: np.ndarray, depth: int
    ) -> np.ndarray | None:
        if depth > self.size:
            return None
        items_ID, bias_I = program.form.item_vectors_ID, program.form.item_bias_I
        bias_I = np.where(allowed_I[: len(bias_I)], bias_I, -np.inf)  # items without content have no vector
        scale = program.scale(self.width)
        found = coarse_pool(
            query_D[None], items_ID, bias_I[None], coarse=self.width, size=self.size, scale=scale
        )
        items_P = found.items_QP[0]
        return np.sort(items_P[allowed_I[items_P]])


class Approximate:
    """The bundle's index picks the pool; items added since, which it does not know, all belong to it."""

    def __init__(self, index: Index):
        self.index = index

    def pool(
        self, program: VectorProgram, query_D: np.ndarray, allowed_I: np.ndarray, depth: int
    ) -> np.ndarray | None:
        indexed = self.index.facts.items
        if depth > self.index.facts.depth or allowed_I[:indexed].mean() < _FEW:
            return None
        scaled_D = program.scale(program.widths[-1]) * query_D
        added = indexed + np.flatnonzero(allowed_I[indexed:])
        pool = np.concatenate([self.index.pool(scaled_D, allowed_I[:indexed]), added])
        return pool if len(pool) >= depth else None  # the lists looked into may hold few that are allowed


def finder_of(
    bundle: Bundle, program: object, coarse: tuple[int, int] | None
) -> tuple[Finder | None, str | None]:
    """(how items are found, None where all are scored; a warning). coarse: width and size of the pool, where it was
    asked for."""
    if coarse is not None:
        if not isinstance(program, VectorProgram):
            raise ConfigError("coarse retrieval: the model has no item vectors", fix="leave --coarse out")
        return Coarse(program, *coarse), None
    facts = bundle.index
    if facts is None or not isinstance(program, Dot | Sequence):
        return None, None
    if find_spec("faiss") is None:
        return None, "the bundle's index is not used, every item is scored: pip install 'recsys[ann]'"
    return Approximate(Index(import_module("faiss"), bundle.path, facts)), None

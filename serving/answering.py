"""From scored candidates to the lines of an answer: order, spread, explanations."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from recsys.serving.answers import Lines, Source, Spread
from recsys.serving.asking import Question
from recsys.serving.catalogue import Catalogue
from recsys.serving.content import NewItem
from recsys.serving.diversity import capped, explored, mmr
from recsys.serving.forms import Program, VectorProgram
from recsys.two_stage import Trees


@dataclass(frozen=True)
class Candidates:
    """columns: catalogue indices, and from the catalogue's length on places in `new`, what came with the request.
    scores_GC: of every generator in order. places: by generator, index -> place in its own list, where it had one."""

    columns: np.ndarray
    scores_GC: np.ndarray
    places: Sequence[dict[int, int]] = ()
    new: Sequence[NewItem] = field(default=())


def best_first(found: Candidates, scores_C: np.ndarray) -> np.ndarray:
    """Places of the candidates by score, equal ones by index; what cannot be scored comes last."""
    by_index = np.argsort(found.columns, kind="stable")
    falling_C = -scores_C[by_index]
    falling_C[np.isnan(falling_C)] = np.inf
    return by_index[np.argsort(falling_C, kind="stable")]


def lines(
    catalogue: Catalogue,
    generators: Sequence[str],
    found: Candidates,
    scores_C: np.ndarray,
    order: np.ndarray,
    contributions: Sequence[dict[str, float]] | None = None,
) -> Lines:
    """The candidates at these places."""
    columns = found.columns[order]
    sources: list[tuple[Source, ...]] | None = None
    if found.places:
        rows = found.scores_GC[:, order].T.tolist()
        voices = list(zip(generators, found.places, strict=True))
        sources = [
            tuple(
                Source(name, place[index] + 1, score)
                for (name, place), score in zip(voices, row, strict=True)
                if index in place
            )
            for index, row in zip(columns.tolist(), rows, strict=True)
        ]
    return Lines(catalogue, columns, scores_C[order], found.new, sources, contributions)


def with_drawn(shown: Lines, indices: np.ndarray) -> Lines:
    """These lines, then items that stand in the list for exploration."""
    count = len(indices)
    columns = np.concatenate([shown.columns, indices])
    scores = np.concatenate([shown.scores, np.full(count, np.nan, shown.scores.dtype)])
    sources = [*(shown.sources or [()] * len(shown)), *[(Source("explore", None, None),)] * count]
    why = None if shown.contributions is None else [*shown.contributions, *[None] * count]
    return Lines(shown.catalogue, columns, scores, shown.new, sources, why)


def explained(trees: Trees, features_CF: np.ndarray) -> list[dict[str, float]]:
    """By candidate: feature -> what it adds to the score; "base": what all start from."""
    names = (*trees.features, "base")
    return [dict(zip(names, row.tolist(), strict=True)) for row in trees.contributions(features_CF)]


def spread_out(
    catalogue: Catalogue,
    program: Program,
    question: Question,
    found: Candidates,
    scores_C: np.ndarray,
    k: int,
    spread: Spread,
    allowed_I: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """(places of the candidates that stay, catalogue indices drawn for exploration). Likeness is that of the model's
    item vectors, where it has any."""
    order = best_first(found, scores_C)
    if spread.mmr is not None and isinstance(program, VectorProgram):
        depth = k if spread.category_cap is None else len(order)
        rows_ND = program.form.item_vectors_ID[found.columns[order]]
        order = order[mmr(np.arange(len(order)), scores_C[order], rows_ND, depth, spread.mmr)]
    if spread.category_cap is not None:
        named = [catalogue.categories[index] for index in found.columns.tolist()]
        order = capped(order, named, k, spread.category_cap)
    order = order[:k]
    if not spread.explore:
        return order, np.zeros(0, np.int64)
    seed = zlib.crc32(f"{spread.seed}:{question.row}:{question.at}".encode())
    eligible = np.setdiff1d(np.flatnonzero(allowed_I), found.columns[order])
    shown, drawn_N = explored(found.columns[order], eligible, spread.explore, seed)
    return order[~drawn_N], shown[drawn_N]

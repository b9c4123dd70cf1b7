"""How candidates are found and scored: every generator over the catalogue, and the trees over what they find."""

import numpy as np

from recsys.ranking_features import ranking_features
from recsys.serving.answering import Candidates
from recsys.serving.answers import Timer
from recsys.serving.asking import Question
from recsys.serving.catalogue import Catalogue, Encoded
from recsys.serving.finders import Finder
from recsys.serving.live_items import LiveItems
from recsys.two_stage import Ranker, best


class Stages:
    """main: the model that ranks alone where there is no ranker, and the only one whose width can be chosen. finder:
    how its best items are found at its full width; None = by scoring all of them."""

    def __init__(self, main: str, ranker: Ranker | None, live: LiveItems, finder: Finder | None):
        self.main, self.ranker, self.live, self.finder = main, ranker, live, finder

    @property
    def generators(self) -> tuple[str, ...]:
        return (self.main,) if self.ranker is None else self.ranker.generators

    def depth(self, k: int) -> int:
        """Items that each generator hands on for a list of k."""
        return max(k, 0 if self.ranker is None else self.ranker.per_generator)

    def retrieved(
        self, catalogue: Catalogue, question: Question, allowed_I: np.ndarray, depth: int, width: int | None
    ) -> Candidates:
        """The best of every generator, each once: best first where there is one generator, by index where there are
        more."""
        found = [self._best(name, catalogue, question, allowed_I, depth, width) for name in self.generators]
        columns = found[0][0]
        if len(found) > 1:
            columns = np.unique(np.concatenate([best_C for best_C, _ in found]))
        rows = []
        for name, (_, scores_I) in zip(self.generators, found, strict=True):
            program, size = catalogue.programs[name], len(catalogue)
            rows.append(
                question.scores(name, program, columns, size, None) if scores_I is None else scores_I[columns]
            )
        return Candidates(columns, np.stack(rows), [_places(best_C) for best_C, _ in found])

    def _best(
        self,
        name: str,
        catalogue: Catalogue,
        question: Question,
        allowed_I: np.ndarray,
        depth: int,
        width: int | None,
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """(a generator's best items, best first; its scores of the catalogue, None where it has not made them)."""
        program, own, size = catalogue.programs[name], self._width(name, width), len(catalogue)
        if name == self.main and self.finder is not None and own in (None, program.widths[-1]):
            pool = self.finder.pool(program, question.vector(name, program)[0], allowed_I, depth)
            if pool is not None:
                scores_P = question.scores(name, program, pool, size, None)
                return pool[best(np.where(np.isnan(scores_P), -np.inf, scores_P), depth)], None
        scores_I = question.scores(name, program, None, size, own)
        return best(np.where(allowed_I & ~np.isnan(scores_I), scores_I, -np.inf), depth), scores_I

    def scored(
        self,
        catalogue: Catalogue,
        question: Question,
        columns: np.ndarray,
        encoded: Encoded | None,
        width: int | None,
    ) -> Candidates:
        """Given candidates, those with content after those of the catalogue."""
        size, rows = len(catalogue), []
        for name in self.generators:
            program, own = catalogue.programs[name], self._width(name, width)
            scores = question.scores(name, program, columns, size, own)
            if encoded is not None:
                new = question.new_scores(name, program, encoded.vectors, len(encoded.new), own)
                scores = np.concatenate([scores, new])
            rows.append(scores)
        if encoded is not None:
            columns = np.concatenate([columns, size + np.arange(len(encoded.new))])
        return Candidates(columns, np.stack(rows), new=() if encoded is None else encoded.new)

    def _width(self, name: str, width: int | None) -> int | None:
        """The asked width for the model that has widths to choose from; the others are as they are."""
        return width if name == self.main else None

    def ranked(
        self,
        catalogue: Catalogue,
        question: Question,
        found: Candidates,
        encoded: Encoded | None,
        timer: Timer,
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Final scores, and the features they rest on where the trees made them."""
        if self.ranker is None or not len(found.columns):
            return found.scores_GC[0], None
        features_CF = self.features(catalogue, question, found, encoded)
        timer.mark("features")
        scores_C = self.ranker.trees.score(features_CF)
        timer.mark("rank")
        return scores_C, features_CF

    def features(
        self, catalogue: Catalogue, question: Question, found: Candidates, encoded: Encoded | None = None
    ) -> np.ndarray:
        """[C, F] as `ranking_features` has them, as of the question's time."""
        snapshot = self.live.popularity.as_of(question.at)
        new = None if encoded is None else encoded.items
        user = question.user_side(catalogue.items)
        return ranking_features(
            question.asked, found.columns, found.scores_GC, snapshot, catalogue.items, new, user
        )


def _places(columns: np.ndarray) -> dict[int, int]:
    return {index: place for place, index in enumerate(columns.tolist())}

"""Two stages: generators find candidates, gradient-boosted trees rank them. Offline and in service the same code.

NumPy and LightGBM only; a generator is anything that scores (a model, or a bundle's program).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from recsys.popularity import Popularity
from recsys.ranking_features import Asked, Items, ranking_features
from recsys.schema import Queries, Ragged, legal_width, pick

if TYPE_CHECKING:
    import lightgbm


class Generator(Protocol):
    """What finds candidates."""

    def score(
        self, queries: Queries, candidates: np.ndarray | None = None, width: int | None = None
    ) -> np.ndarray: ...


@dataclass(frozen=True)
class Trees:
    """LightGBM's text form, and the names of the features in order."""

    text: str
    features: tuple[str, ...]

    @cached_property
    def _booster(self) -> "lightgbm.Booster":
        import lightgbm

        return lightgbm.Booster(model_str=self.text)

    def score(self, features_NF: np.ndarray) -> np.ndarray:
        """[N] float32, comparable within a query."""
        return self._booster.predict(features_NF, num_threads=1).astype(np.float32)

    def contributions(self, features_NF: np.ndarray) -> np.ndarray:
        """[N, F + 1]: what each feature adds to a row's score (TreeSHAP), and last what all rows start from."""
        return self._booster.predict(features_NF, pred_contrib=True, num_threads=1)

    @cached_property
    def gains(self) -> dict[str, float]:
        """Feature -> share of all gain of the trees."""
        gains = self._booster.feature_importance("gain")
        shares = gains / max(gains.sum(), 1e-12)
        return dict(sorted(zip(self.features, shares.tolist(), strict=True), key=lambda pair: -pair[1]))


def best(scores_I: np.ndarray, count: int) -> np.ndarray:
    """The `count` best items, best first, equal scores by index; -inf never is among them."""
    eligible = int(np.count_nonzero(scores_I > -np.inf))
    count = min(count, eligible)
    if count == 0:
        return np.zeros(0, np.int64)
    bar = np.partition(scores_I, -count)[
        -count
    ]  # then every item as good as the last one, to be cut by index
    pool = np.flatnonzero(scores_I >= bar)
    return pool[np.argsort(-scores_I[pool], kind="stable")[:count]]


def union(scores_GI: np.ndarray, per_generator: int) -> np.ndarray:
    """Candidates: the best items of every generator, ascending, each once. -inf marks items that are out."""
    return np.unique(np.concatenate([best(scores_I, per_generator) for scores_I in scores_GI]))


class TwoStage:
    """The whole line as a scorer: for every query the best unseen items of each generator, ranked by the trees.

    What no generator hands on stands below, in the first generator's order; so do items of the history.
    """

    widths: tuple[int, ...] = ()

    def __init__(
        self,
        generators: Mapping[str, Generator],
        per_generator: int,
        trees: Trees,
        items: Items,
        popularity: Popularity,
    ):
        self.generators, self.per_generator, self.trees = generators, per_generator, trees
        self.items, self.popularity = items, popularity

    def score(
        self, queries: Queries, candidates: np.ndarray | None = None, width: int | None = None
    ) -> np.ndarray:
        """[Q, I], or the columns of candidates; float32. Raises ModelError for a width: there is one."""
        legal_width(width, self.widths)
        scores_GQI = np.stack([generator.score(queries) for generator in self.generators.values()])
        out_QI = np.empty(scores_GQI.shape[1:], np.float32)
        rows = list(
            candidate_rows(queries, scores_GQI, self.per_generator, lambda user: self.items, self.popularity)
        )
        ranked = self.trees.score(np.concatenate([features_CF for _, features_CF in rows])) if rows else ()
        start = 0
        for row, (items_C, _) in enumerate(rows):
            first_I = scores_GQI[0, row]
            found = ranked[start : start + len(items_C)]
            floor = found.min() if len(found) else 0.0
            out_QI[row] = floor - 1 - (first_I.max() - first_I)
            out_QI[row, items_C] = found
            start += len(items_C)
        return pick(out_QI, candidates)


def candidate_rows(
    queries: Queries,
    scores_GQI: np.ndarray,
    per_generator: int,
    items_for: Callable[[int], Items],
    popularity: Popularity,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Query by query: (candidates [C], their features [C, F]). items_for: what a user, -1 = nobody known, is told of
    items."""
    for row in range(len(queries)):
        history = queries.history[row]
        times = None if queries.times is None else queries.times[row]
        asked = Asked(history, times, int(queries.at_Q[row]))
        scores_GI = scores_GQI[:, row].copy()
        scores_GI[:, history] = -np.inf
        found = union(scores_GI, per_generator)
        snapshot = popularity.as_of(asked.at)
        items = items_for(int(queries.user_Q[row]))
        yield found, ranking_features(asked, found, scores_GI[:, found], snapshot, items)


@dataclass(frozen=True)
class Ranker:
    """All that the second stage consists of, as a run learns it and a bundle carries it.

    maps: table -> (mean_F, map_FK) that take a raw feature row into `items.content`, for items added later. categories:
    their names by code. facts: how it was learnt and judged, with `shipped`.
    """

    generators: tuple[str, ...]
    per_generator: int
    trees: Trees
    items: Items
    maps: Mapping[str, tuple[np.ndarray, np.ndarray]]
    categories: tuple[str, ...]
    facts: Mapping[str, Any]

    def scorer(self, generators: Mapping[str, Generator], popularity: Popularity) -> TwoStage:
        """The whole line over generators of these names."""
        chosen = {name: generators[name] for name in self.generators}
        return TwoStage(chosen, self.per_generator, self.trees, self.items, popularity)

    def arrays(self) -> dict[str, np.ndarray]:
        rows, codes = self.items.categories.flat()
        found = {
            "category_code": codes.astype(np.int32),
            "category_length": np.bincount(rows, minlength=len(self.items)).astype(np.int32),
        }
        if self.items.judged is not None:
            found["judged"] = self.items.judged
        for name, (mean_F, map_FK) in self.maps.items():
            found |= {f"{name}.mean": mean_F, f"{name}.map": map_FK}
            found |= {
                f"{name}.content": self.items.content[name],
                f"{name}.present": self.items.present[name],
            }
        return found

    def settings(self) -> dict[str, Any]:
        """What is not an array, as JSON values."""
        return {
            "generators": list(self.generators),
            "tables": list(self.maps),
            "per_generator": self.per_generator,
            "features": list(self.trees.features),
            "categories": list(self.categories),
            "facts": dict(self.facts),
        }

    @classmethod
    def of(cls, settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray], text: str) -> "Ranker":
        """From what `settings`, `arrays` and `trees.text` gave."""
        tables = settings["tables"]
        codes = arrays["category_code"].astype(np.int64)
        items = Items(
            {name: arrays[f"{name}.content"] for name in tables},
            {name: arrays[f"{name}.present"] for name in tables},
            Ragged.from_lengths(codes, arrays["category_length"].astype(np.int64)),
            len(settings["categories"]),
            arrays.get("judged"),
        )
        return cls(
            tuple(settings["generators"]),
            int(settings["per_generator"]),
            Trees(text, tuple(settings["features"])),
            items,
            {name: (arrays[f"{name}.mean"], arrays[f"{name}.map"]) for name in tables},
            tuple(settings["categories"]),
            settings["facts"],
        )

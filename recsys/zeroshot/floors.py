"""What any model has to beat on the same candidates: chance, popularity, shared words."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import polars as pl

from recsys.evaluate import Evaluation, Scorer, evaluation_of
from recsys.evaluate import Ranked as Ranks
from recsys.protocol import Key, Protocol
from recsys.schema import Queries
from recsys.stats import bootstrap_intervals
from recsys.zeroshot.cases import Asked

_K1, _B = 1.2, 0.75


class Words:
    """BM25 of the candidates' titles and categories against those of the history, as a scorer."""

    widths: tuple[int, ...] = ()

    def __init__(self, texts: Sequence[str]):
        self._words = [re.findall(r"\w+", text.casefold()) for text in texts]
        vocabulary = {
            word: number for number, word in enumerate(sorted({w for ws in self._words for w in ws}))
        }
        self._ids = [np.array([vocabulary[word] for word in words], np.int64) for words in self._words]
        seen = np.zeros(len(vocabulary))
        for ids in self._ids:
            seen[np.unique(ids)] += 1
        self._idf = np.log1p((len(texts) - seen + 0.5) / (seen + 0.5))
        self._mean = float(np.mean([len(ids) for ids in self._ids])) or 1.0

    def score(
        self, queries: Queries, candidates: np.ndarray | None = None, width: int | None = None
    ) -> np.ndarray:
        every = np.arange(len(self._ids)) if candidates is None else candidates
        lists_QC = np.broadcast_to(every, (len(queries), np.shape(every)[-1]))
        found_QC = np.full(lists_QC.shape, -np.inf, np.float32)
        for row, items in enumerate(lists_QC):
            asked = [self._ids[item] for item in queries.history[row]]
            words, counts = (
                np.unique(np.concatenate(asked), return_counts=True) if asked else (np.zeros(0, int),) * 2
            )
            weights = np.zeros(len(self._idf))
            weights[words] = counts
            for column in np.flatnonzero(items >= 0):
                found_QC[row, column] = self._one(items[column], weights)
        return found_QC

    def _one(self, item: int, weights: np.ndarray) -> float:
        words, counts = np.unique(self._ids[item], return_counts=True)
        length = _K1 * (1 - _B + _B * len(self._ids[item]) / self._mean)
        return float((weights[words] * self._idf[words] * counts * (_K1 + 1) / (counts + length)).sum())


def chance(asked: Asked, protocol: Protocol) -> Evaluation:
    """The expected metrics of a random order of the candidates, of every query, exactly; no list is drawn.

    Intervals are those of the users: where all have one target among their candidates there is nothing to vary.
    """
    lists_QC, targets = asked.lists_QC, asked.queries.targets
    rows, _ = targets.flat()
    inside = Ranks(rows, rows, np.zeros(len(rows), np.int64), lists_QC)
    judged = evaluation_of(
        inside, asked.split, asked.part, asked.queries, protocol.model_copy(update={"slices": (), "bootstrap": 0}),
        "random", ("train",), length=asked.candidates.length,
    )  # fmt: skip
    columns = asked.candidates.columns(lists_QC, targets)
    at, places = columns.flat()
    found_Q = np.bincount(at[places >= 0], minlength=len(targets))
    sizes_Q, lengths_Q = targets.lengths, (lists_QC >= 0).sum(axis=1)
    shapes, row_Q = np.unique(np.stack([lengths_Q, found_Q, sizes_Q], axis=1), axis=0, return_inverse=True)
    values: dict[str, np.ndarray] = {}
    for k in protocol.ks:
        per_shape = [_expected(*map(int, shape), k) for shape in shapes]
        for metric in per_shape[0]:
            key = str(Key(asked.part, metric, k, asked.candidates.length))
            values[key] = np.array([one[metric] for one in per_shape])[row_Q.reshape(-1)]
    matrix_QM = np.stack(list(values.values()), axis=1)
    bounds_2M = np.tile(matrix_QM.mean(axis=0), (2, 1))
    if protocol.bootstrap:
        bounds_2M = bootstrap_intervals(
            matrix_QM, asked.queries.queries.user_Q, protocol.bootstrap, protocol.seed
        )
    stored: dict[str, dict[str, float | None]] = {}
    for number, key in enumerate(values):
        low, high = bounds_2M[:, number].tolist()
        mean = float(matrix_QM[:, number].mean())
        stored[key] = {"value": mean, "low": low, "high": high, "n": len(matrix_QM)}
    who = judged.per_query.select("query_id", "user")
    return replace(judged, values=stored, per_query=pl.concat([who, pl.DataFrame(values)], how="horizontal"))


def _expected(n: int, found: int, wanted: int, k: int) -> Mapping[str, float]:
    """found: targets among n candidates in random order; wanted: all targets of the query."""
    places = np.arange(1, min(k, n) + 1)
    share, best = found / max(n, 1), min(wanted, k)
    gains = 1 / np.log2(places + 1)
    ideal = (1 / np.log2(np.arange(2, best + 2))).sum()
    # first[r]: the chance that the first target stands at place r; others: further targets before a hit at r
    none = np.concatenate([[1.0], np.cumprod([max(n - found - r, 0) / (n - r) for r in range(len(places))])])
    first = none[:-1] - none[1:]
    others = (places - 1) * (found - 1) / max(n - 1, 1)
    return {
        "ndcg": float(share * gains.sum() / ideal),
        "hr": float(1 - none[-1]),
        "recall": float(share * len(places) / wanted),
        "mrr": float((first / places).sum()),
        "map": float((share * (1 + others) / places).sum() / best),
    }


def rank_scorer(scorer: Scorer, asked: Asked) -> np.ndarray:
    """[Q, C] item indices, best first; equal scores as the candidates stand, which is at random."""
    lists_QC = asked.lists_QC
    scores_QC = np.where(lists_QC >= 0, scorer.score(asked.queries.queries, lists_QC, None), -np.inf)
    order_QC = np.argsort(-scores_QC, axis=1, kind="stable")
    return np.take_along_axis(lists_QC, order_QC, axis=1)

"""Rankings: anybody's top lists on disk, so that every recommender meets the same metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from recsys import schema
from recsys.candidates import Candidates, lists_by_query, sorted_lists
from recsys.errors import EvaluationError
from recsys.evaluate import Evaluation, Ranked, Scorer, evaluation_of, rank_all
from recsys.protocol import Protocol
from recsys.schema import Dense
from recsys.splits import EvalQueries, Split


@dataclass(frozen=True)
class Rankings:
    """Anybody's top lists: query_id, item_id, rank (from 1), optional score, source."""

    frame: pl.DataFrame

    @classmethod
    def from_scorer(
        cls,
        scorer: Scorer,
        split: Split,
        part: str,
        depth: int,
        protocol: Protocol,
        *,
        fit_parts: Sequence[str] = ("train",),
    ) -> "Rankings":
        """The first `depth` items of every query under the protocol's masking; fit_parts as in `evaluate`."""
        asked = split.queries(part)
        train = split.fit_log(fit_parts).sequences
        ranked = rank_all(scorer, asked, protocol, train, None, None, None, list_depth=depth)
        return cls.of_lists(ranked.lists_QK, asked, split)

    @classmethod
    def of_lists(cls, lists_QK: np.ndarray, asked: EvalQueries, split: Split) -> "Rankings":
        """From item indices of every query, best first; -1 pads."""
        rows, places = np.nonzero(lists_QK >= 0)
        return cls(
            pl.DataFrame(
                {
                    "query_id": asked.query_id_Q[rows],
                    schema.ITEM: split.item_ids.gather(lists_QK[rows, places]),
                    "rank": places + 1,
                }
            )
        )

    @property
    def depth(self) -> int:
        """Length of the longest list."""
        return int(self.frame["rank"].max() or 0)

    def save(self, path: Path) -> None:
        self.frame.write_parquet(path)

    @classmethod
    def load(cls, path: Path) -> "Rankings":
        return cls(pl.read_parquet(path))


def evaluate_rankings(
    rankings: Rankings, split: Split, part: str, protocol: Protocol, *, name: str = "rankings",
    fit_parts: Sequence[str] = ("train",), candidates: Candidates | None = None,
    tables: Mapping[str, Dense] | None = None,
) -> Evaluation:  # fmt: skip
    """Judge lists as they are: nothing is masked, a target that is absent from its list is a miss.

    An item outside the catalogue keeps its place. candidates: that the lists were made of; metric keys then carry
    their length. tables: for diversity and missing modalities. Raises EvaluationError for a k beyond the depth,
    repeats, holes, unknown queries, or an item that is not among its query's candidates.
    """
    if candidates is not None:
        candidates.check(split, part, max(protocol.ks))
        _check_inside(rankings, candidates)
    if max(protocol.ks) > rankings.depth:
        raise EvaluationError(
            f"k = {max(protocol.ks)} lies beyond the lists' depth {rankings.depth}", fix="lower evaluate.ks"
        )
    asked = split.queries(part)
    lists = lists_by_query(sorted_lists(rankings.frame, "rank", "rankings"), split, part, "rankings")
    lists_QK = lists.padded(rankings.depth) if lists.lengths.max() == rankings.depth else lists.padded()
    columns = Candidates.columns(lists_QK, asked.targets)
    rows, items = asked.targets.flat()
    ranked = Ranked(rows, items, columns.values + 1, lists_QK)
    length = None if candidates is None else candidates.length
    return evaluation_of(ranked, split, part, asked, protocol, name, fit_parts, tables=tables, length=length)


def _check_inside(rankings: Rankings, candidates: Candidates) -> None:
    keys = ["query_id", schema.ITEM]
    foreign = rankings.frame.join(candidates.frame, on=keys, how="anti")
    if not foreign.is_empty():
        raise EvaluationError(
            f"item {foreign[schema.ITEM][0]!r} is not among the candidates of query {foreign['query_id'][0]}",
            where="rankings",
            fix="rank the candidates alone",
        )

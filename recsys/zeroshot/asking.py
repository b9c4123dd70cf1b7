"""Many cases, some at a time; and the lists that come out."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import polars as pl

from recsys import schema
from recsys.errors import RecsysError
from recsys.progress import track
from recsys.rankings import Rankings
from recsys.zeroshot.cases import Asked
from recsys.zeroshot.clients.base import Usage
from recsys.zeroshot.modes import Judged, Ranker
from recsys.zeroshot.parsing import Faults
from recsys.zeroshot.prompts import Case


@dataclass(frozen=True)
class Contest:
    """A variant's answers to all cases, in their order."""

    name: str
    judged: Sequence[Judged]

    @property
    def faults(self) -> Faults:
        return sum((one.faults for one in self.judged), Faults())

    @property
    def usage(self) -> Usage:
        return sum((one.usage for one in self.judged), Usage())

    @property
    def places_QC(self) -> np.ndarray:
        """Positions among the candidates, best first; -1 pads."""
        width = max(len(one.order) for one in self.judged)
        out_QC = np.full((len(self.judged), width), -1, np.int64)
        for row, one in enumerate(self.judged):
            out_QC[row, : len(one.order)] = one.order
        return out_QC

    def lists_QC(self, asked: Asked) -> np.ndarray:
        places_QC = self.places_QC
        lists_QC = np.take_along_axis(asked.lists_QC, np.maximum(places_QC, 0), axis=1)
        return np.where(places_QC < 0, -1, lists_QC)

    def preferences_QC(self) -> np.ndarray:
        """By position among the candidates: minus the mean rank over the rounds; NaN pads."""
        width = max(len(one.order) for one in self.judged)
        out_QC = np.full((len(self.judged), width), np.nan)
        for row, one in enumerate(self.judged):
            out_QC[row, : len(one.order)] = -one.ranks_RN.mean(axis=0)
        return out_QC


def contest(name: str, ranker: Ranker, cases: Sequence[Case], concurrency: int) -> Contest:
    """Rank all cases, at most `concurrency` at a time. The first error stops what has not begun.

    Raises RecsysError where no question at all had an answer.
    """
    with ThreadPoolExecutor(concurrency) as pool:
        waiting = [pool.submit(ranker.rank, case) for case in cases]
        try:
            judged = [
                one.result() for one in track(waiting, f"asking {ranker.client.name}", total=len(waiting))
            ]
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    found = Contest(name, judged)
    faults = found.faults
    if faults.answers and faults.failed == faults.answers:
        raise RecsysError("not one question had an answer", where=ranker.client.name, fix="check [client]")
    return found


def rankings_of(name: str, lists_QC: np.ndarray, asked: Asked) -> Rankings:
    """The lists as a table, with the name as their source."""
    found = Rankings.of_lists(lists_QC, asked.queries, asked.split)
    return Rankings(found.frame.with_columns(pl.lit(name).alias("source")))


def judgements(found: Contest, asked: Asked) -> pl.DataFrame:
    """What the model said of every candidate, as features for a ranker that then needs no model: query_id, user_id,
    item_id, mean_rank and rank_std over the rounds, score (mean log-probability, NaN where the mode gives none), place
    in the combined order, and how far the base ranker's place is from it (NaN without one)."""
    rows = []
    users = asked.split.user_ids.gather(asked.queries.queries.user_Q).to_list()
    for one, user in zip(found.judged, users, strict=True):
        place_N = np.argsort(one.order)
        base_N = np.full(len(one.order), np.nan)
        if one.case.base is not None:
            base_N[list(one.case.base)] = np.arange(len(one.order))
        rows.append(
            pl.DataFrame(
                {
                    "query_id": np.full(len(one.order), one.case.query_id),
                    schema.USER: pl.Series([user] * len(one.order), dtype=asked.split.user_ids.dtype),
                    schema.ITEM: asked.split.item_ids.gather(list(one.case.candidates)),
                    "mean_rank": one.ranks_RN.mean(axis=0),
                    "rank_std": one.ranks_RN.std(axis=0),
                    "score": one.scores_RN.mean(axis=0),
                    "place": place_N + 1,
                    "from_base": np.abs(place_N - base_N),
                }
            )
        )
    return pl.concat(rows)


def of_items(judged: pl.DataFrame, folds: int) -> pl.DataFrame:
    """What the model thought of items whoever asked: item_id, fold, mean_place (0 = best, 1 = last), and judged, how
    many users that rests on. Row (item, f) leaves the users of fold f out, so that a ranker that learns from a user's
    choices gets a feature made for others; fold -1 rests on all, for serving. A user's fold is query_id mod `folds`.
    """
    size = pl.col("place").max().over("query_id")
    scaled = judged.with_columns(
        ((pl.col("mean_rank") - 1) / (size - 1)).alias("scaled"), (pl.col("query_id") % folds).alias("own")
    )
    parts = []
    for fold in range(-1, folds):
        others = scaled.filter(pl.col("own") != fold)
        parts.append(
            others.group_by(schema.ITEM, maintain_order=True)
            .agg(pl.col("scaled").mean().alias("mean_place"), pl.len().alias("judged"))
            .with_columns(pl.lit(fold).alias("fold"))
        )
    return pl.concat(parts).select(schema.ITEM, "fold", "mean_place", "judged")

"""From a split to questions: the users that are drawn, their candidates, and what the prompt may know of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from recsys import schema
from recsys.bundle import Bundle
from recsys.candidates import Candidates
from recsys.errors import ConfigError
from recsys.evaluate import Scorer
from recsys.schema import Queries, pick
from recsys.splits import EvalQueries, Split
from recsys.zeroshot.config import CandidatesConfig
from recsys.zeroshot.prompts import Case, Example


@dataclass(frozen=True)
class Asked:
    """Part of a split: the split that asks its drawn users alone, their queries and candidates. targets stay here and
    reach no prompt."""

    split: Split
    part: str
    queries: EvalQueries
    candidates: Candidates

    @property
    def lists_QC(self) -> np.ndarray:
        return self.candidates.rows(self.queries.query_id_Q)

    @property
    def repeated(self) -> int:
        """Targets that stand in their own user's history: where they are among the candidates, that gives them away."""
        rows, items = self.queries.targets.flat()
        return sum(item in self.queries.queries.history[row] for row, item in zip(rows, items, strict=True))

    @property
    def recall(self) -> float:
        """Share of targets that are among the candidates: a bound on all that follows."""
        columns = Candidates.columns(self.lists_QC, self.queries.targets)
        _, places = columns.flat()
        return float((places >= 0).mean())


class Counts:
    """Train popularity as a scorer."""

    widths: tuple[int, ...] = ()

    def __init__(self, split: Split):
        self.counts_I = split.fit_log().item_counts().astype(np.float32)

    def score(
        self, queries: Queries, candidates: np.ndarray | None = None, width: int | None = None
    ) -> np.ndarray:
        return pick(np.tile(self.counts_I, (len(queries), 1)), candidates)


def drawn(split: Split, part: str, users: int | None, seed: int) -> Split:
    """The same split with the part's rows of so many users alone; what models learn from and all ids stay."""
    (code,) = split.codes([part])
    rows_N = split.part_N == code
    having = np.unique(split.log.user_N[rows_N])
    if users is None or users >= len(having):
        return split
    chosen = np.random.default_rng([seed, code]).permutation(having)[:users]
    dropped_N = rows_N & ~np.isin(split.log.user_N, chosen)
    return replace(split, part_N=np.where(dropped_N, -1, split.part_N))


def open_scorers(bundles: Mapping[str, str], split: Split) -> dict[str, Scorer]:
    """Programs of trained bundles. Raises SplitError for one that was made under another split."""
    found: dict[str, Scorer] = {}
    for name, folder in bundles.items():
        bundle = Bundle.open(Path(folder))
        split.check_id(bundle.manifest["split_id"])
        found[name] = bundle.scorer()
    return found


def make_candidates(
    config: CandidatesConfig, split: Split, part: str, scorers: Mapping[str, Scorer]
) -> Candidates:
    """Seeded: the same settings give the same file. Raises EvaluationError where the catalogue is too small or a file
    does not fit the questions."""
    if config.method == "file":
        found = Candidates.load(Path(config.path or ""), split)
        if found.facts["part"] != part:
            raise ConfigError(
                f"candidates of the {found.facts['part']} part", where=config.path, expected=part
            )
        return found
    if config.method != "retrieved":
        return Candidates.sample(
            split, part, config.n, config.seed, guaranteed=config.guaranteed,
            by_popularity=config.method == "popularity",
        )  # fmt: skip
    asked = split.queries(part)
    lists = _retrieved(scorers[config.retriever or ""], asked, config)
    frame = pl.DataFrame(
        {
            "query_id": np.repeat(asked.query_id_Q, config.n),
            schema.ITEM: split.item_ids.gather(lists.reshape(-1)),
            "position": np.tile(np.arange(1, config.n + 1), len(asked)),
        }
    )
    return Candidates.of(
        frame, split, part, seed=config.seed, target_guaranteed=config.guaranteed, retriever=config.retriever
    )


def _retrieved(scorer: Scorer, asked: EvalQueries, config: CandidatesConfig) -> np.ndarray:
    """[Q, n]: the best items that the user did not have, shuffled; guaranteed: the targets take the last places.

    A target that the user had before is found by the guarantee alone: it would be the one candidate of the history.
    """
    rows = []
    scores_QI = np.array(scorer.score(asked.queries, None, None), np.float32)
    for row, scores_I in enumerate(scores_QI):
        targets = asked.targets[row][asked.targets[row] >= 0]
        scores_I[asked.queries.history[row]] = -np.inf
        best = np.argsort(-scores_I, kind="stable")[: config.n]
        if config.guaranteed:
            others = [item for item in best.tolist() if item not in targets]
            best = np.array([*targets[: config.n], *others][: config.n], np.int64)
        rows.append(np.random.default_rng([config.seed, row]).permutation(best))
    return np.stack(rows)


def make_cases(asked: Asked, base: Scorer | None = None, examples: int = 0, length: int = 10) -> list[Case]:
    """One a query. base: its order of the candidates goes along. examples: so many similar users of the train part,
    with at most `length` items each."""
    queries, lists_QC = asked.queries, asked.lists_QC
    orders = None
    if base is not None:
        scores_QC = np.asarray(base.score(queries.queries, lists_QC, None))
        orders = np.argsort(-scores_QC, axis=1, kind="stable")
    shown = _similar_users(asked.split, queries, examples, length) if examples else [()] * len(queries)
    return [
        Case(
            int(queries.query_id_Q[row]),
            tuple(queries.queries.history[row].tolist()),
            tuple(lists_QC[row][lists_QC[row] >= 0].tolist()),
            None if orders is None else tuple(orders[row][lists_QC[row][orders[row]] >= 0].tolist()),
            shown[row],
        )
        for row in range(len(queries))
    ]


def _similar_users(split: Split, asked: EvalQueries, count: int, length: int) -> list[tuple[Example, ...]]:
    """Those whose train items are most like the query's history (cosine, rare items count more), with the last train
    item as what came next. The user itself is never an example."""
    log = split.fit_log()
    weights_I = np.log1p(log.num_users / np.maximum(log.item_counts(), 1))
    sequences = log.sequences
    users, items = sequences.flat()
    squares_U = np.bincount(users, weights=weights_I[items] ** 2, minlength=log.num_users)
    by_item = np.argsort(items, kind="stable")
    starts = np.searchsorted(items[by_item], np.arange(log.num_items + 1))
    enough_U = sequences.lengths >= 2
    found = []
    for row in range(len(asked)):
        likeness_U = np.zeros(log.num_users)
        for item in np.unique(asked.queries.history[row]):
            near = users[by_item[starts[item] : starts[item + 1]]]
            np.add.at(likeness_U, near, weights_I[item] ** 2)
        likeness_U /= np.sqrt(np.maximum(squares_U, 1e-12))
        likeness_U[~enough_U] = 0
        likeness_U[asked.queries.user_Q[row]] = 0
        best = np.argsort(-likeness_U, kind="stable")[:count]
        found.append(tuple(_example(sequences[user], length) for user in best if likeness_U[user] > 0))
    return found


def _example(sequence: np.ndarray, length: int) -> Example:
    return Example(tuple(sequence[-1 - length : -1].tolist()), int(sequence[-1]))


def controlled(cases: Sequence[Case], control: str, seed: int) -> list[Case]:
    """The cases with their histories taken away, shuffled, or passed on by one; candidates stay."""
    if control == "no_history":
        return [case.without_history() for case in cases]
    if control == "shuffled":
        return [
            replace(
                case,
                history=tuple(
                    np.random.default_rng([seed, case.query_id]).permutation(case.history).tolist()
                ),
            )
            for case in cases
        ]
    order = np.random.default_rng(seed).permutation(len(cases))
    given = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))
    return [
        replace(case, history=cases[given[row]].history, examples=cases[given[row]].examples)
        for row, case in enumerate(cases)
    ]

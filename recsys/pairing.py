"""Pairs of items to learn embeddings from: by co-occurrence in the train part, or as a Dataset lists them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import polars as pl
from pydantic import Field, model_validator

from recsys import schema
from recsys.config import Config
from recsys.dataset import Dataset
from recsys.errors import DataError, SplitError, nearest
from recsys.files import digest
from recsys.schema import Log
from recsys.splits import Split, positions

VERSION = 1
_DAY = 86_400


class PairingConfig(Config):
    """Where pairs come from."""

    source: Literal["interactions", "pairs"] = "interactions"
    """interactions: two items of one user's train rows, scored s(A -> B) = sum over users of 1 / N_u, with N_u the
    distinct items of the user within `days` (NoteLLM, arXiv 2403.01744). pairs: the Dataset's pairs table."""
    days: Annotated[float, Field(gt=0)] | None = None
    """For interactions: the train part's last so many days; None = all of it. The paper has 7."""
    span: Annotated[int, Field(ge=1)] = 20
    """For interactions: B comes at most so many distinct items after A; the work grows with it."""
    directed: bool = True
    """For interactions: A came before B; off = either order."""
    lower: Annotated[float, Field(ge=0)] = 0.0
    """Pairs of a lower score are left out."""
    upper: Annotated[float, Field(gt=0)] | None = None
    """Pairs of a higher score are left out as outliers; None = none is."""
    top: Annotated[int, Field(ge=1)] | None = 10
    """Pairs that are kept of each A, the best ones; None = all."""
    kinds: tuple[str, ...] = ()
    """For pairs: kinds that are taken, e.g. ["also_viewed"]; empty = all."""

    @model_validator(mode="after")
    def _apply(self):
        own = {"interactions": {"days", "span", "directed", "lower", "upper"}, "pairs": {"kinds"}}
        for source, names in own.items():
            if source != self.source and (set_ := sorted(names & self.model_fields_set)):
                raise ValueError(f"{set_[0]} for source = {source!r} only")
        return self


@dataclass(frozen=True)
class ItemPairs:
    """pairs_P2: int64 rows of `ids`; score_P: float64, higher is closer. made_of: where they come from, as JSON values.
    split_id: of the split whose train part they were counted on; None = they rest on no interactions."""

    pairs_P2: np.ndarray
    score_P: np.ndarray
    ids: pl.Series
    made_of: dict
    split_id: str | None

    def __len__(self) -> int:
        return len(self.pairs_P2)

    @property
    def fingerprint(self) -> str:
        """Hash over the pairs by id, their scores and where they come from."""
        names = [str(value) for value in self.ids.to_list()]
        rows = sorted(
            (names[a], names[b], float(s)) for (a, b), s in zip(self.pairs_P2, self.score_P, strict=True)
        )
        return digest({"version": VERSION, "made_of": self.made_of, "pairs": rows})


def make_pairs(dataset: Dataset, config: PairingConfig, split: Split | None = None) -> ItemPairs:
    """Pairs over the rows of `dataset.items`.

    Interactions need a split, and of it the train part alone is read. Given pairs say nothing of who did what when,
    and take no split. Raises SplitError where the split is missing or another Dataset's, DataError where nothing is
    left.
    """
    ids = dataset.items[schema.ITEM]
    facts = {"dataset": dataset.fingerprint, "config": config.model_dump(mode="json")}
    if config.source == "pairs":
        pairs_P2, score_P = _given(dataset, ids, config)
        found = ItemPairs(pairs_P2, score_P, ids, facts, None)
    else:
        if split is None:
            raise SplitError("pairs of interactions are counted on a train part", expected="a split")
        split.check(dataset)
        pairs_P2, score_P = co_occurrence(split.fit_log(("train",)), config)
        row_I = positions(split.item_ids, ids)
        found = ItemPairs(row_I[pairs_P2], score_P, ids, facts | {"split": split.id}, split.id)
    if not len(found):
        raise DataError("no pair is left", where=dataset.path, fix="widen span, days, the bounds or kinds")
    return found


def co_occurrence(log: Log, config: PairingConfig) -> tuple[np.ndarray, np.ndarray]:
    """(pairs [P, 2], scores [P]) of a log, by left item and then from the best on.

    An item that a user met several times stands where he met it first.
    """
    kept_N = np.ones(len(log), bool)
    if config.days is not None and len(log):
        kept_N = log.time_N > log.time_N.max() - config.days * _DAY
    user_N, item_N = log.user_N[kept_N], log.item_N[kept_N]
    _, first = np.unique(user_N * log.num_items + item_N, return_index=True)
    first.sort()
    user_N, item_N = user_N[first], item_N[first]
    weight_N = 1 / np.bincount(user_N, minlength=log.num_users)[user_N]
    codes, scores = [np.zeros(0, np.int64)], [np.zeros(0)]
    for lag in range(1, config.span + 1):
        same = user_N[:-lag] == user_N[lag:]
        if not same.any():
            break  # the log is sorted by user: no sequence is as long
        before, after = item_N[:-lag][same], item_N[lag:][same]
        for left, right in ((before, after),) if config.directed else ((before, after), (after, before)):
            codes.append(left * log.num_items + right)
            scores.append(weight_N[lag:][same])
    code_P, index = np.unique(np.concatenate(codes), return_inverse=True)
    score_P = np.bincount(index, weights=np.concatenate(scores), minlength=len(code_P))
    inside_P = score_P >= config.lower
    if config.upper is not None:
        inside_P &= score_P <= config.upper
    pairs_P2 = np.stack([code_P // log.num_items, code_P % log.num_items], 1)[inside_P]
    return _best(pairs_P2, score_P[inside_P], config.top)


def _best(pairs_P2: np.ndarray, score_P: np.ndarray, top: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The `top` best of each left item; of equal ones the lower index first."""
    order_P = np.lexsort((pairs_P2[:, 1], -score_P, pairs_P2[:, 0]))
    pairs_P2, score_P = pairs_P2[order_P], score_P[order_P]
    if top is None:
        return pairs_P2, score_P
    left_P = pairs_P2[:, 0]
    place_P = np.arange(len(left_P)) - np.searchsorted(left_P, left_P, side="left")
    return pairs_P2[place_P < top], score_P[place_P < top]


def _given(dataset: Dataset, ids: pl.Series, config: PairingConfig) -> tuple[np.ndarray, np.ndarray]:
    """The Dataset's pairs, scored by 1 / rank; a pair of several kinds counts once, with its best rank."""
    pairs = dataset.scan("pairs").collect()
    known = pairs[schema.KIND].unique().to_list()
    for kind in config.kinds:
        if kind not in known:
            raise DataError(f"no pairs of kind {kind!r}", where=dataset.path, fix=nearest(kind, known))
    if config.kinds:
        pairs = pairs.filter(pl.col(schema.KIND).is_in(config.kinds))
    pairs = pairs.filter(pl.col(schema.ITEM) != pl.col(schema.OTHER))
    pairs = pairs.group_by(schema.ITEM, schema.OTHER).agg(pl.col(schema.RANK).min())
    both = [positions(pairs[name], ids) for name in (schema.ITEM, schema.OTHER)]
    return _best(np.stack(both, 1), 1 / pairs[schema.RANK].to_numpy().astype(float), config.top)


class PairSplitConfig(Config):
    """How items are dealt to parts, so that what is asked about was never trained on."""

    group: str | None = None
    """Column of the items table whose values stay together, e.g. the product that colours are variants of; two items of
    one value are no pair. None = each item alone."""
    valid: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of groups in the validation part."""
    test: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of groups in the test part."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the draw."""


@dataclass(frozen=True)
class PairSplit:
    """Pairs within each part of the items; a pair between parts is in none. part_I: 0 train, 1 valid, 2 test.
    id: hash of pairs and settings; it stands in what the parts are made of."""

    train: ItemPairs
    valid: ItemPairs
    test: ItemPairs
    part_I: np.ndarray
    group_I: np.ndarray
    id: str


def split_pairs(dataset: Dataset, pairs: ItemPairs, config: PairSplitConfig) -> PairSplit:
    """Parts by item: an item of the test part is on no side of a train pair. Raises DataError for an unknown column."""
    items = dataset.items
    if config.group is not None and config.group not in items.columns:
        raise DataError(
            f"no column {config.group!r}", where="items", fix=nearest(config.group, items.columns)
        )
    column = pairs.ids if config.group is None else items[config.group].cast(pl.String).fill_null("")
    names = column.cast(pl.String)
    groups = names.unique().sort()  # drawn by name: the order of rows changes nothing
    order = np.random.default_rng(config.seed).permutation(len(groups))
    cuts = np.round(np.array([config.test, config.test + config.valid]) * len(groups)).astype(int)
    part_G = np.zeros(len(groups), np.int8)
    part_G[order[: cuts[0]]], part_G[order[cuts[0] : cuts[1]]] = 2, 1
    group_I = positions(names, groups)
    part_I = part_G[group_I]
    identity = digest([VERSION, pairs.fingerprint, config.model_dump(mode="json")])
    made_of = {"pairs": pairs.made_of, "pair_split_id": identity, "config": config.model_dump(mode="json")}
    left_P, right_P = pairs.pairs_P2.T
    apart_P = group_I[left_P] != group_I[right_P]
    parts = [
        _chosen(
            pairs,
            apart_P & (part_I[left_P] == part) & (part_I[right_P] == part),
            made_of | {"part": part},
        )
        for part in range(3)
    ]
    return PairSplit(*parts, part_I, group_I, identity)


def _chosen(pairs: ItemPairs, kept_P: np.ndarray, made_of: dict) -> ItemPairs:
    return ItemPairs(pairs.pairs_P2[kept_P], pairs.score_P[kept_P], pairs.ids, made_of, pairs.split_id)


def targets_of(pairs_P2: np.ndarray) -> tuple[np.ndarray, Sequence[np.ndarray]]:
    """(query items, ascending; the partners of each), from either side of the pairs."""
    both = np.unique(np.concatenate([pairs_P2, pairs_P2[:, ::-1]]), axis=0)
    queries, starts = np.unique(both[:, 0], return_index=True)
    return queries, np.split(both[:, 1], starts[1:])

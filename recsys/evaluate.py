"""Evaluation: any scorer on one part of a split, over the full catalogue or a candidate list."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from typing import Protocol as Interface

import numpy as np
import polars as pl

from recsys.candidates import Candidates
from recsys.errors import EvaluationError
from recsys.files import new_folder, write_json
from recsys.metrics import list_metrics, query_metrics, target_ranks, top_k
from recsys.progress import track
from recsys.protocol import Key, Mask, Protocol, parse_metric
from recsys.schema import Dense, Queries, Ragged, among
from recsys.slices import pools, query_slices, target_slices
from recsys.splits import EvalQueries, Split
from recsys.stats import bootstrap_intervals

BATCH = 256


class Scorer(Interface):
    """What can be evaluated: a Model, or a bundle's program."""

    @property
    def widths(self) -> tuple[int, ...]: ...

    def score(
        self, queries: Queries, candidates: np.ndarray | None = None, width: int | None = None
    ) -> np.ndarray: ...


@dataclass
class Evaluation:
    """The result of one evaluation.

    values: key -> {value, low, high, n} (n queries behind it; the interval is a 95 % user bootstrap). per_query:
    query_id, user and all metrics of every query, NaN where it has no target in a slice. facts: split, protocol,
    counts.
    """

    values: dict[str, dict[str, float | None]]
    per_query: pl.DataFrame
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.facts["name"]

    def value(self, key: str | Key) -> float:
        """Raises EvaluationError for a key that was not measured."""
        if str(key) not in self.values:
            raise EvaluationError(
                f"no metric {str(key)!r}", expected=", ".join(list(self.values)[:5]) + ", ..."
            )
        return self.values[str(key)]["value"]

    def save(self, folder: str | Path) -> None:
        with new_folder(Path(folder)) as target:
            write_json(target / "evaluation.json", {"values": self.values, "facts": self.facts})
            self.per_query.write_parquet(target / "per_query.parquet")

    @classmethod
    def load(cls, folder: str | Path) -> "Evaluation":
        folder = Path(folder)
        stored = json.loads((folder / "evaluation.json").read_text())
        return cls(stored["values"], pl.read_parquet(folder / "per_query.parquet"), stored["facts"])


@dataclass
class Ranked:
    """Ranks of all targets of all queries under one pool and width, and the top lists."""

    rows_T: np.ndarray
    items_T: np.ndarray
    ranks_T: np.ndarray
    lists_QK: np.ndarray | None = None

    def only(self, keep_T: np.ndarray) -> "Ranked":
        return Ranked(self.rows_T[keep_T], self.items_T[keep_T], self.ranks_T[keep_T])


def masked_items(
    asked: EvalQueries, mask: Mask, window: int, train: Ragged | None, repeat_targets: str
) -> tuple[np.ndarray, np.ndarray]:
    """(query row, item) cells that are not ranked."""
    history = asked.queries.history
    if mask == "off":
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    if mask == "train":
        seen = train.take(asked.queries.user_Q)
    else:
        seen = history if mask == "history" else history.tail(window)
    rows, items = seen.flat()
    if repeat_targets == "keep":
        own = among(_cells(rows, items), _cells(*asked.targets.flat()))
        rows, items = rows[~own], items[~own]
    return rows, items


def _cells(rows: np.ndarray, items: np.ndarray) -> np.ndarray:
    return rows * (1 << 32) + items


def ranked_batches(
    scorer: Scorer,
    asked: EvalQueries,
    protocol: Protocol,
    train: Ragged | None,
    width: int | None,
    pool_I: np.ndarray | None,
    candidates: Candidates | None,
    *,
    list_depth: int = 0,
    label: str = "",
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]]:
    """(rows, items, ranks) of the targets, and top lists where list_depth > 0, batch by batch."""
    starts = range(0, len(asked), BATCH)
    for start in track(starts, label, enabled=bool(label), total=len(starts)):
        part = asked.take(slice(start, start + BATCH))
        rows, items = masked_items(part, protocol.mask, protocol.window, train, protocol.repeat_targets)
        target_rows, target_items = part.targets.flat()
        if candidates is None:
            scores = np.array(scorer.score(part.queries, None, width), np.float32)
            scores[rows, items] = -np.inf
            if pool_I is not None:
                scores[:, ~pool_I] = -np.inf
            columns, lists_from = part.targets, None
        else:
            lists_from = candidates.rows(part.query_id_Q)
            scores = np.array(scorer.score(part.queries, lists_from, width), np.float32)
            scores[lists_from < 0] = -np.inf
            shown = _cells(np.arange(len(part))[:, None], lists_from)
            scores[among(shown, _cells(rows, items))] = -np.inf
            columns = candidates.columns(lists_from, part.targets)
        ranks = target_ranks(scores, columns)
        lists = top_k(scores, list_depth) if list_depth else None
        if lists is not None and lists_from is not None:
            lists = np.where(lists < 0, -1, np.take_along_axis(lists_from, np.maximum(lists, 0), axis=1))
        yield start + target_rows, target_items, ranks, lists


def rank_all(*arguments: Any, **options: Any) -> Ranked:
    """`ranked_batches` put together."""
    batches = list(ranked_batches(*arguments, **options))
    rows, items, ranks = (np.concatenate([batch[i] for batch in batches]) for i in range(3))
    lists = [batch[3] for batch in batches]
    return Ranked(rows, items, ranks, None if lists[0] is None else np.concatenate(lists))


def evaluate(
    scorer: Scorer,
    split: Split,
    part: str,
    protocol: Protocol,
    *,
    fit_parts: Sequence[str] = ("train",),
    tables: Mapping[str, Dense] | None = None,
    name: str = "model",
    candidates: Candidates | None = None,
    progress: bool = True,
) -> Evaluation:
    """Judge `scorer` on the queries of `part`.

    fit_parts: what it was fitted on (defines cold items and popularity). tables: item tables for the
    missing-modality slices and diversity. candidates: rank within these lists instead of the catalogue.
    Raises EvaluationError for NaN scores, unknown widths, or k beyond the candidate lists.
    """
    tables = tables or {}
    asked = split.queries(part)
    fit_log = split.fit_log(fit_parts)
    if candidates is not None:
        candidates.check(split, part, max(protocol.ks))
    label = f"testing {name}" if progress else ""
    train = fit_log.sequences
    widths = _widths(scorer, protocol)
    headline = rank_all(
        scorer, asked, protocol, train, widths[-1], None, candidates, list_depth=max(protocol.ks), label=label
    )
    narrow = {
        width: rank_all(scorer, asked, protocol, train, width, None, candidates, label=label)
        for width in widths[:-1]
    }
    inside = {}
    for mask in protocol.more_masks:
        other = protocol.model_copy(update={"mask": mask})
        inside[f"mask.{mask}"] = rank_all(
            scorer, asked, other, train, widths[-1], None, candidates, label=label
        )
    if candidates is None:
        for slice_name, pool_I in pools(fit_log.item_counts(), protocol).items():
            ranked = rank_all(scorer, asked, protocol, train, widths[-1], pool_I, None)
            inside[slice_name] = ranked.only((ranked.items_T >= 0) & pool_I[ranked.items_T])
    return evaluation_of(
        headline, split, part, asked, protocol, name, fit_parts,
        tables=tables, narrow=narrow, pooled=inside, length=None if candidates is None else candidates.length,
        width=widths[-1],
    )  # fmt: skip


def evaluation_of(
    headline: Ranked,
    split: Split,
    part: str,
    asked: EvalQueries,
    protocol: Protocol,
    name: str,
    fit_parts: Sequence[str],
    *,
    tables: Mapping[str, Dense] | None = None,
    narrow: Mapping[int, Ranked] | None = None,
    pooled: Mapping[str, Ranked] | None = None,
    length: int | None = None,
    width: int | None = None,
) -> Evaluation:
    """Metrics, slices and intervals of ranks. narrow: by width; pooled: by pool or further mask; length:
    of candidate lists; width: the full one, that of the headline."""
    counts_I = split.fit_log(fit_parts).item_counts()
    tables = tables or {}
    by_slice: dict[str | None, Ranked] = {None: headline, **(pooled or {})}
    lengths_T = asked.queries.history.lengths[headline.rows_T]
    for label, keep_T in target_slices(headline.items_T, lengths_T, counts_I, tables, protocol).items():
        by_slice[label] = headline.only(keep_T)
    measured: dict[Key, np.ndarray] = {}
    for label, ranked in by_slice.items():
        measured |= _values(ranked, len(asked), protocol, Key(part, "", 1, length, label))
    for label, keep_Q in query_slices(asked, protocol).items():
        for key, values_Q in _values(headline, len(asked), protocol, Key(part, "", 1, length, label)).items():
            measured[key] = np.where(keep_Q, values_Q, np.nan)
    for nested, ranked in (narrow or {}).items():
        measured |= _values(ranked, len(asked), protocol, Key(part, "", 1, length, None, nested))
    lists: dict[Key, float] = {}
    for k in protocol.ks:
        for metric, value in list_metrics(headline.lists_QK[:, :k], counts_I, tables).items():
            lists[Key(part, metric, k, length)] = value
    facts = _facts(split, part, protocol, asked, name, headline, fit_parts) | {"width": width}
    return _result(measured, lists, asked, protocol, facts)


def _widths(scorer: Scorer, protocol: Protocol) -> list[int | None]:
    """Widths to judge, the full one (None where the scorer has no widths) last."""
    if protocol.widths == "full" or not scorer.widths:
        return [scorer.widths[-1] if scorer.widths else None]
    wanted = (
        scorer.widths if protocol.widths == "all" else tuple(sorted({*protocol.widths, scorer.widths[-1]}))
    )
    unknown = [width for width in wanted if width not in scorer.widths]
    if unknown:
        raise EvaluationError(f"width {unknown[0]}", expected=f"one of: {', '.join(map(str, scorer.widths))}")
    return list(wanted)


def _values(ranked: Ranked, count: int, protocol: Protocol, key: Key) -> dict[Key, np.ndarray]:
    """Every metric of every query; a query without a target in this slice is NaN."""
    sizes_Q = np.bincount(ranked.rows_T, minlength=count)
    return {
        replace(key, metric=metric, k=k): values_Q
        for k in protocol.ks
        for metric, values_Q in query_metrics(ranked.ranks_T, ranked.rows_T, sizes_Q, k).items()
    }


def _facts(
    split: Split,
    part: str,
    protocol: Protocol,
    asked: EvalQueries,
    name: str,
    ranked: Ranked,
    fit_parts: Sequence[str],
) -> dict[str, Any]:
    history = _cells(*asked.queries.history.flat())
    targets = _cells(*asked.targets.flat())
    return {
        "name": name,
        "part": part,
        "split_id": split.id,
        "split_method": split.config.method,
        "protocol": protocol.model_dump(mode="json"),
        "protocol_id": protocol.id,
        "fit_parts": list(fit_parts),
        "queries": len(asked),
        "targets": len(targets),
        "catalogue": split.num_items,
        "targets_outside": int((ranked.items_T < 0).sum()),
        "targets_repeated": int(among(targets, history).sum()),
        "empty_histories": int((asked.queries.history.lengths == 0).sum()),
    }


def _result(
    measured: Mapping[Key, np.ndarray],
    lists: Mapping[Key, float],
    asked: EvalQueries,
    protocol: Protocol,
    facts: dict[str, Any],
) -> Evaluation:
    keys = list(measured)
    matrix_QM = np.stack([measured[key] for key in keys], axis=1)
    counts_M = np.isfinite(matrix_QM).sum(axis=0)
    bounds_2M = np.full((2, len(keys)), np.nan)
    if protocol.bootstrap:
        bounds_2M = bootstrap_intervals(matrix_QM, asked.queries.user_Q, protocol.bootstrap, protocol.seed)
    values: dict[str, dict[str, float | None]] = {}
    empty = []
    for column, key in enumerate(keys):
        if counts_M[column] == 0:
            empty.append(str(key.slice))
            continue
        values[str(key)] = {
            "value": float(np.nanmean(matrix_QM[:, column])),
            "low": float(bounds_2M[0, column]) if protocol.bootstrap else None,
            "high": float(bounds_2M[1, column]) if protocol.bootstrap else None,
            "n": int(counts_M[column]),
        }
    for key, value in lists.items():
        values[str(key)] = {"value": value, "low": None, "high": None, "n": len(asked)}
    facts["empty_slices"] = sorted(set(empty))
    columns = {str(key): measured[key] for key, count in zip(keys, counts_M, strict=True) if count}
    per_query = pl.DataFrame({"query_id": asked.query_id_Q, "user": asked.queries.user_Q} | columns)
    return Evaluation(values, per_query, facts)


def validation_metric(
    scorer: Scorer,
    split: Split,
    part: str,
    metric: str,
    mask: Mask = "history",
    width: int | None = None,
    max_queries: int | None = None,
    *,
    window: int = 50,
    harmonic: bool = False,
    fit_parts: Sequence[str] = ("train",),
) -> float:
    """One number for early stopping and selection: mean of `metric`, e.g. ndcg_at_10, on `part`.

    max_queries: the same random queries of that many, each time. harmonic: the harmonic mean of the metric within the
    pool of items without a row in `fit_parts` and within that of the others. Raises EvaluationError for an unknown
    metric, or a part without targets in either pool.
    """
    kind, k = parse_metric(metric)
    asked = split.queries(part)
    if max_queries is not None and max_queries < len(asked):
        asked = asked.take(np.sort(np.random.default_rng(0).permutation(len(asked))[:max_queries]))
    protocol = Protocol(ks=(k,), mask=mask, window=window)
    train = split.fit_log().sequences if mask == "train" else None

    def mean_of(ranked: Ranked) -> float:
        sizes_Q = np.bincount(ranked.rows_T, minlength=len(asked))
        return float(np.nanmean(query_metrics(ranked.ranks_T, ranked.rows_T, sizes_Q, k)[kind]))

    if not harmonic:
        return mean_of(rank_all(scorer, asked, protocol, train, width, None, None))
    means = []
    warm_I = split.fit_log(fit_parts).item_counts() > 0
    for pool_I in (warm_I, ~warm_I):
        ranked = rank_all(scorer, asked, protocol, train, width, pool_I, None)
        ranked = ranked.only((ranked.items_T >= 0) & pool_I[ranked.items_T])
        if not len(ranked.items_T):
            raise EvaluationError(
                f"no {part} target in one of the pools", where="train.monitor", fix="leave pools at all"
            )
        means.append(mean_of(ranked))
    return 2 * means[0] * means[1] / max(sum(means), 1e-12)

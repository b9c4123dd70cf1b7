"""Models of several runs side by side: one table with intervals, tests of all pairs, slices and costs."""

import itertools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from recsys.errors import EvaluationError
from recsys.evaluate import BATCH, Evaluation
from recsys.protocol import Key, parse_metric
from recsys.report import combined, mean_per_query
from recsys.slices import reading_order
from recsys.stats import average_ranks, critical_difference, holm, paired_tests

_SAME = ("ks", "mask", "window", "repeat_targets")
"""What of a protocol has to agree for values to be comparable."""


@dataclass(frozen=True)
class Contender:
    """A model: its evaluations, one a seed, and what it cost (None = not known)."""

    label: str
    evaluations: tuple[Evaluation, ...]
    costs: Mapping[str, float | None]


@dataclass(frozen=True)
class Comparison:
    """What is shown; JSON values throughout.

    contenders: best first, label -> {values: key -> {value, low, high, n, seeds}, costs}. pairs: {a, b, difference,
    low, high, p, p_holm} of all pairs. ranks: label -> mean rank over queries; critical: by how much they have to
    differ.
    """

    metric: str
    contenders: Mapping[str, Any]
    pairs: Sequence[Mapping[str, Any]]
    ranks: Mapping[str, float]
    critical: float
    facts: Mapping[str, Any]

    def slices(self) -> list[str]:
        """Keys of the metric on slices, in reading order."""
        whole = Key.parse(self.metric)
        keys = {key for found in self.contenders.values() for key in found["values"]}
        parsed = [key for key in map(Key.parse, keys) if key.slice and key.width is None]
        own = [key for key in parsed if (key.metric, key.k) == (whole.metric, whole.k)]
        return [str(key) for key in sorted(own, key=lambda key: reading_order(key.slice))]


def gather(runs: Sequence[Path], *, timing: bool = True) -> list[Contender]:
    """The models of these runs. A run is a folder `runs/NAME`, its report, or an evaluation of one model.

    timing: measure queries a second of every model's served form. Raises EvaluationError for a folder that holds
    neither, or a report of an older version.
    """
    found: list[tuple[str, Contender]] = []
    for run in runs:
        if (run / "evaluation.json").is_file():
            evaluation = Evaluation.load(run)
            costs = evaluation.facts.get("costs", {})
            found.append((run.name, Contender(evaluation.name, (evaluation,), costs)))
        else:
            found += _of_report(_report_folder(run), timing)
    labels = [contender.label for _, contender in found]
    return [
        Contender(
            f"{run}/{one.label}" if labels.count(one.label) > 1 else one.label, one.evaluations, one.costs
        )
        for run, one in found
    ]


def _report_folder(run: Path) -> Path:
    for folder in (run / "report", run):
        if (folder / "report.json").is_file():
            return folder.resolve()
    raise EvaluationError(
        "no report here", where=run, expected="a folder runs/NAME of recsys run, or an evaluation"
    )


def _of_report(folder: Path, timing: bool) -> list[tuple[str, Contender]]:
    facts = json.loads((folder / "report.json").read_text(encoding="utf-8"))["facts"]
    if "boxes" not in facts:
        raise EvaluationError("a report of an older version", where=folder, fix="recsys run the recipe again")
    boxes, by_name = folder.parent, {}
    for model in facts["boxes"]["models"]:
        by_name.setdefault(model["name"], []).append(model)
    found = []
    for name, models in by_name.items():
        evaluations = tuple(Evaluation.load(boxes / model["test"]) for model in models)
        fits = [json.loads((boxes / model["fit"] / "fit.json").read_text()) for model in models]
        costs = {"train_seconds": float(np.mean([fit["seconds"] for fit in fits]))}
        costs |= _size(boxes / models[0]["fit"] / "state.safetensors")
        costs |= _served(boxes / facts["boxes"]["split"], boxes / models[0]["fit"]) if timing else {}
        found.append((facts["recipe"], Contender(name, evaluations, costs)))
    return found


def _size(state: Path) -> dict[str, float]:
    with safe_open(state, "numpy") as stored:
        shapes = [stored.get_slice(name).get_shape() for name in stored.keys()]  # noqa: SIM118 - no mapping
    return {
        "parameters": float(sum(int(np.prod(shape)) for shape in shapes)),
        "bytes": float(state.stat().st_size),
    }


def _served(split: Path, fit: Path) -> dict[str, float]:
    """Queries a second of the torch-free program over the whole catalogue, a batch at a time: the best of three."""
    from recsys.fitting import load_fitted
    from recsys.serving.forms import open_form
    from recsys.splits import Split

    program = open_form(load_fitted(fit).serving_form())
    queries = Split.load(split).queries("valid").take(slice(0, BATCH)).queries
    times = []
    for _ in range(3):
        started = time.perf_counter()
        program.score(queries)
        times.append(time.perf_counter() - started)
    return {"queries_per_second": len(queries) / min(times)}


def compare(
    contenders: Sequence[Contender], metric: str | None = None, *, resamples: int = 10_000
) -> Comparison:
    """metric: e.g. "ndcg_at_10"; None = NDCG at the first cut-off. Raises EvaluationError for a single model, or where
    the models did not answer the same questions under the same rules."""
    if len(contenders) < 2:
        raise EvaluationError("one model alone", expected="at least two to compare")
    first = contenders[0].evaluations[0]
    for contender in contenders:
        for evaluation in contender.evaluations:
            _check_same(contenders[0].label, first, contender.label, evaluation)
    part = first.facts["part"]
    if metric is None:
        metric = f"ndcg_at_{first.facts['protocol']['ks'][0]}"
    parse_metric(metric)
    key = f"{part}/{metric}"
    if key not in first.per_query.columns:
        known = ", ".join(name.partition("/")[2] for name in first.per_query.columns if name.count("/") == 1)
        raise EvaluationError(
            f"metric {metric!r} was not measured for each query", expected=f"one of: {known}"
        )
    values = {contender.label: combined(contender.evaluations) for contender in contenders}
    by_label = {contender.label: contender for contender in contenders}
    order = sorted(by_label, key=lambda label: -values[label][key]["value"])
    per_query_QK = np.stack([mean_per_query(by_label[label].evaluations, key) for label in order], axis=1)
    pairs = list(itertools.combinations(range(len(order)), 2))
    differences_QP = np.stack([per_query_QK[:, a] - per_query_QK[:, b] for a, b in pairs], axis=1)
    tests = paired_tests(differences_QP, first.per_query["user"].to_numpy(), resamples)
    adjusted = holm([test["p"] for test in tests])
    return Comparison(
        metric=key,
        contenders={
            label: {
                "values": values[label],
                "costs": dict(by_label[label].costs),
                "seeds": len(by_label[label].evaluations),
            }
            for label in order
        },
        pairs=[
            {"a": order[a], "b": order[b]} | test | {"p_holm": p}
            for (a, b), test, p in zip(pairs, tests, adjusted, strict=True)
        ],
        ranks=dict(zip(order, average_ranks(per_query_QK).tolist(), strict=True)),
        critical=critical_difference(len(order), len(per_query_QK)),
        facts={
            name: first.facts[name]
            for name in ("split_id", "split_method", "part", "queries", "catalogue", "protocol")
        },
    )


def _check_same(one: str, a: Evaluation, other: str, b: Evaluation) -> None:
    """Raises EvaluationError naming the first thing in which two evaluations differ."""
    for name in ("split_id", "part", "catalogue"):
        if a.facts[name] != b.facts[name]:
            raise EvaluationError(
                f"{one!r} and {other!r} differ in {name}: {a.facts[name]} and {b.facts[name]}",
                fix="run both recipes with the same [data] and [split]",
            )
    for name in _SAME:
        left, right = a.facts["protocol"][name], b.facts["protocol"][name]
        if left != right and not (name == "window" and a.facts["protocol"]["mask"] != "window"):
            raise EvaluationError(
                f"{one!r} and {other!r} were judged under evaluate.{name} = {left} and {right}",
                fix="run both recipes with the same [evaluate]",
            )
    if not a.per_query["query_id"].equals(b.per_query["query_id"]):
        raise EvaluationError(f"{one!r} and {other!r} answered different questions")

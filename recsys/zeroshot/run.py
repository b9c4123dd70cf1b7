"""`recsys zeroshot`: candidates, prompts, answers, rankings, one evaluation, one report."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recsys.evaluate import Evaluation
from recsys.files import digest, locked, new_folder, write_bytes, write_json
from recsys.ledger import write_look
from recsys.protocol import parse_metric
from recsys.rankings import Rankings
from recsys.zeroshot import floors, probes
from recsys.zeroshot.asking import Contest, judgements, of_items
from recsys.zeroshot.blending import tuned
from recsys.zeroshot.cases import Asked, Counts
from recsys.zeroshot.clients.base import Client
from recsys.zeroshot.config import Experiment
from recsys.zeroshot.gallery import gallery
from recsys.zeroshot.lab import Lab, Step, steps_of
from recsys.zeroshot.messages import canonical
from recsys.zeroshot.outcome import Outcome, compared
from recsys.zeroshot.page import render
from recsys.zeroshot.prompts import TEMPLATES

FOLDS = 5
"""Of users, for judgements of items that were made for others alone."""
_NOT_RESULTS = ("track", "traces", "budget")
_CLIENT_NOT_RESULTS = (
    "cache",
    "cache_file",
    "concurrency",
    "retries",
    "wait",
    "timeout",
    "device",
    "key_variable",
)
"""What changes nothing about the answers, and so has no part in the key."""


@dataclass(frozen=True)
class Result:
    """folder: with everything that was kept. run_id: of MLflow, None where it is not tracked."""

    outcome: Outcome
    folder: Path
    run_id: str | None


def run_experiment(config: Experiment, root: Path, client: Client | None = None, **told: Callable) -> Result:
    """Ask, judge, compare, keep. Results lie in `root`/NAME; answers in `root`/zeroshot-answers.jsonl, so that a killed
    run goes on where it stood and a repeated one asks nothing.

    client: in place of the one that [client] names. told: callbacks of `recsys.boxes.Line.run`. Raises BudgetError
    where the budget ends first (what was paid for is kept), ConfigError and the errors of data, split and bundle.
    """
    root.mkdir(parents=True, exist_ok=True)
    with locked(root):
        lab = Lab.open(config, root, client, **told)
        gathered = _gather(lab)
        key = experiment_key(config, lab)
        look = None
        if config.part == "test":
            entry = {"report": key, "split": lab.split.id, "protocol": config.protocol.id}
            look = write_look(root / "ledger.jsonl", entry | {"bundle": f"zeroshot:{config.name}"})
        outcome = _outcome(lab, gathered, look)
        folder = root / config.name
        with new_folder(folder) as target:
            _keep(target, lab, gathered, outcome)
        run_id = _track(key, lab, gathered, outcome, folder) if config.track.enabled else None
    return Result(outcome, folder, run_id)


def experiment_key(config: Experiment, lab: Lab) -> str:
    settings = config.model_dump(mode="json", exclude=set(_NOT_RESULTS))
    settings["client"] = {k: v for k, v in settings["client"].items() if k not in _CLIENT_NOT_RESULTS}
    return digest({"zeroshot": settings, "split": lab.split.id, "model": lab.client.name})


@dataclass
class _Gathered:
    """asked: the part's questions. kinds, lists, evaluations: by contender. contests: of the model. main: the variant
    that others are compared with."""

    asked: Asked
    main: str = ""
    kinds: dict[str, str] = field(default_factory=dict)
    rankings: dict[str, Rankings] = field(default_factory=dict)
    lists: dict[str, np.ndarray] = field(default_factory=dict)
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    contests: dict[str, Contest] = field(default_factory=dict)
    diagnostics: dict[str, Any] = field(default_factory=dict)

    def add(self, lab: Lab, kind: str, name: str, lists_QC: np.ndarray) -> None:
        self.kinds[name], self.lists[name] = kind, lists_QC
        self.rankings[name], self.evaluations[name] = lab.evaluated(name, lists_QC, self.asked)


def _gather(lab: Lab) -> _Gathered:
    config = lab.config
    found = _Gathered(lab.asked(config.part, config.users))
    chosen = _chosen(lab, found) if config.choose.enabled else config.variant_names
    found.main = chosen[0]
    for step in steps_of(config, chosen):
        if step.part == config.part:
            found.contests[step.name] = lab.run(step)
            kind = "variant" if step.control is None else "control"
            found.add(lab, kind, step.name, found.contests[step.name].lists_QC(found.asked))
    for name, scorer in lab.scorers.items():
        found.add(lab, "bundle", name, floors.rank_scorer(scorer, found.asked))
    _floors(lab, found)
    for weight in config.mmr:
        spread = probes.spread_lists(found.lists[found.main], lab.vectors_ID, weight)
        found.add(lab, "mmr", f"{found.main}.mmr-{weight:g}", spread)
    if config.hybrid.enabled:
        _hybrid(lab, found)
    _diagnose(lab, found)
    return found


def _chosen(lab: Lab, found: _Gathered) -> tuple[str, ...]:
    """The one variant that is best on validation users; all figures of the choice are told."""
    parse_metric(lab.config.choose.metric)
    reached = {}
    for step in (
        step for step in steps_of(lab.config) if step.part == "valid" and not step.name.endswith(".valid")
    ):
        asked = lab.asked("valid", step.users)
        _, evaluation = lab.evaluated(step.name, lab.run(step).lists_QC(asked), asked)
        metric = lab.config.choose.metric
        reached[step.name] = evaluation.value(f"valid/{metric}/n{asked.candidates.length}")
    found.diagnostics["choice"] = {
        **reached,
        "users": lab.config.choose.users,
        "metric": lab.config.choose.metric,
    }
    return (max(reached, key=reached.__getitem__),)


def _floors(lab: Lab, found: _Gathered) -> None:
    asked = found.asked
    if "popularity" in lab.config.floors:
        found.add(lab, "floor", "popularity", floors.rank_scorer(Counts(lab.split), asked))
    if "bm25" in lab.config.floors:
        shelf = lab.plain_shelf
        texts = [
            f"{title} {' '.join(names)}" for title, names in zip(shelf.titles, shelf.categories, strict=True)
        ]
        found.add(lab, "floor", "bm25", floors.rank_scorer(floors.Words(texts), asked))
    if "random" in lab.config.floors:
        found.kinds["random"] = "floor"
        found.evaluations["random"] = floors.chance(asked, lab.config.protocol)


def _hybrid(lab: Lab, found: _Gathered) -> None:
    """Weight and gate from validation users; the test users are then blended as they say."""
    config = lab.config
    step = next(step for step in steps_of(config, (found.main,)) if step.name == f"{found.main}.valid")
    valid = lab.asked("valid", config.hybrid.users)
    k = config.protocol.ks[0]
    blend, reached = tuned(_base_scores(lab, valid), lab.run(step).preferences_QC(), valid, k)
    base_QC = _base_scores(lab, found.asked)
    lists = blend.lists_QC(base_QC, found.contests[found.main].preferences_QC(), found.asked.lists_QC)
    found.add(lab, "hybrid", f"{found.main}.hybrid", lists)
    found.diagnostics["hybrid"] = {
        "weight": blend.weight, "margin": blend.margin, "valid_ndcg": reached,
        "asked_share": float(blend.asked_Q(base_QC).mean()), "base": config.candidates.base,
    }  # fmt: skip


def _base_scores(lab: Lab, asked: Asked) -> np.ndarray:
    lists_QC = asked.lists_QC
    scores_QC = np.asarray(lab.base.score(asked.queries.queries, lists_QC, None), float)
    return np.where(lists_QC >= 0, scores_QC, np.nan)


def _diagnose(lab: Lab, found: _Gathered) -> None:
    config, asked, k = lab.config, found.asked, lab.config.protocol.ks[0]
    settings, concurrency = config.diagnostics, config.client.concurrency
    step = Step(found.main, *config.variant(found.main), config.part, config.users)
    rng = np.random.default_rng([config.seed, 7])
    rows = np.sort(rng.permutation(len(asked.queries))[: settings.users]).tolist()
    if settings.position:
        found.diagnostics["position"] = probes.position_bias(
            lab.ranker(step), lab.step_cases(step), asked, rows, k, concurrency
        )
    if settings.similarity:
        found.diagnostics["similarity"] = probes.answer_similarity(
            lab.ranker(step), lab.step_cases(step), rows, lab.vectors_ID, config.seed, concurrency
        )
    if settings.memory:
        items = rng.permutation(lab.split.num_items)[: settings.users].tolist()
        found.diagnostics["memory"] = probes.memory(lab.client, lab.plain_shelf, items, step.prompt.wording)


def _outcome(lab: Lab, found: _Gathered, look: int | None) -> Outcome:
    config, asked = lab.config, found.asked
    k = config.protocol.ks[0]
    headline = f"{asked.part}/ndcg_at_{k}/n{asked.candidates.length}"
    tests = compared(found.evaluations, found.main, headline)
    contenders: dict[str, dict[str, Any]] = {}
    chance = found.evaluations["random"].value(headline) if "random" in found.evaluations else None
    for name, evaluation in sorted(found.evaluations.items(), key=lambda entry: -entry[1].value(headline)):
        one: dict[str, Any] = {"kind": found.kinds[name], "values": evaluation.values}
        if name in tests:
            one["versus"] = tests[name]
        if name in found.lists:
            lists_QC = found.lists[name]
            one["lpd"] = probes.log_popularity_difference(lists_QC, asked, k)
            one["distance"] = probes.intra_list_distance(lists_QC, lab.vectors_ID, k)
        if name in found.contests:
            one |= _spent(lab, found.contests[name], evaluation.value(headline), chance)
        contenders[name] = one
    facts = {
        "name": config.name, "model": lab.client.name, "part": asked.part, "main": found.main, "headline": headline,
        "queries": len(asked.queries), "catalogue": asked.split.num_items, "split_id": asked.split.id,
        "split_method": config.split.method, "protocol": config.protocol.model_dump(mode="json"), "look": look,
        "candidates": dict(asked.candidates.facts) | {
            "how": _how(config), "recall": asked.recall, "repeated": asked.repeated,
        },
        "prompt_version": config.prompt.version, "captions": config.captions.source,
        "spent": lab.meter.facts(), "damaged_answers": lab.answers.damaged,
    }  # fmt: skip
    # as stored: what a later run reads must equal what this one holds
    return Outcome(
        **json.loads(json.dumps({"contenders": contenders, "diagnostics": found.diagnostics, "facts": facts}))
    )


def _spent(lab: Lab, found: Contest, value: float, chance: float | None) -> dict[str, Any]:
    usage, users = found.usage, len(found.judged)
    cost = lab.meter.price.of(usage)
    gained = None if chance is None else 100 * (value - chance)
    return {
        "faults": asdict(found.faults),
        "usage": asdict(usage),
        "slots": probes.slot_preference(found),
        "tokens_per_user": (usage.prompt + usage.completion) / users,
        "cost_per_user": cost / users,
        "cost_per_point": cost / gained if gained is not None and gained > 0 else None,
    }


def _how(config: Experiment) -> str:
    asked = config.candidates
    words = {
        "retrieved": f"retrieved by {asked.retriever}",
        "popularity": "drawn by popularity",
        "file": "from a file",
    }
    truth = "truth guaranteed" if asked.guaranteed else "truth not guaranteed"
    return f"{words.get(asked.method, 'random')}, {truth}"


def _keep(folder: Path, lab: Lab, found: _Gathered, outcome: Outcome) -> None:
    config = lab.config
    found.asked.candidates.save(folder / "candidates")
    for name, rankings in found.rankings.items():
        (folder / "rankings").mkdir(exist_ok=True)
        rankings.save(folder / "rankings" / f"{name}.parquet")
    for name, evaluation in found.evaluations.items():
        evaluation.save(folder / "evaluations" / name)
    for name, one in found.contests.items():
        (folder / "judgements").mkdir(exist_ok=True)
        judged = judgements(one, found.asked)
        judged.write_parquet(folder / "judgements" / f"{name}.parquet")
        of_items(judged, FOLDS).write_parquet(folder / "judgements" / f"{name}.items.parquet")
    per_user(found).write_parquet(folder / "per_user.parquet")
    write_json(folder / "experiment.json", config.model_dump(mode="json"))
    templates = {version: vars(template) for version, template in TEMPLATES.items()}
    write_json(folder / "prompts.json", {"versions": templates, "variants": {
        name: config.variant(name)[0].model_dump(mode="json") for name in config.variant_names
    }})  # fmt: skip
    outcome.save(folder)
    write_bytes(folder / "report.html", render(outcome).encode())
    write_bytes(
        folder / "gallery.html", gallery(found.contests, found.asked, lab.plain_shelf, config.name).encode()
    )


def per_user(found: _Gathered) -> pl.DataFrame:
    """One row a user and contender: every metric without slices."""
    frames = []
    for name, evaluation in found.evaluations.items():
        keys = [key for key in evaluation.per_query.columns if key.count("/") == 2 or "/" not in key]
        frames.append(evaluation.per_query.select(pl.lit(name).alias("contender"), *keys))
    return pl.concat(frames, how="diagonal")


def _traces(found: Contest, lab: Lab) -> list[dict[str, Any]]:
    """The first questions, one after the other; of a picture its hash alone."""
    replies = [(one.case, reply) for one in found.judged for reply in one.replies][: lab.config.traces]
    return [
        {
            "name": found.name,
            "inputs": canonical(reply.messages),
            "outputs": {"text": reply.answer.text, "scores": reply.answer.scores},
            "tokens": (reply.answer.usage.prompt, reply.answer.usage.completion),
            "attributes": {
                "query_id": case.query_id, "round": reply.round, "seconds": reply.answer.seconds,
                "model": lab.client.name, "prompt_version": lab.config.prompt.version,
            },
        }
        for case, reply in replies
    ]  # fmt: skip


def _track(key: str, lab: Lab, found: _Gathered, outcome: Outcome, folder: Path) -> str:
    from recsys.tracking import Tracking

    config = lab.config
    tracking = Tracking(config.track.uri, lab.root, config.track.experiment)
    params: Mapping[str, Any] = {"zeroshot": config.model_dump(mode="json"), "split_id": lab.split.id}
    run_id = tracking.ensure_run(key, config.name, params)
    tracking.log_metrics(run_id, outcome.metrics())
    tracking.tag(run_id, {"recsys.prompt_version": config.prompt.version, "recsys.model": lab.client.name})
    tracking.log_folder(run_id, folder, "zeroshot")
    tracking.log_traces(run_id, _traces(found.contests[found.main], lab))
    tracking.finish(run_id)
    return run_id

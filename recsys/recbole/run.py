"""A RecBole model on one of our splits: trained there, its lists judged here."""

import json
import logging
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recsys.dataset import Dataset
from recsys.errors import ConfigError, RecsysError, SplitError
from recsys.evaluate import Evaluation, masked_items
from recsys.files import digest, locked, new_folder, write_json
from recsys.ledger import write_look
from recsys.protocol import Protocol
from recsys.rankings import Rankings, evaluate_rankings
from recsys.recbole.atomic import write_benchmark
from recsys.recbole.environment import PINS, environment, outside
from recsys.splits import EvalQueries, Split
from recsys.tracking import Tracking

logger = logging.getLogger("recsys")

DRIVER = Path(__file__).with_name("driver.py")


@dataclass(frozen=True)
class Job:
    """What is asked of RecBole. settings: of its own configuration, e.g. {"epochs": 20, "learning_rate": 0.01}."""

    model: str
    seed: int = 0
    window: int = 50
    settings: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Result:
    """evaluation: its lists under our metrics; own: RecBole's, by its own rules; folder: where all of it lies."""

    evaluation: Evaluation
    own: Mapping[str, float]
    folder: Path
    run_id: str | None
    look: int


def run_recbole(
    job: Job,
    dataset: Dataset,
    split: Split,
    protocol: Protocol,
    root: Path,
    *,
    python: Path | None = None,
    track: bool = True,
    uri: str | None = None,
) -> Result:
    """Train on the train part, stop early on the valid part by RecBole's rules, and look at the test part once.

    Results lie in `root`/recbole-MODEL-KEY; a second call with the same settings reads them. python: of RecBole's
    environment, made where None. Raises SplitError for another Dataset's split, ConfigError for a model that RecBole
    lacks, RecsysError where it fails.
    """
    if split.dataset_fingerprint != dataset.fingerprint:
        raise SplitError("the split was made from another Dataset", where=dataset.path)
    if split.config.queries != "user":
        raise SplitError(
            f"queries = {split.config.queries!r}", expected="one query a user: RecBole asks no other"
        )
    key = digest({"job": vars(job), "split": split.id, "protocol": protocol.id, "pins": PINS})
    folder = root / f"recbole-{job.model.lower()}-{key[:8]}"
    root.mkdir(parents=True, exist_ok=True)
    with locked(root):
        if not (folder / "evaluation.json").is_file():
            _make(folder, job, split, protocol, python or environment())
        entry = {"report": key, "split": split.id, "protocol": protocol.id, "bundle": f"recbole:{job.model}"}
        look = write_look(root / "ledger.jsonl", entry)
        evaluation = Evaluation.load(folder)
        own = json.loads((folder / "recbole.json").read_text())["metrics"]
        run_id = _track(key, job, evaluation, own, folder, root, uri) if track else None
    return Result(evaluation, own, folder, run_id, look)


def _make(folder: Path, job: Job, split: Split, protocol: Protocol, python: Path) -> None:
    kind = json.loads(_last_line(_call([str(python), str(DRIVER), "describe", job.model])))
    if not kind["known"]:
        raise ConfigError(
            f"RecBole has no model {job.model!r}", fix="names as in its model list, e.g. BPR, SASRec"
        )
    asked = split.queries("test")
    with (
        new_folder(folder) as target,
        tempfile.TemporaryDirectory(dir=folder.parent, prefix=".recbole.") as work,
    ):
        place = Path(work).resolve()  # RecBole runs there
        write_benchmark(split, place / "data", sequential=kind["sequential"], window=job.window)
        _write_seen(place / "seen.npz", asked, split, protocol)
        sequence, plain = ["user_id", "item_id", "item_id_list"], ["user_id", "item_id", "timestamp"]
        write_json(
            place / "job.json",
            {
                "model": job.model,
                "folder": str(place / "data"),
                "sequential": kind["sequential"],
                "columns": sequence if kind["sequential"] else plain,
                "window": job.window,
                "ks": list(protocol.ks),
                "depth": max(protocol.ks),
                "seed": job.seed,
                "seen": str(place / "seen.npz"),
                "out": str(place),
                "settings": dict(job.settings or {}),
            },
        )
        said = _call([str(python), str(DRIVER), "fit", str(place / "job.json")], cwd=place)
        result = json.loads((place / "result.json").read_text())
        lists = np.load(place / "lists.npz")
        rankings = _rankings(lists["users"], lists["lists"], asked, split)
        evaluation = evaluate_rankings(rankings, split, "test", protocol, name=f"recbole-{job.model}")
        evaluation.facts["costs"] = {
            "train_seconds": result["seconds"],
            "parameters": float(result["parameters"]),
        }
        evaluation.save(target)
        (target / "log.txt").write_text(said)
        rankings.save(target / "lists.parquet")
        write_json(target / "recbole.json", result)


def _write_seen(path: Path, asked: EvalQueries, split: Split, protocol: Protocol) -> None:
    """By user: the items that our protocol does not rank."""
    train = split.fit_log().sequences
    rows, items = masked_items(asked, protocol.mask, protocol.window, train, protocol.repeat_targets)
    inside = items >= 0
    users, items = asked.queries.user_Q[rows[inside]], items[inside]
    order = np.argsort(users, kind="stable")
    starts = np.searchsorted(users[order], np.arange(split.num_users + 1))
    np.savez(path, items=items[order], starts=starts)


def _rankings(users: np.ndarray, lists_QK: np.ndarray, asked: EvalQueries, split: Split) -> Rankings:
    """The first list of every user; one that RecBole gave no list (no history, say) has an empty one: a miss."""
    _, first = np.unique(users, return_index=True)
    of_user = np.full((split.num_users, lists_QK.shape[1]), -1)
    of_user[users[first]] = lists_QK[first]
    return Rankings.of_lists(of_user[asked.queries.user_Q], asked, split)


def _track(
    key: str,
    job: Job,
    evaluation: Evaluation,
    own: Mapping[str, float],
    folder: Path,
    root: Path,
    uri: str | None,
) -> str:
    tracking = Tracking(uri, root, "recsys")
    run_id = tracking.ensure_run(
        key, folder.name, {"recbole": vars(job), "split": evaluation.facts["split_id"]}
    )
    tracking.log_metrics(run_id, {name: entry["value"] for name, entry in evaluation.values.items()})
    tracking.log_metrics(
        run_id, {f"recbole/{name.replace('@', '_at_')}": value for name, value in own.items()}
    )
    tracking.log_folder(run_id, folder, "evaluation")
    tracking.finish(run_id)
    return run_id


def _call(command: Sequence[str], cwd: Path | None = None) -> str:
    """Everything the command said; its epochs are told as they come. Raises RecsysError where it fails."""
    told = []
    with subprocess.Popen(
        command, cwd=cwd, env=outside(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        for line in process.stdout:
            told.append(line)
            if line.startswith("epoch "):
                logger.info("    %s", line.rstrip())
    if process.returncode:
        lines = [line for line in told if line.strip()] or ["no message"]
        raise RecsysError(f"RecBole failed ({lines[-1].strip()})", where=" ".join(command[1:3]))
    return "".join(told)


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1]

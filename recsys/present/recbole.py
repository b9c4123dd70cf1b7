"""What `recsys recbole` shows."""

import json
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from recsys.dataset import Dataset
from recsys.errors import SplitError
from recsys.present import out
from recsys.protocol import Protocol
from recsys.recbole.run import Job, run_recbole
from recsys.report import interval
from recsys.splits import Split

_NAMES = {"hr": "hit"}
"""Metrics that RecBole calls otherwise."""


def recbole(
    job: Job, data: Path, split: str, protocol: Protocol, root: Path, track: bool, uri: str | None
) -> None:
    """Train, judge, and print our figures beside RecBole's own."""
    folder = find_split(split, root)
    result = run_recbole(job, Dataset.open(data), Split.load(folder), protocol, root, track=track, uri=uri)
    facts = result.evaluation.facts
    table = Table(
        title=f"RecBole {escape(job.model)}, test part: {facts['queries']} queries over {facts['catalogue']} items, "
        f"{facts['split_method']} split, mask {protocol.mask}",
        caption=f"look {result.look} at this test set. RecBole masks by rules of its own: general models never rank "
        "what a user did before, sequence models rank everything",
    )
    for heading in ("metric", "ours, of its lists", "its own"):
        table.add_column(heading, justify="left" if heading == "metric" else "right")
    for k in protocol.ks:
        for metric in ("ndcg", "hr", "recall", "mrr"):
            own = result.own.get(f"{_NAMES.get(metric, metric)}@{k}")
            ours = result.evaluation.values[f"test/{metric}_at_{k}"]
            table.add_row(f"{metric}@{k}", interval(ours), "-" if own is None else f"{own:.4f}")
    out.print(table)
    out.print(
        f"kept in {result.folder}; beside others: recsys compare {result.folder} runs/NAME", soft_wrap=True
    )
    if result.run_id is not None:
        out.print(f"MLflow run {result.run_id}")


def find_split(given: str, root: Path) -> Path:
    """The folder itself, or the one split under `root`/boxes whose id begins so. Raises SplitError otherwise."""
    if Path(given).is_dir():
        return Path(given)
    known = {
        folder: json.loads((folder / "split.json").read_text())["id"]
        for folder in sorted((root / "boxes").glob("split-*"))
        if (folder / "split.json").is_file()
    }
    found = [folder for folder, name in known.items() if name.startswith(given) or folder.name == given]
    if len(found) != 1:
        ids = ", ".join(name[:12] for name in known.values()) or "none"
        raise SplitError(
            f"{len(found)} splits match {given!r}",
            where=root / "boxes",
            expected=f"a folder, or one of: {ids}",
        )
    return found[0]

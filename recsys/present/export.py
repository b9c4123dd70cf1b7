"""What `recsys export` does and shows: a folder per width, and the report of what each width is worth."""

import functools
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from recsys.bundle import Bundle
from recsys.config import parse
from recsys.errors import ConfigError, require
from recsys.evaluate import Scorer, evaluate
from recsys.files import write_json
from recsys.ledger import write_look
from recsys.plots import draw_widths
from recsys.present import out
from recsys.protocol import Protocol
from recsys.report import interval
from recsys.schema import Queries, legal_width
from recsys.serving.export import export_bundle, export_onnx, export_vectors
from recsys.serving.forms import Sequence
from recsys.serving.retrieval import CoarseToFine
from recsys.splits import Split

K = 10
TIMED = 200
"""Queries whose median is the latency."""
_VECTORS = {"bundle": "float32", "int8": "int8"}
"""Format -> how its item vectors are stored."""


@dataclass(frozen=True)
class Chosen:
    """What the user asked for. widths: as on the command line, e.g. 64,128,full."""

    source: Path
    widths: str
    kind: str
    folder: Path

    def open(self, *files: str) -> tuple[Bundle, dict[int | None, Path]]:
        """The bundle, and the folder of every width, narrowest first; width None where the model has but one.

        Raises ModelError for a width the model lacks, ConfigError where a folder or one of `files` is there already.
        """
        bundle = Bundle.open(self.source)
        legal = bundle.scorer().widths
        widths = {legal_width(_width(text.strip()), legal) for text in self.widths.split(",")}
        folders = {
            width: self.folder / f"width-{'full' if width is None else width}"
            for width in sorted(widths, key=lambda width: width or 0)
        }
        for path in (*folders.values(), *(self.folder / name for name in files)):
            if path.exists():
                raise ConfigError("is there already", where=path, fix="give another folder with --out")
        return bundle, folders


def _width(text: str) -> int | None:
    if text == "full":
        return None
    if not (text.isascii() and text.isdigit()):
        raise ConfigError(f"--width {text!r}", expected="widths separated by commas, e.g. 64,128,full")
    return int(text)


def export(chosen: Chosen) -> None:
    """A folder per width, each with a line of its size."""
    _write(chosen, *chosen.open())


def _write(chosen: Chosen, bundle: Bundle, folders: Mapping[int | None, Path]) -> None:
    onnx = require("onnx", "onnx", purpose="--format onnx") if chosen.kind == "onnx" else None
    try:
        chosen.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write here ({error.strerror})", where=chosen.folder) from None
    for width, folder in folders.items():
        if onnx is not None:
            export_onnx(onnx, bundle, folder, width)
        elif chosen.kind == "vectors":
            export_vectors(bundle, folder, width)
        else:
            export_bundle(bundle, folder, width, _VECTORS[chosen.kind])
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        hint = f"  (serve it: recsys serve {folder})" if chosen.kind in _VECTORS else ""
        out.print(escape(f"{folder}  {size / 1e6:.2f} MB{hint}"), soft_wrap=True)


def export_and_judge(chosen: Chosen, split_folder: Path, part: str, pool: int, runs: Path) -> None:
    """`export`, then width-report.json, its picture and its table; a look at test goes into the ledger of `runs`."""
    require("threadpoolctl", "train", purpose="the width report")  # scikit-learn brings it
    bundle, folders = chosen.open("width-report.json", "width-report.png")
    split = Split.load(split_folder)
    split.check_id(bundle.manifest["split_id"])
    if not len(split.queries(part)):
        raise ConfigError(f"part {part!r} holds no queries", where=split_folder)
    protocol = _protocol(bundle)
    _write(chosen, bundle, folders)
    made = {
        (width, _VECTORS[chosen.kind]): path for width, path in folders.items() if chosen.kind in _VECTORS
    }
    with tempfile.TemporaryDirectory(prefix="recsys-export-") as spare:
        lines = list(_measured(bundle, made, list(folders), Path(spare), (split, part, protocol), pool))
    report = {
        "bundle_id": bundle.id,
        "split_id": split.id,
        "part": part,
        "protocol": protocol.model_dump(mode="json"),
        "threads": 1,
        "lines": lines,
    }
    write_json(chosen.folder / "width-report.json", report)
    draw_widths(report, chosen.folder / "width-report.png")
    out.print(_table(report, bundle.manifest["model"]))
    if part == "test":
        runs.mkdir(parents=True, exist_ok=True)
        entry = {"bundle": bundle.id, "split": split.id, "protocol": protocol.id, "report": "recsys export"}
        out.print(f"look {write_look(runs / 'ledger.jsonl', entry)} at this test set")


def _protocol(bundle: Bundle) -> Protocol:
    """The bundle's own, for one cut-off, at the full width of whatever is judged, without breakdowns."""
    stored: Mapping = bundle.manifest["recipe"].get("evaluate", {})
    narrowed = {"ks": [K], "widths": "full", "slices": [], "more_masks": []}
    return parse(Protocol, dict(stored) | narrowed, where="the bundle's recipe")


def _measured(
    bundle: Bundle,
    made: Mapping[tuple[int | None, str], Path],
    widths: list[int | None],
    spare: Path,
    judged_on: tuple[Split, str, Protocol],
    pool: int,
) -> Iterator[dict[str, Any]]:
    """A line per width and format, then the widest coarse to fine from each of the others. made: exports by
    (width, format); what is not among them goes to `spare`."""
    split, part, protocol = judged_on
    fit_parts = bundle.manifest["recipe"].get("select", {}).get("refit") or ["train"]
    queries = split.queries(part).queries

    def line(
        width: int | None, name: str, opened: Bundle, scorer: Scorer, answer: Callable
    ) -> dict[str, Any]:
        label = f"{name} at {width or 'full'}"
        result = evaluate(scorer, split, part, protocol, fit_parts=fit_parts, name=label)
        return {
            "width": width,
            "format": name,
            "bytes": _bytes(opened.path),
            "milliseconds": _milliseconds(answer, queries),
            **{f"{metric}_at_{K}": result.values[f"{part}/{metric}_at_{K}"] for metric in ("ndcg", "hr")},
        }

    formats = ("float32", "int8") if bundle.manifest["blocks"] else ("float32",)
    for name in formats:
        for width in widths:
            path = made.get((width, name))
            if path is None:
                path = export_bundle(bundle, spare / f"{name}-{width}", width, name).path
            opened = Bundle.open(path)
            scorer = opened.scorer()
            yield line(width, name, opened, scorer, functools.partial(_plain, scorer))
            if name == "float32" and width == widths[-1]:
                widest = opened
    program = widest.scorer()
    k = min(K, len(widest.items))
    for coarse in widths[:-1] if isinstance(program, Sequence) else ():
        both = CoarseToFine(program, coarse, pool)
        answer = functools.partial(both.top, k=k)
        yield line(widths[-1], "coarse-to-fine", widest, both, answer) | {"coarse": coarse, "pool": pool}


def _plain(scorer: Scorer, query: Queries) -> np.ndarray:
    """The K best items outside the history, in no order."""
    scores_I = np.array(scorer.score(query)[0])
    scores_I[query.history[0]] = -np.inf
    k = min(K, len(scores_I))
    return np.argpartition(scores_I, -k)[-k:]


def _milliseconds(answer: Callable[[Queries], object], queries: Queries) -> float:
    """Median over single queries on one thread, from history to list."""
    from threadpoolctl import threadpool_limits

    rows = np.unique(np.linspace(0, len(queries) - 1, TIMED).astype(int))
    seconds = []
    with threadpool_limits(1):
        for row in [rows[0], *rows]:  # the first one warms up
            query = queries.take(slice(row, row + 1))
            began = time.perf_counter()
            answer(query)
            seconds.append(time.perf_counter() - began)
    return 1e3 * float(np.median(seconds[1:]))


def _bytes(folder: Path) -> int:
    files = (folder / name for name in ("items.bin", "weights.safetensors"))
    return sum(path.stat().st_size for path in files if path.exists())


def _table(report: Mapping[str, Any], model: str) -> Table:
    table = Table(title=f"{escape(model)} on {report['part']}: what a width is worth")
    for heading in ("width", "format", f"NDCG@{K}", f"HR@{K}", "MB", "ms per query"):
        table.add_column(heading)
    for line in report["lines"]:
        name = f"pool of {line['pool']}" if "coarse" in line else line["format"]
        values = (interval(line[f"{metric}_at_{K}"]) for metric in ("ndcg", "hr"))
        size, latency = f"{line['bytes'] / 1e6:.3f}", f"{line['milliseconds']:.3f}"
        table.add_row(_place(line), name, *values, size, latency)
    return table


def _place(line: Mapping[str, Any]) -> str:
    """The width; coarse to fine both."""
    own = str(line["width"] or "full")
    return f"{line['coarse']} → {own}" if "coarse" in line else own

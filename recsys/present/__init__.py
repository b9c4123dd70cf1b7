"""What the command line shows: progress, tables, ranked lists. Answers go to stdout, progress to stderr."""

import io
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from recsys import schema
from recsys.bundle import Bundle
from recsys.dataset import Dataset
from recsys.errors import ConfigError
from recsys.files import write_bytes
from recsys.serving.engine import Query, Ranked, RankingEngine

if TYPE_CHECKING:
    from recsys.boxes import Box
    from recsys.recipe import Recipe

out, err = Console(), Console(stderr=True)


def run(recipe: "Recipe", root: Path, device: str) -> None:
    """Walk the recipe with a line per box, then the table and one ranked list beside the user's history."""
    from recsys.pipeline import run as walk
    from recsys.report import Report

    began = time.monotonic()
    result = walk(recipe, root, device=device, **told())
    report = Report.load(result.report)
    if not result.made:
        out.print(f"Nothing to do: all {len(result.boxes)} boxes of {recipe.name} are up to date.")
    out.print(report.table())
    if recipe.bundle.histories:
        _example(open_engine(result.bundle))
    folder = root / recipe.name
    tracked = json.loads((result.boxes["track"].folder / "track.json").read_text())
    out.print(f"bundle  {folder / 'bundle'}  (serve it: recsys serve {folder / 'bundle'})", soft_wrap=True)
    out.print(f"report  {folder / 'report' / 'report.html'}", soft_wrap=True)
    if tracked["run_id"] is not None:
        out.print(f"MLflow  run {tracked['run_id']}, model {tracked['model']} version {tracked['version']}")
    if result.made:
        out.print(f"{len(result.made)} of {len(result.boxes)} boxes made in {time.monotonic() - began:.0f} s")


def train(recipe: "Recipe", root: Path, device: str) -> None:
    """Fit and compare on validation alone."""
    from recsys.pipeline import train as walk

    scores = walk(recipe, root, device=device, **told())
    table = Table(title=f"validation {recipe.train.monitor.metric}")
    for heading in ("model", "mean over seeds", "each seed"):
        table.add_column(heading)
    for name, values in sorted(scores.items(), key=lambda entry: -float(np.mean(entry[1]))):
        table.add_row(name, f"{np.mean(values):.4f}", ", ".join(f"{value:.4f}" for value in values))
    out.print(table)
    out.print("Chosen on validation alone: test data was not looked at.")


def told() -> dict[str, Callable]:
    """Callbacks that print a line as each box begins and ends."""
    clock: dict[str, float] = {}

    def started(box: "Box") -> None:
        clock[box.name] = time.monotonic()
        err.print(f"[dim]...[/] {box.name}")

    def finished(box: "Box", cached: bool) -> None:
        seconds = "unchanged" if cached else f"{time.monotonic() - clock[box.name]:.1f} s"
        err.print(f"[green]ok[/]  {box.name} [dim]({seconds})[/]")
        if box.name == "data" and not cached:
            _licence(Dataset.open(box.folder))

    return {"started": started, "finished": finished}


def _licence(dataset: Dataset) -> None:
    err.print(f"    source: {escape(dataset.manifest['source'])}", soft_wrap=True)
    err.print(f"    licence: {escape(dataset.manifest['licence'])}", soft_wrap=True)
    if dataset.licence_text:
        err.print(f"    its text is kept in {escape(str(dataset.path / 'LICENCE.txt'))}", soft_wrap=True)


def _example(engine: RankingEngine) -> None:
    """The user with the median history: what they did last, and what is recommended."""
    lengths = engine.bundle.histories.lengths
    known = np.flatnonzero(lengths)
    row = int(known[np.argsort(lengths[known], kind="stable")[len(known) // 2]])
    user = engine.bundle.users[schema.USER][row]
    last = [engine.item_ids[index] for index in engine.bundle.histories[row][::-1][:10].tolist()]
    ranked = engine.recommend(Query(user_id=user), min(10, len(engine.item_ids)))
    table = Table(
        title=f"user {escape(str(user))}: the newest of {lengths[row]} events, and what is recommended"
    )
    for heading in ("", "history, newest first", "recommended", "score"):
        table.add_column(heading)
    for place in range(max(len(last), len(ranked.items))):
        item = ranked.items[place] if place < len(ranked.items) else None
        shown = _name(engine, last[place]) if place < len(last) else ""
        cells = (_name(engine, item.item_id), f"{item.score:.3f}") if item else ("", "")
        table.add_row(str(place + 1), shown, *cells)
    out.print(table)


def _name(engine: RankingEngine, item_id: int | str) -> str:
    title = engine.catalogue.titles[engine.catalogue.index_of[item_id]]
    return escape(str(item_id) if title is None else f"{title} [{item_id}]")


def dry_run(recipe: "Recipe", root: Path, device: str) -> None:
    from recsys.pipeline import plan

    table = Table(title=f"boxes of {escape(recipe.name)}")
    for heading in ("box", "key", "state"):
        table.add_column(heading)
    for box in plan(recipe, root, device=device).boxes.values():
        table.add_row(box.name, box.key[:12], "cached" if box.done else "to be made")
    out.print(table)


def sources() -> None:
    from recsys.config import shipped
    from recsys.sources import SOURCES

    out.print("kinds of sources: " + ", ".join(sorted(SOURCES)))
    out.print("recipes: " + ", ".join(shipped()), soft_wrap=True)


def inspect(dataset: Dataset) -> None:
    from recsys.sources.describe import describe

    table = Table(title=escape(str(dataset.path)), show_header=False)
    for name, value in describe(dataset):
        table.add_row(escape(name), escape(value))
    out.print(table)


def open_engine(bundle: Path) -> RankingEngine:
    return RankingEngine(Bundle.open(bundle))


def recommend(
    engine: RankingEngine, user: str | None, history: str | None, k: int, width: int | None
) -> None:
    if user is not None:
        query = Query(user_id=engine.id_from_text("user", user), width=width)
    else:
        items = [engine.id_from_text("item", text.strip()) for text in history.split(",") if text.strip()]
        query = Query(history=items, width=width)
    whom = "this history" if user is None else f"user {escape(user)}"
    _print_ranked(engine.recommend(query, k), f"recommended for {whom}")


def similar(engine: RankingEngine, item: str, k: int) -> None:
    item_id = engine.id_from_text("item", item)
    ranked = engine.similar(item_id, k)
    _print_ranked(ranked, f"like {_name(engine, item_id)}")


def _print_ranked(ranked: Ranked, title: str) -> None:
    """title: markup."""
    if ranked.unknown_items:
        strangers = escape(", ".join(map(str, ranked.unknown_items)))
        err.print(f"not in the catalogue: {strangers}", soft_wrap=True)
    if ranked.fallback:
        err.print("nothing is known of this user: the most popular items")
    table = Table(title=title)
    for heading in ("", "item", "title", "score"):
        table.add_column(heading)
    for place, item in enumerate(ranked.items, start=1):
        cells = (escape(str(item.item_id)), escape(item.title or ""), f"{item.score:.4f}")
        table.add_row(str(place), *cells)
    out.print(table)


def recommend_all(engine: RankingEngine, to: Path, k: int, width: int | None) -> None:
    """Every user's list as Parquet: user_id, item_id, rank, score."""
    from recsys.progress import track

    if engine.bundle.users is None:
        raise ConfigError(
            "the bundle holds no users", where=engine.bundle.path, fix="run with bundle.histories > 0"
        )
    if (
        to.is_dir() or not to.parent.is_dir() or not os.access(to.parent, os.W_OK)
    ):  # before the work, not after it
        raise ConfigError("cannot write here", where=to, expected="a file name in a folder that is there")
    rows: list[tuple] = []
    users = engine.bundle.users[schema.USER].to_list()
    for user in track(users, "recommending", total=len(users)):
        ranked = engine.recommend(Query(user_id=user, width=width), k)
        rows += [(user, item.item_id, place, item.score) for place, item in enumerate(ranked.items, start=1)]
    types = {
        schema.USER: engine.bundle.users.schema[schema.USER],
        schema.ITEM: engine.bundle.items.schema[schema.ITEM],
        schema.RANK: pl.Int64,
        "score": pl.Float64,
    }
    frame = pl.DataFrame(rows, schema=types, orient="row")
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    write_bytes(to, buffer.getvalue())
    out.print(f"{len(users)} lists of {k} in {escape(str(to))}", soft_wrap=True)


def evaluate(bundle: Path, split_folder: Path, part: str, settings: list[str], root: Path) -> None:
    """Metrics of the bundle on a part; a look at test goes into the ledger."""
    from recsys.config import override, parse
    from recsys.evaluate import evaluate as judge
    from recsys.ledger import write_look
    from recsys.protocol import Protocol
    from recsys.report import interval
    from recsys.splits import Split

    opened, split = Bundle.open(bundle), Split.load(split_folder)
    split.check_id(opened.manifest["split_id"])
    stored: Mapping = opened.manifest["recipe"].get("evaluate", {})
    protocol = parse(Protocol, override(dict(stored), settings), where="--set")
    fit_parts = opened.manifest["recipe"].get("select", {}).get("refit") or ["train"]
    result = judge(opened.scorer(), split, part, protocol, fit_parts=fit_parts, name=opened.manifest["model"])
    table = Table(title=f"{opened.manifest['model']} on {part}: {result.facts['queries']} queries")
    for heading in ("metric", "value", "n"):
        table.add_column(heading)
    for key, entry in result.values.items():
        table.add_row(key, interval(entry), str(entry["n"]))
    out.print(table)
    if part == "test":
        root.mkdir(parents=True, exist_ok=True)
        entry = {"bundle": opened.id, "split": split.id, "protocol": protocol.id, "report": "recsys evaluate"}
        out.print(f"look {write_look(root / 'ledger.jsonl', entry)} at this test set")


def doctor() -> None:
    from recsys.doctor import examine

    table = Table(title="recsys doctor")
    for heading in ("group", "name", "status", "detail"):
        table.add_column(heading)
    colours = {"ok": "green", "missing": "yellow", "broken": "red"}
    for finding in examine():
        colour = colours[finding.status]
        table.add_row(
            finding.group, finding.name, f"[{colour}]{finding.status}[/]", finding.detail.replace("[", r"\[")
        )
    out.print(table)

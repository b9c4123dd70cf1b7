"""What `recsys compare` shows and writes."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from recsys.comparison import Comparison, gather
from recsys.comparison import compare as compared
from recsys.comparison_html import COSTS, columns, cost, render
from recsys.files import write_bytes, write_json
from recsys.present import out
from recsys.protocol import Key
from recsys.report import cell

_SURE = 0.05


def compare(runs: Sequence[Path], metric: str | None, folder: Path, timing: bool) -> None:
    """The table, and comparison.json and comparison.html in `folder`."""
    found = compared(gather(runs, timing=timing), metric)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "comparison.json", asdict(found))
    write_bytes(folder / "comparison.html", render(found).encode())
    out.print(_table(found))
    out.print(f"page  {folder / 'comparison.html'}", soft_wrap=True)


def _table(found: Comparison) -> Table:
    """Best first."""
    facts, whole = found.facts, Key.parse(found.metric)
    table = Table(
        title=f"{facts['part']} part: {facts['queries']} queries over {facts['catalogue']} items, "
        f"{facts['split_method']} split, mask {facts['protocol']['mask']}",
        caption=f"95 % user bootstrap; p: permutation test of {whole.metric}@{whole.k} against the first row, "
        f"Holm over all {len(found.pairs)} pairs",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    keys = columns(found)[:2]
    table.add_column("model", overflow="fold", min_width=12)
    for heading in (*(f"{key.metric}@{key.k}" for key in keys), "p", *COSTS.values()):
        table.add_column(heading, justify="right", no_wrap=True)
    best = next(iter(found.contenders))
    against = {pair["b"]: pair["p_holm"] for pair in found.pairs if pair["a"] == best}
    for label, one in found.contenders.items():
        p = against.get(label)
        shown = "" if p is None else f"{p:.4f}" if p < _SURE else f"[dim]{p:.2f}[/]"
        cells = [cell(one["values"][str(key)]) for key in keys]
        table.add_row(escape(label), *cells, shown, *(cost(one["costs"], name) for name in COSTS))
    return table

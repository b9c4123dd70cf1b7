"""A comparison as one self-contained page: no script, no outside file, readable on a phone."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from recsys import svg
from recsys.comparison import Comparison
from recsys.protocol import Key
from recsys.report_html import cell, page, table, wide

COSTS = {
    "train_seconds": "train s",
    "parameters": "numbers",
    "bytes": "bytes",
    "queries_per_second": "q/s",
}
"""What a model cost, and its heading: seconds of training, numbers in its state, their bytes, queries a second."""
_COLUMNS = ("ndcg", "hr", "recall", "mrr")


def cost(costs: Mapping[str, Any], name: str) -> str:
    """Three digits and a unit: 16.1k, 2.83M; a dash for what is not known."""
    value = costs.get(name)
    if value is None:
        return "-"
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def columns(found: Comparison) -> list[Key]:
    """The main metrics at the cut-off of the one that is compared, that one first."""
    whole = Key.parse(found.metric)
    keys = [Key(whole.part, metric, whole.k, whole.candidates) for metric in _COLUMNS]
    first = next(iter(found.contenders.values()))["values"]
    return [whole, *(key for key in keys if key != whole and str(key) in first)]


def render(found: Comparison) -> str:
    """The whole page; every text is escaped."""
    facts, whole = found.facts, Key.parse(found.metric)
    title = f"{len(found.contenders)} models on the {facts['part']} part"
    summary = (
        f"{facts['queries']:,} queries ranked over {facts['catalogue']:,} items; {facts['split_method']} split "
        f"{facts['split_id'][:12]}; history mask: {facts['protocol']['mask']}. Intervals: 95 % user bootstrap of the "
        "mean over seeds. Best first by the first column."
    )
    named, best = f"{whole.metric}@{whole.k}", next(iter(found.contenders))
    rows = [(label, one["values"][found.metric]) for label, one in found.contenders.items()]
    body = [
        f"<h1>{escape(title)}</h1><p>{escape(summary)}</p>",
        wide(svg.intervals(rows, f"{named} of every model")),
        f"<h2>{escape(named)} and what it costs</h2>",
        _models(found),
        "<h2>Average ranks</h2>",
        "<p>Mean rank of each model over the queries; bars join models whose ranks differ by less than the critical "
        "difference (Nemenyi, 5 %).</p>",
        wide(svg.critical_difference(found.ranks, found.critical, "critical difference diagram")),
        "<h2>Pairs</h2>",
        "<p>Paired over users: bootstrap interval of the difference, sign-flip permutation test, Holm-corrected over "
        "all pairs.</p>",
        _pairs([pair for pair in found.pairs if best in (pair["a"], pair["b"])]),
        f"<details><summary>all {len(found.pairs)} pairs</summary>{_pairs(found.pairs)}</details>",
        "<h2>Slices</h2>",
        _slices(found, named),
    ]
    return page(title, body)


def _models(found: Comparison) -> str:
    keys = columns(found)
    rows = []
    for number, (label, one) in enumerate(found.contenders.items()):
        first = one["values"][found.metric]
        spread = first.get("seeds")
        seeds = "1" if spread is None else f"{one['seeds']}<small>± {spread['std']:.4f}</small>"
        cells = [escape(label), *(cell(one["values"].get(str(key))) for key in keys), seeds]
        cells += [cost(one["costs"], name) for name in COSTS]
        rows.append(("selected" if number == 0 else "", cells))
    header = ["model", *(f"{key.metric}@{key.k}" for key in keys), "seeds"]
    return table([*header, *COSTS.values()], rows)


def _pairs(pairs: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            "",
            [
                f"{escape(pair['a'])} over {escape(pair['b'])}",
                f"{pair['difference']:+.4f}<small>{pair['low']:+.4f} - {pair['high']:+.4f}</small>",
                f"{pair['p']:.4f}",
                f"{pair['p_holm']:.4f}",
            ],
        )
        for pair in pairs
    ]
    return table(["pair", "difference", "p", "p (Holm)"], rows)


def _slices(found: Comparison, named: str) -> str:
    rows = []
    for text in found.slices():
        entries = [one["values"].get(text) for one in found.contenders.values()]
        count = next(entry["n"] for entry in entries if entry is not None)
        rows.append(("", [escape(Key.parse(text).slice), f"{count:,}", *map(cell, entries)]))
    return table([named, "n", *found.contenders], rows)

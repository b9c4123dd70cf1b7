"""The report as one self-contained page: no script, no outside file, readable on a phone."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from recsys.protocol import Key
from recsys.slices import reading_order

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --mark: #2a7de1; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: Canvas; }
tr.selected td { font-weight: 600; } small { color: GrayText; display: block; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; font-size: .9rem; }
dd { margin: 0; overflow-wrap: anywhere; } svg { width: clamp(30rem, 100%, 40rem); height: auto; }
summary { cursor: pointer; margin: 1rem 0; }
"""


def render(models: Mapping[str, Any], facts: Mapping[str, Any], columns: Sequence[Key]) -> str:
    """The whole page. models and facts as in `recsys.report.Report`; every text is escaped."""
    first = next(iter(models.values()))["facts"]
    summary = (
        f"{first['queries']:,} queries ranked over {first['catalogue']:,} items; {first['split_method']} split; "
        f"history mask: {first['protocol']['mask']}; seeds {facts['seeds']}; look {facts['look']} at this test set."
    )
    body = [
        f"<h1>{escape(facts['recipe'])}</h1><p>{escape(summary)} Selected on validation: "
        f"<strong>{escape(facts['selected'])}</strong>. Intervals: 95 % user bootstrap.</p>",
        "<h2>Models on the test part</h2>",
        table(["model", *(f"{key.metric}@{key.k}" for key in columns)], _model_rows(models, facts, columns)),
        "<h2>Against the selected model</h2>",
        versus(models),
        "<h2>Slices</h2>",
        _slices(models, columns[0]),
        _widths(models, columns[0]),
        "<h2>Beyond accuracy</h2>",
        _beyond(models, columns[0]),
        "<h2>What this rests on</h2>",
        _facts(facts, first),
    ]
    return page(f"{facts['recipe']}: report", body)


def page(title: str, body: Sequence[str]) -> str:
    """A page of these pieces of HTML; the title is escaped."""
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, '
        f'initial-scale=1"><title>{escape(title)}</title><style>{_STYLE}</style></head>'
    )
    return f"{head}<body><main>{''.join(body)}</main></body></html>\n"


def table(header: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """rows: (css class, cells); cells are HTML already."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "".join(
        f'<tr class="{css}">' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>" for css, cells in rows
    )
    return wide(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")


def wide(html: str) -> str:
    """What may be wider than a phone scrolls by itself."""
    return f'<div class="wide">{html}</div>'


def cell(entry: Mapping[str, Any] | None) -> str:
    """Value and interval of a metric; a dash for none."""
    if entry is None:
        return "-"
    low = "" if entry["low"] is None else f"<small>{entry['low']:.4f} - {entry['high']:.4f}</small>"
    return f"{entry['value']:.4f}{low}"


def _model_rows(models: Mapping[str, Any], facts: Mapping[str, Any], columns: Sequence[Key]) -> list:
    rows = []
    for name, model in models.items():
        cells = [escape(name)] + [cell(model["values"].get(str(key))) for key in columns]
        rows.append(("selected" if name == facts["selected"] else "", cells))
    return rows


def versus(models: Mapping[str, Any], who: str = "model") -> str:
    """Table of the tests against the one that all others are compared with. who: what they are called."""
    rows = [
        (
            "",
            [
                escape(name),
                f"{test['difference']:+.4f}<small>{test['low']:+.4f} - {test['high']:+.4f}</small>",
                f"{test['p']:.4f}",
                f"{test['p_holm']:.4f}",
            ],
        )
        for name, model in models.items()
        if (test := model.get("versus")) is not None
    ]
    if not rows:
        return f"<p>There is only one {who}.</p>"
    return table([who, "difference", "p", "p (Holm)"], rows)


def _slices(models: Mapping[str, Any], headline: Key) -> str:
    keys: dict[str, int] = {}
    for model in models.values():
        for text, entry in model["values"].items():
            key = Key.parse(text)
            if key.slice and (key.metric, key.k) == (headline.metric, headline.k):
                keys[text] = entry["n"]
    header = [f"{headline.metric}@{headline.k}", "n", *models]
    rows = [
        (
            "",
            [
                escape(Key.parse(text).slice or ""),
                f"{n:,}",
                *(cell(m["values"].get(text)) for m in models.values()),
            ],
        )
        for text, n in sorted(keys.items(), key=lambda entry: reading_order(Key.parse(entry[0]).slice))
    ]
    empty = next(iter(models.values()))["facts"]["empty_slices"]
    note = f"<p>Empty (n = 0): {escape(', '.join(empty))}.</p>" if empty else ""
    return table(header, rows) + note


def _widths(models: Mapping[str, Any], headline: Key) -> str:
    """Quality by nested width, one line per model that has several."""
    lines = {}
    for name, model in models.items():
        points = []
        for text, entry in model["values"].items():
            key = Key.parse(text)
            if key.width and (key.metric, key.k, key.slice) == (headline.metric, headline.k, None):
                points.append((key.width, entry["value"]))
        if points:
            full = (model["facts"]["width"], model["values"][str(headline)]["value"])
            lines[name] = sorted([*points, full])
    if not lines:
        return ""
    return "<h2>Nested widths</h2>" + "".join(_curve(name, points) for name, points in lines.items())


def _curve(name: str, points: Sequence[tuple[int, float]]) -> str:
    top = max(value for _, value in points) or 1.0
    step = 560 / max(len(points) - 1, 1)
    places = [(50 + step * number, 180 - 150 * value / top) for number, (_, value) in enumerate(points)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    marks = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="var(--mark)"/>'
        f'<text x="{x:.1f}" y="{y - 10:.1f}" font-size="12" text-anchor="middle" fill="currentColor">{value:.4f}</text>'
        f'<text x="{x:.1f}" y="205" font-size="12" text-anchor="middle" fill="currentColor">{width}</text>'
        for (x, y), (width, value) in zip(places, points, strict=True)
    )
    line = f'<polyline points="{path}" fill="none" stroke="var(--mark)" stroke-width="2"/>'
    picture = f'<svg viewBox="0 0 660 215" role="img" aria-label="quality by width">{line}{marks}</svg>'
    return f"<p>{escape(name)}</p>{wide(picture)}"


def _beyond(models: Mapping[str, Any], headline: Key) -> str:
    names = ("coverage", "gini", "novelty", "diversity", "cold_share")
    rows = []
    for name, model in models.items():
        keys = [str(Key(headline.part, metric, headline.k, headline.candidates)) for metric in names]
        rows.append(("", [escape(name), *(cell(model["values"].get(key)) for key in keys)]))
    return table(["model", *(f"{name}@{headline.k}" for name in names)], rows)


def _facts(facts: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    rows = {
        "split": f"{facts['split']['method']}, id {facts['split']['id']}",
        "rows": ", ".join(f"{part} {count:,}" for part, count in facts["split"]["rows"].items()),
        "fitted on": ", ".join(first["fit_parts"]),
        "protocol": ", ".join(f"{name} = {value}" for name, value in facts["protocol"].items()),
        "targets": f"{first['targets']:,}, of which {first['targets_repeated']:,} repeat their history and "
        f"{first['targets_outside']:,} lie outside the catalogue",
        "empty histories": f"{first['empty_histories']:,} queries",
        "bundle": facts["bundle_id"],
        "data": f"{facts['data']['source']}. {facts['data']['licence']}",
    }
    return (
        "<dl>"
        + "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(v))}</dd>" for name, v in rows.items())
        + "</dl>"
    )

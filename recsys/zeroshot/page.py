"""The report of an experiment as one self-contained page."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from recsys import svg
from recsys.report_html import cell, page, table, versus, wide
from recsys.zeroshot.outcome import Outcome, faults_line


def render(found: Outcome) -> str:
    """The whole page; every text is escaped."""
    facts, contenders = found.facts, found.contenders
    asked, columns = facts["candidates"], found.columns()
    look = "" if facts["look"] is None else f" Look {facts['look']} at this test set."
    summary = (
        f"{facts['model']}: {facts['queries']:,} users of the {facts['part']} part, each with {asked['length']} "
        f"candidates ({asked['how']}; {asked['recall']:.1%} of targets are among them, {asked['repeated']} "
        f"are repeats) out of {facts['catalogue']:,} "
        "items. Figures of so few candidates may order models otherwise than the full catalogue would. Intervals: "
        "95 % user bootstrap."
    )
    rows = [(name, one["values"][found.headline]) for name, one in contenders.items()]
    spent = facts["spent"]
    body = [
        f"<h1>{escape(facts['name'])}</h1><p>{escape(summary + look)}</p>",
        wide(svg.intervals(rows, "headline of everybody")),
        "<h2>On the same candidates</h2>",
        table(
            ["who", "kind", *(f"{key.metric}@{key.k}" for key in columns)],
            [
                (
                    "selected" if name == facts["main"] else "",
                    [escape(name), one["kind"], *(cell(one["values"].get(str(key))) for key in columns)],
                )
                for name, one in contenders.items()
            ],
        ),
        f"<h2>Against {escape(facts['main'])}</h2>",
        versus(contenders, "contender"),
        "<h2>Answers: faults, slots, cost</h2>",
        "<p>Slot: where the favourites stood when shown, and how far that is from even (0 to 1).</p>",
        _answers(contenders, spent),
        "<h2>Worth and cost</h2>",
        "<p>Headline over tokens a user; who is not asked costs none.</p>",
        wide(_frontier(found)),
        "<h2>Popularity and diversity</h2>",
        "<p>LPD: log popularity of the list less that of the history; distance: of a list's items, by content.</p>",
        table(
            ["who", "LPD", "distance"],
            [
                ("", [escape(name), f"{one['lpd']:+.3f}", f"{one['distance']:.3f}"])
                for name, one in contenders.items()
                if "lpd" in one
            ],
        ),
        "<h2>Probes</h2>",
        _probes(found.diagnostics),
        "<h2>What it cost</h2>",
        _list({name: _said(value) for name, value in spent.items()}),
        "<h2>What this rests on</h2>",
        _list(
            {
                "split": f"{facts['split_method']}, id {facts['split_id']}",
                "prompt": f"version {facts['prompt_version']}; captions: {facts['captions'] or 'none'}",
                "candidates": ", ".join(
                    f"{name} = {value}" for name, value in asked.items() if name != "split_id"
                ),
            }
        ),
    ]
    return page(f"{facts['name']}: zero-shot", body)


def _answers(contenders: Mapping[str, Any], spent: Mapping[str, Any]) -> str:
    rows = []
    for name, one in contenders.items():
        if "faults" not in one:
            continue
        slots, point = one["slots"], one["cost_per_point"]
        cost = f"{one['cost_per_user']:.5f}" if spent["price_known"] else "price unknown"
        cells = [escape(name), escape(faults_line(one["faults"]))]
        shown = (
            "-"
            if slots is None
            else "{}: {:.0%} ({:.2f})".format(slots["favourite_slot"] + 1, slots["share"], slots["distance"])
        )
        cells.append(shown)
        cells += [f"{one['tokens_per_user']:,.0f}", cost, "-" if point is None else f"{point:.5f}"]
        rows.append(("", cells))
    money = escape(spent["currency"])
    header = [
        "who",
        "faults",
        "slot",
        "tokens a user",
        f"{money} a user",
        f"{money} a point of NDCG over chance",
    ]
    return table(header, rows)


def _frontier(found: Outcome) -> str:
    """A dot for everybody: tokens a user to the right, the headline upwards, both from zero."""
    points = [
        (name, one.get("tokens_per_user", 0.0), one["values"][found.headline]["value"])
        for name, one in found.contenders.items()
        if one["kind"] != "control"
    ]
    most, best = (max(point[axis] for point in points) or 1.0 for axis in (1, 2))
    left, right, top, bottom = 30, 480, 20, 250
    parts = [svg.line(left, bottom, right, bottom), svg.line(left, top, left, bottom)]
    for name, tokens, value in points:
        x, y = left + (right - left) * tokens / most, bottom - (bottom - top) * value / best
        parts += [svg.dot(x, y), svg.text(x + 9, y + 4, f"{name} {value:.3f}")]
    parts.append(svg.text(right, bottom + 18, f"{most:,.0f} tokens", "end"))
    return svg.picture(bottom + 25, "headline over tokens a user", *parts)


def _probes(diagnostics: Mapping[str, Mapping[str, Any]]) -> str:
    if not diagnostics:
        return "<p>None was asked for: see [diagnostics].</p>"
    return "".join(
        f"<h3>{escape(name)}</h3>" + _list({key: _said(value) for key, value in numbers.items()})
        for name, numbers in diagnostics.items()
    )


def _said(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_said(entry)}" for key, entry in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_said, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _list(entries: Mapping[str, str]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in entries.items()) + "</dl>"

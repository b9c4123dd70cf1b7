"""Small pictures for pages: SVG text that follows the page's colours, light or dark, and scales to a phone."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_WIDTH = 660
_TEXT = 'font-size="13" fill="currentColor"'


def picture(height: float, label: str, *parts: str) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {height:g}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def text(x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {_TEXT} text-anchor="{anchor}">{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, colour: str = "currentColor", width: float = 1) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width:g}"/>'


def dot(x: float, y: float) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="var(--mark)"/>'


def intervals(rows: Sequence[tuple[str, Mapping[str, Any]]], label: str) -> str:
    """A line a row: value and interval {value, low, high}, from zero on."""
    top = max(max(entry["value"], entry["high"] or 0.0) for _, entry in rows) or 1.0
    left, right, step = 190, _WIDTH - 70, 26

    def x(value: float) -> float:
        return left + (right - left) * value / top

    parts = [line(left, 8, left, 12 + step * len(rows))]
    for number, (name, entry) in enumerate(rows):
        y = 22 + step * number
        parts.append(text(left - 10, y + 4, _short(name), "end"))
        if entry["low"] is not None:
            parts.append(line(x(entry["low"]), y, x(entry["high"]), y, "var(--mark)", 2))
        parts += [dot(x(entry["value"]), y), text(right + 12, y + 4, f"{entry['value']:.4f}")]
    return picture(20 + step * len(rows), label, *parts)


def critical_difference(ranks: Mapping[str, float], critical: float, label: str) -> str:
    """Average ranks on one axis, best at the left; bars join models that the test does not tell apart (Demsar, JMLR 7,
    2006, figure 1)."""
    order = sorted(ranks, key=lambda name: ranks[name])
    low, high = ranks[order[0]], ranks[order[-1]]
    span = max(high - low, critical, 1e-9)
    left, right, top, step = 60, _WIDTH - 60, 60, 22

    def x(rank: float) -> float:
        return left + (right - left) * (rank - low) / span

    bars = []
    for first, name in enumerate(order):
        last = max(i for i, other in enumerate(order) if ranks[other] - ranks[name] <= critical)
        if last > first and not any(a <= first and last <= b for a, b in bars):
            bars.append((first, last))
    below = top + 12 + 8 * len(bars)
    parts = [
        line(left, 18, left + (right - left) * critical / span, 18, "currentColor", 2),
        text(left, 12, f"critical difference {critical:.3g}"),
        line(left, top, right, top),
    ]
    for number, (first, last) in enumerate(bars):
        y = top + 10 + 8 * number
        parts.append(line(x(ranks[order[first]]) - 4, y, x(ranks[order[last]]) + 4, y, "var(--mark)", 4))
    for number, name in enumerate(order):
        place, y = x(ranks[name]), below + step * (number + 1)
        before = place > (left + right) / 2
        parts += [line(place, top, place, y - 4), dot(place, top)]
        words = f"{_short(name)} {ranks[name]:.3f}"
        parts.append(text(place + (-6 if before else 6), y, words, "end" if before else "start"))
    return picture(below + step * (len(order) + 1), label, *parts)


def _short(name: str, longest: int = 26) -> str:
    return name if len(name) <= longest else f"{name[: longest - 1]}…"

"""Pictures of a load test as SVG files of their own, light or dark as the reader's system is."""

import math
from collections.abc import Sequence

import numpy as np

from recsys import svg
from recsys.serving.bench import Saturation

_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 640, 30, 260
_STYLE = (
    "<style>svg{--mark:#2a7de1;--other:#c2571a;color:#222;background:#fff;font-family:system-ui,sans-serif}"
    "@media(prefers-color-scheme:dark){svg{color:#ddd;background:#111}}</style>"
)
_SHARES = (0.0, 0.9, 0.99, 0.999, 0.9999)
Point = tuple[float, float]


def latency_picture(latency_ms: np.ndarray, label: str) -> str:
    """Latency by the share of requests that were at least as quick; each tick of the axis is a tenth of the rest."""
    ordered = np.sort(latency_ms)
    nines = math.log10(len(ordered))
    wanted = 1 - 10 ** -np.linspace(0, nines, 80)
    places = np.minimum((wanted * len(ordered)).astype(np.int64), len(ordered) - 1)
    points = [(-math.log10(1 - share), value) for share, value in zip(wanted, ordered[places], strict=True)]
    ticks = [(float(number), f"{100 * share:g} %") for number, share in enumerate(_SHARES) if number <= nines]
    return _chart(label, {"latency": points}, ticks, (0, max(nines, 1.0)), "share of requests")


def saturation_picture(found: Saturation, label: str) -> str:
    """p50 and p99 by the rate asked for, at each rate the better attempt; and the rate that held."""
    ordered = sorted(found.steps, key=lambda step: -step.latency_ms["p99"])
    better = {step.asked: step for step in ordered}
    steps = [better[rate] for rate in sorted(better)]
    lines = {
        name: [(math.log10(step.asked), step.latency_ms[name]) for step in steps] for name in ("p50", "p99")
    }
    low, high = math.log10(steps[0].asked), math.log10(steps[-1].asked)
    middle = (low + high) / 2
    ticks = [(x, rate_of(10**x)) for x in dict.fromkeys((low, middle, high))]
    label = f"{label}; saturation {rate_of(found.rate)} requests/s at p99 within {found.limit_ms:g} ms"
    return _chart(label, lines, ticks, (low, max(high, low + 0.1)), "requests/s")


def rate_of(value: float) -> str:
    """As many digits as say something: 1.4, 212, 1,340."""
    return f"{value:.2g}" if value < 10 else f"{value:,.0f}"


def _chart(
    label: str,
    lines: dict[str, Sequence[Point]],
    ticks: Sequence[tuple[float, str]],
    span: Point,
    below: str,
) -> str:
    """Milliseconds, in powers of ten, over x."""
    values = [value for points in lines.values() for _, value in points]
    bottom = math.floor(math.log10(max(min(values), 1e-3)))
    top = max(math.ceil(math.log10(max(values))), bottom + 1)

    def at(point: Point) -> Point:
        height = (math.log10(max(point[1], 1e-3)) - bottom) / (top - bottom)
        return _LEFT + (_RIGHT - _LEFT) * (point[0] - span[0]) / (span[1] - span[0]), _BOTTOM - (
            _BOTTOM - _TOP
        ) * height

    parts = [_STYLE, svg.text(_LEFT, 18, label)]
    for power in range(bottom, top + 1):
        _, y = at((0, 10.0**power))
        parts += [
            svg.line(_LEFT, y, _RIGHT, y, "#8885"),
            svg.text(_LEFT - 6, y + 4, f"{10.0**power:g} ms", "end"),
        ]
    for x, words in ticks:
        place, _ = at((x, 1))
        parts += [
            svg.line(place, _BOTTOM, place, _BOTTOM + 5),
            svg.text(place, _BOTTOM + 20, words, "middle"),
        ]
    parts.append(svg.text((_LEFT + _RIGHT) / 2, _BOTTOM + 40, below, "middle"))
    for (name, points), colour in zip(lines.items(), ("var(--mark)", "var(--other)"), strict=False):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(at, points))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        x, y = at(points[-1])
        parts.append(svg.text(x - 4, y - 8, name, "end"))
    drawn = svg.picture(_BOTTOM + 50, label, *parts)
    return drawn.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n"

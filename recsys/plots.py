"""Pictures of a run for the report folder and MLflow: learning curves, models with intervals, nested widths.

Needs matplotlib (extra `train`). The same numbers give the same bytes: no display, no clock, no user's style.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recsys.errors import require
from recsys.protocol import Key

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from recsys.report import Report

_DPI = 120
_MARK, _GREY = "#2a7de1", "#777777"


def draw(report: "Report", fits: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Write training.png, metrics.png and widths.png into `folder`; a picture that would be empty is left out.

    fits: what `fit.json` holds of each fit (name, seed, progress, monitor). Returns the files written.
    """
    require("matplotlib", "train", purpose="drawing the report")
    from matplotlib import rc_context, rcParamsDefault

    with rc_context(rcParamsDefault):  # a user's style file changes nothing
        figures = {
            "training": _training([fit for fit in fits if fit["progress"]["history"]]),
            "metrics": _metrics(report),
            "widths": _widths(report),
        }
        written = []
        for name, figure in figures.items():
            if figure is not None:
                path = folder / f"{name}.png"
                figure.savefig(path, dpi=_DPI, metadata={"Software": None})
                written.append(path)
    return written


def draw_widths(report: Mapping[str, Any], path: Path) -> None:
    """The picture of `recsys export --split`: NDCG against bytes and against latency, a line per format, a point per
    width."""
    require("matplotlib", "train", purpose="drawing the report")
    from matplotlib import rc_context, rcParamsDefault

    with rc_context(rcParamsDefault):
        figure, axes = _figure(2)
        (key,) = (key for key in report["lines"][0] if key.startswith("ndcg_at_"))
        metric = f"{report['part']} {_metric(key)}"
        for axis, place, unit in zip(axes, ("bytes", "milliseconds"), (1e-6, 1.0), strict=True):
            for number, name in enumerate(dict.fromkeys(line["format"] for line in report["lines"])):
                lines = [line for line in report["lines"] if line["format"] == name]
                points = [(line[place] * unit, line[key]["value"]) for line in lines]
                axis.plot(*zip(*points, strict=True), color=f"C{number}", label=name, linewidth=1.5)
                for line, (x, y) in zip(lines, points, strict=True):
                    _with_interval(axis, line[key], x, f"C{number}", horizontal=False)
                    label = str(line["width"] or "full")
                    axis.annotate(label, (x, y), (5, 5), textcoords="offset points", fontsize="small")
            axis.set_ylim(bottom=0)
            axis.set_xlim(left=0)
        axes[0].set(xlabel="item vectors and weights (MB)", ylabel=f"{metric} (95 % user bootstrap)")
        axes[1].set(xlabel="milliseconds per query (median, one thread)")
        axes[0].legend(fontsize="small")
        figure.savefig(path, dpi=_DPI, metadata={"Software": None})


def _figure(panels: int, *, height: float = 3.6) -> tuple["Figure", list["Axes"]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4 * panels, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(1, panels, panel + 1) for panel in range(panels)]
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _training(fits: Sequence[Mapping[str, Any]]) -> "Figure | None":
    """Loss and validation metric epoch by epoch, a line per fit; the kept epoch is marked."""
    if not fits:
        return None
    from matplotlib.ticker import MaxNLocator

    figure, (loss, valid) = _figure(2)
    for number, fit in enumerate(fits):
        history, best = fit["progress"]["history"], fit["progress"]["best_epoch"]
        epochs, colour = range(1, len(history) + 1), f"C{number % 10}"
        label = f"{fit['name']}, seed {fit['seed']}"
        for axis, key in ((loss, "loss"), (valid, "valid")):
            values = [metrics.get(key) for metrics in history]
            if None not in values:
                axis.plot(epochs, values, color=colour, label=_plain(label), marker=".", linewidth=1.5)
                axis.plot(best + 1, values[best], color=colour, marker="o", markersize=9, fillstyle="none")
    loss.set(xlabel="epoch", ylabel="training loss (mean over steps)", title="Training")
    monitor = fits[0]["monitor"]["metric"]
    valid.set(
        xlabel="epoch", ylabel=_plain(f"validation {_metric(monitor)}"), title="Validation; ring = kept epoch"
    )
    for axis in (loss, valid):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        if axis.lines:
            axis.legend(fontsize="small")
        else:
            axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", color=_GREY)
    return figure


def _metrics(report: "Report") -> "Figure":
    """The headline metric of every model with its interval, best at the top, the selected one in colour."""
    headline = _headline(report)
    entries = {name: model["values"][str(headline)] for name, model in report.models.items()}
    order = sorted(entries, key=lambda name: entries[name]["value"])
    figure, (axis,) = _figure(1, height=1.4 + 0.4 * len(order))
    for place, name in enumerate(order):
        colour = _MARK if name == report.facts["selected"] else _GREY
        _with_interval(axis, entries[name], place, colour, horizontal=True)
    axis.set_yticks(range(len(order)), [_plain(name) for name in order])
    axis.set_ylim(-0.6, len(order) - 0.4)
    axis.set_xlim(left=0)
    axis.set(
        xlabel=f"{headline.part} {headline.metric}@{headline.k} (95 % user bootstrap)",
        title=_plain(f"selected on validation: {report.facts['selected']}"),
    )
    return figure


def _widths(report: "Report") -> "Figure | None":
    """The headline metric by nested width, a line per model that was judged at several."""
    headline = _headline(report)
    lines = {}
    for name, model in report.models.items():
        points = {
            key.width: entry
            for key, entry in ((Key.parse(text), entry) for text, entry in model["values"].items())
            if key.width and (key.metric, key.k, key.slice) == (headline.metric, headline.k, None)
        }
        if points:
            full = {model["facts"]["width"]: model["values"][str(headline)]}
            lines[name] = dict(sorted((points | full).items()))
    if not lines:
        return None
    figure, (axis,) = _figure(1)
    for number, (name, points) in enumerate(lines.items()):
        values = [entry["value"] for entry in points.values()]
        axis.plot(list(points), values, color=f"C{number % 10}", label=_plain(name), linewidth=1.5)
        for width, entry in points.items():
            _with_interval(axis, entry, width, f"C{number % 10}", horizontal=False)
    widths = sorted({width for points in lines.values() for width in points})
    axis.set_xscale("log", base=2)
    axis.set_xticks(widths, [str(width) for width in widths])
    axis.set_xticks([], minor=True)
    axis.set_ylim(bottom=0)
    axis.set(
        xlabel="width (dimensions)",
        ylabel=f"{headline.part} {headline.metric}@{headline.k} (95 % user bootstrap)",
    )
    axis.legend(fontsize="small")
    return figure


def _with_interval(
    axis: "Axes", entry: Mapping[str, Any], place: float, colour: str, *, horizontal: bool
) -> None:
    """A point, and its interval where there is one."""
    value, low, high = entry["value"], entry["low"], entry["high"]
    # the mean of a metric may lie outside a percentile interval by rounding alone
    bars = None if low is None else [[max(value - low, 0.0)], [max(high - value, 0.0)]]
    x, y = (value, place) if horizontal else (place, value)
    axis.errorbar(
        x,
        y,
        **{"xerr" if horizontal else "yerr": bars},
        color=colour,
        marker="o",
        capsize=4,
        linestyle="none",
    )


def _headline(report: "Report") -> Key:
    return report.columns()[0]


def _metric(name: str) -> str:
    metric, _, k = name.partition("_at_")
    return f"{metric}@{k}"


def _plain(text: str) -> str:
    """Names as they are: matplotlib would read a pair of dollars as a formula."""
    return text.replace("$", r"\$")

"""The plot of a comparison: each request on both sides, and who got slower by length and by nearness to a transformation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gyges.bench.compare.nearness import AFTER, AWAY, DECODED, WAITED
from gyges.metrics.plots import BLACK, BLUE, GREY, ORANGE, VERMILLION, new_figure, save_figures, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Document = Mapping[str, Any]
_MARKS = {WAITED: ("^", VERMILLION), DECODED: ("s", ORANGE), AFTER: ("D", BLUE), AWAY: ("o", GREY)}


def write_plots(folder: Path, document: Document) -> list[Path]:
    """One per comparison that has requests to compare."""
    figures = {}
    for index, each in enumerate(document["comparisons"], start=1):
        if each["points"]:
            name = each["name"] or ("" if len(document["comparisons"]) == 1 else str(index))
            figures[f"compare-{name}" if name else "compare"] = comparison(each, document["metric"])
    return save_figures(folder, figures)


def comparison(each: Document, metric: str) -> Figure:
    """Left: b over a, logarithmic, the diagonal is "the same". Right: mean differences with 95 % intervals."""
    figure = new_figure(11.0, 5.2)
    left, right = figure.subplots(1, 2)
    points = each["points"]
    for near, (marker, colour) in _MARKS.items():
        chosen = [p for p in points if p["nearness"] == near]
        if chosen:
            left.scatter(
                [p["a_s"] for p in chosen], [p["b_s"] for p in chosen], marker=marker, color=colour, edgecolor="white",
                linewidth=0.4, s=34, label=f"{near} ({len(chosen)})",
            )  # fmt: skip
    values = [v for p in points for v in (p["a_s"], p["b_s"]) if v > 0]
    low, high = 0.8 * min(values, default=1.0), 1.25 * max(values, default=1.0)
    left.plot([low, high], [low, high], color=BLACK, linewidth=0.9)
    left.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
    left.set_xlabel(f"{metric.upper()} in a, seconds")
    left.set_ylabel(f"{metric.upper()} in b, seconds (above the line: slower)")
    tidy(left)
    _plain_ticks(left)
    # Below both panels: points may lie anywhere.
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    _differences(right, each)
    right.set_xlabel(f"mean difference of {metric.upper()}, b - a, milliseconds (right: slower)")
    a, b = (_short(each[side]["name"]) for side in ("a", "b"))
    figure.suptitle((f"{each['name']}: " if each["name"] else "") + f"a: {a}   b: {b}", fontsize=9)
    return figure


def _plain_ticks(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=9))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
        axis.set_minor_formatter(NullFormatter())


def _differences(axes: Axes, each: Document) -> None:
    rows: list[tuple[str, Document]] = [(f"{b['bucket']} prompt tokens", b) for b in each["buckets"]]
    rows += [(str(n["nearness"]), n) for n in each["nearness"]]
    shown = [(name, row) for name, row in rows if row["difference_s"] is not None]
    buckets = sum(name.endswith("prompt tokens") for name, _ in shown)
    places: Sequence[float] = [i if i < buckets else i + 0.6 for i in range(len(shown))]
    for y, (_, row) in zip(places, shown, strict=True):
        change = row["difference_s"]
        middle = 1e3 * change["value"]
        colour = BLACK if change["clear"] else "0.55"
        axes.plot(middle, y, "o", color=colour, markersize=5)
        if change["low"] is not None and change["high"] is not None:
            axes.plot(
                [1e3 * change["low"], 1e3 * change["high"]],
                [y, y],
                color=BLACK if change["clear"] else "0.55",
                linewidth=1.3,
            )
    axes.axvline(0, color="0.3", linewidth=0.9)
    axes.set_yticks(places, [f"{name} ({row['compared']})" for name, row in shown], fontsize=8)
    axes.set_ylim(len(shown) + 0.2, -0.7)
    tidy(axes)
    axes.grid(axis="y", visible=False)
    axes.set_title("black: the interval excludes 0", fontsize=9)


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"…{text[-59:]}"

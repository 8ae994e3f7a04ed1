"""The plots of an ablation, as PNG (150 dpi) and SVG.

bars           headline figures of every cell, with intervals
contributions  from everything off to everything on, part by part (default and full grid)
latency_cdf    TTFT and TPOT of short and of long requests, a curve per cell
timeline       throughput over time above the device map, of the reference and of what it is compared with

Cells that are compared with one another share a plot; where there are several such groups, file names are numbered.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gyges.bench.ablation.figures import FIGURES, LATENCY_FIGURES, LatencyFigure, Run
from gyges.bench.ablation.grid import ALL_OFF, ALL_ON
from gyges.metrics.plot_devices import draw_devices
from gyges.metrics.plots import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    cdf_points,
    new_figure,
    run_end,
    save_figures,
    seconds_axis,
    tidy,
    token_rate,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Document = Mapping[str, Any]

_BARS = (
    "output_tokens_per_s", "goodput", "pause_max_s",
    "short_ttft_p99_s", "short_tpot_p99_s", "long_ttft_p99_s",
)  # fmt: skip
_STEPS = ("output_tokens_per_s", "short_ttft_p99_s", "short_tpot_p99_s", "long_ttft_p99_s")
_COLOURS = (ORANGE, GREEN, VERMILLION, PURPLE, BLUE, SKY)
_DASHES = ("-", "--", ":", "-.")
_MOST_TIMELINES = 4


def write_plots(folder: Path, document: Document, root: Path) -> list[Path]:
    """Every plot that there is data for, from ablation.json's content and the cells' folders below ``root``."""
    figures: dict[str, Figure] = {}
    groups = _groups(document)
    for index, cells in enumerate(groups, start=1):
        suffix = "" if len(groups) == 1 else f"-{index}"
        label = _label(document, cells)
        runs = {cell["name"]: _runs(cell, root) for cell in cells}
        figures[f"bars{suffix}"] = bars(cells, label=label, goodput=bool(document["configuration"]["slo"]))
        if (steps := contributions(cells, label=label)) is not None:
            figures[f"contributions{suffix}"] = steps
        figures[f"latency_cdf{suffix}"] = latency_cdf(cells, runs, label=label)
        figures[f"timeline{suffix}"] = timeline(_shown_over_time(cells), runs, label=label)
    return save_figures(folder, figures)


def _groups(document: Document) -> list[list[Document]]:
    """Cells by what they are compared with, those that are compared with nothing together; without those that could not run."""
    found: dict[str, list[Document]] = {}
    for cell in document["cells"]:
        if cell["repeats"]:
            found.setdefault(cell["reference"] or cell["name"], []).append(cell)
    alone = [cells[0] for cells in found.values() if len(cells) == 1]
    return [cells for cells in found.values() if len(cells) > 1] + ([alone] if alone else [])


def _label(document: Document, cells: Sequence[Document]) -> str:
    traces = {cell["trace_sha256"] for cell in cells}
    work = next(w for w in document["workloads"] if w["content_sha256"] in traces)
    repeats = f"{document['repeats']} repeats" if document["repeats"] > 1 else "one repeat"
    what = f"{_short(str(work['name']))}, {work['requests']} requests" if len(traces) == 1 else f"{len(traces)} traces"
    text = f"{what}, {repeats}"
    if document["simulated"]:
        text += ", simulated"
    return text + "".join(f"\n{note}" for note in document["notes"])


def _short(text: str) -> str:
    return text if len(text) <= 50 else f"{text[:49]}…"


def _runs(cell: Document, root: Path) -> list[Run]:
    folders = (root / "cells" / cell["slug"] / f"r{repeat}" for repeat in cell["repeats"])
    return [Run.read(folder, cell["long_over_tokens"]) for folder in folders]


def _colour(cell: Document) -> str:
    name = cell["name"]
    if name.startswith(ALL_OFF):
        return GREY
    if name.startswith("without"):
        return ORANGE
    return SKY if name.startswith("only") else BLUE


# -- bars -------------------------------------------------------------------------------------------------------------


def bars(cells: Sequence[Document], *, label: str, goodput: bool = True) -> Figure:
    """Bars are values over all repeats, whiskers 95 % intervals; hatched to the edge: never, for some requests."""
    keys = [key for key in _BARS if goodput or key != "goodput"]
    rows = -(-len(keys) // 3)
    figure = new_figure(11.0, 1.2 + rows * (0.8 + 0.26 * len(cells)))
    panels = figure.subplots(rows, 3, squeeze=False, sharey=True)
    for axes in panels.flat[len(keys) :]:
        axes.set_visible(False)
    for axes, key in zip(panels.flat, keys, strict=False):
        _bar_panel(axes, cells, key)
    panels[0][0].invert_yaxis()
    figure.suptitle(label, fontsize=9)
    return figure


def _bar_panel(axes: Axes, cells: Sequence[Document], key: str) -> None:
    figure = FIGURES[key]
    found = [cell["figures"][key] for cell in cells]
    finite = [f[b] * figure.scale for f in found for b in ("value", "high") if f[b] is not None and not f["infinite"]]
    # Two repeats can make a whisker many times as long as any bar: it goes on beyond the panel.
    most = max((f["value"] * figure.scale for f in found if f["value"] is not None), default=1.0)
    edge = min(1.12 * max(finite, default=1.0), 1.6 * most, *([105.0] if figure.unit == "%" else [])) or 1.0
    for row, (cell, value) in enumerate(zip(cells, found, strict=True)):
        if value["infinite"]:
            axes.barh(row, edge, color="none", edgecolor="0.45", hatch="////", linewidth=0.6)
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
            axes.text(edge / 2, row, "some never", ha="center", va="center", fontsize=7.5, bbox=box)
        elif value["value"] is None:
            axes.text(0, row, " none", va="center", fontsize=8, color="0.35")
        else:
            middle = value["value"] * figure.scale
            axes.barh(row, middle, color=_colour(cell))
            low, high = (value[bound] for bound in ("low", "high"))
            if low is not None and high is not None and high > low:
                span = [[max(0.0, middle - max(0.0, low) * figure.scale)], [max(0.0, high * figure.scale - middle)]]
                axes.errorbar(middle, row, xerr=span, color=BLACK, linewidth=1.0, capsize=2.5)
    better = "lower" if figure.least else "higher"
    unit = f" ({figure.unit})" if figure.unit else ""
    axes.set_title(f"{_title(key)}{unit}, {better} is better", fontsize=9)
    axes.set_yticks(range(len(cells)), [cell["name"] for cell in cells], fontsize=8)
    axes.set_xlim(0, edge)
    axes.tick_params(axis="x", labelsize=8)
    tidy(axes)
    axes.grid(axis="y", visible=False)


def _title(key: str) -> str:
    figure = FIGURES[key]
    return " ".join(filter(None, (figure.group if isinstance(figure, LatencyFigure) else "", figure.label)))


# -- contributions ----------------------------------------------------------------------------------------------------


def contributions(cells: Sequence[Document], *, label: str) -> Figure | None:
    """Waterfalls: each part alone added to everything off, and what is left for them together. None without those cells."""
    by_state = {tuple(sorted(cell["state"].items())): cell for cell in cells}
    parts = list(cells[0]["state"])
    off = by_state.get(tuple(sorted(dict.fromkeys(parts, False).items())))
    on = by_state.get(tuple(sorted(dict.fromkeys(parts, True).items())))
    alone = [by_state.get(tuple(sorted({name: name == part for name in parts}.items()))) for part in parts]
    if off is None or on is None or len(parts) < 2 or any(cell is None for cell in alone):
        return None
    figure = new_figure(11.0, 6.4)
    panels = figure.subplots(2, 2).flat
    for axes, key in zip(panels, _STEPS, strict=True):
        _waterfall(axes, key, off, on, dict(zip(parts, alone, strict=True)))
    figure.suptitle(f"Each part alone, added to everything off; whiskers: 95 % of the difference\n{label}", fontsize=9)
    return figure


def _waterfall(axes: Axes, key: str, off: Document, on: Document, alone: Mapping[str, Any]) -> None:
    figure = FIGURES[key]
    scale = figure.scale
    unit = f" ({figure.unit})" if figure.unit else ""
    axes.set_title(f"{_title(key)}{unit}, {'lower' if figure.least else 'higher'} is better", fontsize=9)
    tidy(axes)
    ends = [cell["figures"][key]["value"] for cell in (off, on, *alone.values())]
    if any(value is None for value in ends):
        text = (
            "no finite difference: in some of these cells\nsome of these requests never got there, or there were none"
        )
        axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color="0.35", fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
        return
    start, end = ends[0] * scale, ends[1] * scale
    axes.bar(0, start, color=GREY, width=0.7)
    level, steps = start, list[float]()
    for x, cell in enumerate(alone.values(), start=1):
        change = cell["figures"][key]["change"]["difference"]
        step = change["value"] * scale
        _step(axes, x, level, step, good=(step < 0) == figure.least)
        if change["low"] is not None and change["high"] is not None:
            span = [[step - change["low"] * scale], [change["high"] * scale - step]]
            axes.errorbar(x, level + step, yerr=np.maximum(span, 0), color=BLACK, linewidth=1.0, capsize=2.5)
        level += step
        steps.append(step)
    rest = end - level
    steps.append(rest)
    _step(axes, len(alone) + 1, level, rest, good=(rest < 0) == figure.least)
    axes.bar(len(alone) + 2, end, color=BLUE, width=0.7)
    axes.set_xticks(range(len(alone) + 3), _named_steps(alone, start, steps, end), fontsize=8)
    axes.tick_params(axis="y", labelsize=8)
    axes.margins(y=0.12)
    axes.grid(axis="x", visible=False)
    axes.axhline(0, color="0.3", linewidth=0.8)


def _named_steps(alone: Mapping[str, Any], start: float, steps: Sequence[float], end: float) -> list[str]:
    """With their values, which have no room beside the whiskers."""
    middle = [f"{name}\n{step:+.3g}" for name, step in zip([*alone, "together"], steps, strict=True)]
    return [f"all off\n{_figures(start)}", *middle, f"all on\n{_figures(end)}"]


def _step(axes: Axes, x: int, level: float, step: float, *, good: bool) -> None:
    axes.bar(
        x,
        step,
        bottom=level,
        color=SKY if good else VERMILLION,
        hatch="" if good else "////",
        edgecolor="white",
        width=0.7,
    )
    axes.plot([x - 1.35, x + 0.35], [level, level], color="0.4", linewidth=0.8)


# -- distributions ----------------------------------------------------------------------------------------------------


def _styles(cells: Sequence[Document]) -> list[tuple[str, str, float]]:
    """(colour, dashes, width): the ends stand out; a part has one colour, whether it is alone (solid) or missing (dashed)."""
    parts = list(cells[0]["state"])
    usual = len({tuple(cell["state"].items()) for cell in cells}) == len(cells) > 1
    cycle = itertools.cycle(itertools.product(_DASHES, _COLOURS))
    pairs = itertools.cycle(itertools.product(_DASHES[2:], _COLOURS))
    found = []
    for cell in cells:
        on = [name for name in parts if cell["state"][name]]
        if usual and not on:
            found.append((GREY, "-", 2.6))
        elif usual and len(on) == len(parts):
            found.append((BLACK, "-", 2.2))
        elif usual and len(on) == 1:
            found.append((_COLOURS[parts.index(on[0]) % len(_COLOURS)], "-", 1.3))
        elif usual and len(on) == len(parts) - 1:
            missing = next(name for name in parts if name not in on)
            found.append((_COLOURS[parts.index(missing) % len(_COLOURS)], "--", 1.3))
        else:
            # In a factorial, solid and dashed lines are taken.
            dashes, colour = next(pairs if usual else cycle)
            found.append((colour, dashes, 1.3))
    return found


def latency_cdf(cells: Sequence[Document], runs: Mapping[str, Sequence[Run]], *, label: str) -> Figure:
    """Fraction of requests within x seconds, all repeats; a curve that ends below 1: some never got there."""
    wanted = [f for f in LATENCY_FIGURES if f.p == 50]
    figure = new_figure(11.0, 6.6)
    panels = figure.subplots(2, 2, sharey=True)
    handles: dict[str, Any] = {}
    for axes, latency in zip(panels.flat, wanted, strict=True):
        tidy(axes)
        finite: list[float] = []
        for cell, (colour, dashes, width) in zip(cells, _styles(cells), strict=True):
            pooled = np.concatenate([latency.values(run) for run in runs[cell["name"]]])
            x, y = cdf_points(np.sort(pooled[~np.isnan(pooled)]))
            finite += [v for v in x if v > 0]
            (handles[cell["name"]],) = axes.plot(
                x, y, color=colour, linestyle=dashes, linewidth=width, drawstyle="steps-post", zorder=2 + (width > 2)
            )
        seconds_axis(axes, finite)
        name = latency.label.removesuffix(" p50")
        axes.set(title=f"{name} of {latency.group} requests", ylim=(0, 1.02))
        if not finite:
            axes.set_xticks([])
            axes.text(0.5, 0.5, "no finite value", transform=axes.transAxes, ha="center", va="center", color="0.4")
    for axes in panels[:, 0]:
        axes.set_ylabel("fraction of requests")
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=min(5, len(handles)),
        frameon=False,
        fontsize=8,
    )
    figure.suptitle(label, fontsize=9)
    return figure


# -- over time --------------------------------------------------------------------------------------------------------


def _shown_over_time(cells: Sequence[Document]) -> list[Document]:
    """All of a few; else the reference and the one that has everything on."""
    if len(cells) <= _MOST_TIMELINES:
        return list(cells)
    reference = next((cell for cell in cells if cell["reference"] is None), cells[0])
    other = next((cell for cell in cells if cell["name"].startswith(ALL_ON)), cells[-1])
    return [reference, other] if other is not reference else [reference]


def timeline(cells: Sequence[Document], runs: Mapping[str, Sequence[Run]], *, label: str) -> Figure:
    """A column per cell, first repeat: output tokens/s, and what each device was part of."""
    first = [runs[cell["name"]][0] for cell in cells]
    ends = [run_end(run.records, run.samples, run.events) for run in first]
    devices = max(len({device for s in run.samples for device in s.devices}) for run in first)
    heights = [2.2, min(6.0, 0.5 + 0.32 * devices)]
    columns = min(2, len(cells))
    bands = -(-len(cells) // columns)
    figure = new_figure(11.0, 1.2 + bands * (sum(heights) + 0.5))
    panels = figure.subplots(2 * bands, columns, squeeze=False, sharex=True, height_ratios=heights * bands)
    most = 1.0
    handles: dict[str, Any] = {}
    for index, (cell, run, end) in enumerate(zip(cells, first, ends, strict=True)):
        top = panels[2 * (index // columns)][index % columns]
        bottom = panels[2 * (index // columns) + 1][index % columns]
        edges, rates, window = token_rate(run.records, end)
        top.stairs(rates, edges, color=BLUE, linewidth=1.4)
        most = max(most, float(rates.max(initial=0.0)))
        top.set_title(cell["name"], fontsize=9)
        if index % columns == 0:
            top.set_ylabel(f"output tokens/s\n({window:g} s windows)", fontsize=8)
        tidy(top)
        handles |= draw_devices(bottom, run.samples, run.events, end_s=max(ends))
        bottom.set_xlabel("seconds since the run's start", fontsize=8)
        for axes in (top, bottom):
            axes.tick_params(labelsize=8)
    for index in range(2 * bands * columns):
        axes = panels[index // columns][index % columns]
        if (index // columns) // 2 * columns + index % columns >= len(cells):
            axes.set_visible(False)
        elif (index // columns) % 2 == 0:
            axes.set_ylim(0, 1.05 * most)
    order = sorted(handles, key=lambda name: (not name.startswith("TP"), name))
    figure.legend(
        [handles[name] for name in order], order, loc="outside lower center", ncols=min(8, len(order)), frameon=False,
        fontsize=8,
    )  # fmt: skip
    figure.suptitle(label, fontsize=9)
    return figure


def _figures(value: float) -> str:
    """Three digits, or all of a whole number that has more."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"

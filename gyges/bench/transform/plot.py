"""The plots of `gyges bench transform`, as PNG (150 dpi) and SVG.

parts-MODEL   where the time of a merge and of a split goes, stacked, for each layout with padding on and off
fill          time of the KV stage over KV fill, a line for each layout
pause         longest token gap of running requests, with the overlap and without
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gyges.bench.transform.micro import PARTS, REST, describe
from gyges.bench.transform.run import MICRO, PAUSE
from gyges.metrics.plots import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    new_figure,
    save_figures,
    tidy,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Bottom to top: what moves, what it takes to move it, who waits.
_STACK: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("copy", ("copy",), BLUE),
    ("compaction", ("compaction",), VERMILLION),
    ("map, unmap", ("map", "unmap"), SKY),
    ("weights", ("weights",), GREEN),
    ("communicator", ("communicator",), PURPLE),
    ("bookkeeping", (REST,), ORANGE),
    ("waiting for others", ("wait",), "0.8"),
)
_COLOURS = {"token-first": VERMILLION, "page-friendly": ORANGE, "header-centric": SKY, "shard-pages": BLUE}
_TICKS = "FFN shards padded to pages, or packed"
_STOP, _OVERLAP, _MERGED = "in one stop", "with the overlap", "median gap of the merged instance"
_MARKERS = {"token-first": "s", "page-friendly": "D", "header-centric": "^", "shard-pages": "o"}


def write_plots(folder: Path, document: Mapping[str, Any]) -> list[Path]:
    """Every plot that there is data for, written atomically; returns the files. Without any, makes no folder."""
    figures: dict[str, Figure] = {}
    models = (document[MICRO] or {"models": []})["models"]
    for model in models:
        suffix = "" if len({m["degree"] for m in models}) == 1 else f"-tp{model['degree']}"
        figures[f"parts-{model['model']}{suffix}"] = parts(model)
    if models and len({c["fill"] for c in models[0]["cells"]}) > 1:
        figures["fill"] = over_fill(models)
    for result in (document[PAUSE] or {"models": []})["models"]:
        if result["cells"]:
            figures[f"pause-{result['model']}"] = pauses(result)
    return save_figures(folder, figures)


def parts(model: Mapping[str, Any]) -> Figure:
    """Bars are as high as the mean worker's time; medians of the repeats, at the highest fill."""
    figure = new_figure(10.5, 4.6)
    fill = max(c["fill"] for c in model["cells"])
    cells = [c for c in model["cells"] if c["fill"] == fill]
    layouts = list(dict.fromkeys(c["layout"] for c in cells))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, kind in zip(panels, ("merge", "split"), strict=True):
        chosen = [c for c in cells if c["kind"] == kind]
        _stacks(axes, chosen, layouts)
        n = model["degree"]
        axes.set_title(f"merge, {n} x TP1 -> TP{n}" if kind == "merge" else f"split, TP{n} -> {n} x TP1", fontsize=10)
    panels[0].set_ylabel("milliseconds (lower is better)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    figure.suptitle(f"{describe(model)}, KV cache {fill:.0%} full, in one stop\n{_TICKS}", fontsize=10)
    return figure


def _stacks(axes: Axes, cells: Sequence[Mapping[str, Any]], layouts: Sequence[str]) -> None:
    labelled = set()
    ticks = []
    for cell in cells:
        x = layouts.index(cell["layout"]) + (-0.21 if cell["padding"] else 0.21)
        bottom = 0.0
        for label, names, colour in _STACK:
            height = 1e3 * sum(cell["parts"][name]["median"] for name in names)
            axes.bar(x, height, width=0.38, bottom=bottom, color=colour, label=None if label in labelled else label)
            labelled.add(label)
            bottom += height
        axes.annotate(_short(bottom), (x, bottom), (0, 2), textcoords="offset points", ha="center", fontsize=8)
        ticks.append((x, "padded" if cell["padding"] else "packed"))
    axes.set_xticks([x for x, _ in ticks], [label for _, label in ticks], fontsize=7.5)
    for index, layout in enumerate(layouts):
        axes.annotate(
            layout, (index, 0), (0, -22), xycoords=("data", "axes fraction"), textcoords="offset points", ha="center",
            va="top", fontsize=9,
        )  # fmt: skip
    axes.set_xlim(-0.5, len(layouts) - 0.5)
    axes.margins(y=0.08)
    tidy(axes)
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="x", visible=False)


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"


def over_fill(models: Sequence[Mapping[str, Any]]) -> Figure:
    """A panel per model: merges, padding on; whiskers reach from the fastest to the slowest repeat."""
    columns = min(3, len(models))
    rows = -(-len(models) // columns)
    figure = new_figure(max(5.4, 3.6 * columns), 0.7 + 2.9 * rows)
    panels = figure.subplots(rows, columns, squeeze=False)
    handles: dict[str, Any] = {}
    for axes, model in zip(panels.flat, models, strict=False):
        cells = [c for c in model["cells"] if c["kind"] == "merge" and c["padding"]]
        for layout in dict.fromkeys(c["layout"] for c in cells):
            line = sorted((c for c in cells if c["layout"] == layout), key=lambda c: c["fill"])
            handles[layout] = _line(axes, layout, line)
        rate = model["memcpy"]["all_bytes_per_s"]["median"]
        least = sorted(
            (c["fill"], 1e3 * c["kv_moved_bytes"] / rate) for c in cells if c["layout"] == cells[0]["layout"]
        )
        (handles["memcpy of what moves"],) = axes.plot(*zip(*least, strict=True), color=BLACK, ls="--", lw=1)
        axes.set_title(f"{model['model']}, {model['degree']} x TP1 -> TP{model['degree']}", fontsize=10)
        axes.set_xlim(0, 1)
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        tidy(axes)
    for axes in list(panels.flat)[len(models) :]:
        axes.set_axis_off()
    for axes in panels[:, 0]:
        axes.set_ylabel("KV stage, ms")
    for index, axes in enumerate(panels.flat):
        if index < len(models) <= index + columns:  # the lowest of its column
            axes.set_xlabel("KV cache in use")
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=min(5, len(handles)), frameon=False
    )
    figure.suptitle("Moving the KV cache in a merge, in one stop, FFN shards padded", fontsize=10)
    return figure


def _line(axes: Axes, layout: str, cells: Sequence[Mapping[str, Any]]) -> Any:
    x = [c["fill"] for c in cells]
    y = [1e3 * c["kv_s"]["median"] for c in cells]
    low = [1e3 * (c["kv_s"]["median"] - c["kv_s"]["min"]) for c in cells]
    high = [1e3 * (c["kv_s"]["max"] - c["kv_s"]["median"]) for c in cells]
    style: dict[str, Any] = {
        "color": _COLOURS.get(layout, GREY),
        "marker": _MARKERS.get(layout, "x"),
        "ms": 4.5,
        "lw": 1.4,
    }
    return axes.errorbar(x, y, [low, high], capsize=3, elinewidth=1, **style)


def pauses(result: Mapping[str, Any]) -> Figure:
    """Bars: median over repeats of the longest gap, at the highest fill; whiskers to the extremes; ticks: the merged instance's
    median gap, which no transformation can undercut."""
    figure = new_figure(10.5, 4.6)
    fill = max(c["asked_fill"] for c in result["cells"])
    cells = [c for c in result["cells"] if c["asked_fill"] == fill]
    layouts = list(dict.fromkeys(c["layout"] for c in cells))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, kind in zip(panels, ("merge", "split"), strict=True):
        _gap_bars(axes, [c for c in cells if c["kind"] == kind], layouts)
        n = result["degree"]
        axes.set_title(f"merge, {n} x TP1 -> TP{n}" if kind == "merge" else f"split, TP{n} -> {n} x TP1", fontsize=10)
    # From one step to a second and more, where requests had to be computed anew: only a logarithmic axis shows both.
    panels[0].set_yscale("log")
    panels[0].yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panels[0].set_ylim(bottom=min(1e3 * c["merged_gap_s"]["median"] for c in cells) / 2)
    panels[0].set_ylabel("longest token gap, ms, log (lower is better)")
    known = dict(zip(*reversed(panels[0].get_legend_handles_labels()), strict=True))
    labels = [label for label in (_STOP, _OVERLAP, _MERGED) if label in known]
    figure.legend(
        [known[label] for label in labels], labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9
    )
    title = f"{result['model']}, running requests, KV cache {fill:.0%} full; {_TICKS}"
    if any(c["stopped"] for c in cells):
        title += "\n*: with the overlap, until nothing could move beside running requests; the rest in one stop"
    figure.suptitle(title, fontsize=10)
    return figure


def _gap_bars(axes: Axes, cells: Sequence[Mapping[str, Any]], layouts: Sequence[str]) -> None:
    labelled = set()
    ticks = {}
    for cell in cells:
        middle = layouts.index(cell["layout"]) + (-0.22 if cell["padding"] else 0.22)
        x = middle + (0.1 if cell["overlap"] else -0.1)
        gap = cell["max_gap_s"]
        label = _OVERLAP if cell["overlap"] else _STOP
        colour = BLUE if cell["overlap"] else "0.65"
        height = 1e3 * gap["median"]
        axes.bar(x, height, width=0.19, color=colour, label=None if label in labelled else label)
        if gap["min"] < gap["max"]:
            whiskers = [[1e3 * (gap["median"] - gap["min"])], [1e3 * (gap["max"] - gap["median"])]]
            axes.errorbar(x, height, whiskers, color=BLACK, capsize=2, linewidth=0.9)
        text = _short(height) + "*" * bool(cell["stopped"])
        axes.annotate(text, (x, 1e3 * gap["max"]), (0, 2), textcoords="offset points", ha="center", fontsize=7.5)
        merged = 1e3 * cell["merged_gap_s"]["median"]
        axes.plot(
            [x - 0.09, x + 0.09],
            [merged, merged],
            color=VERMILLION,
            lw=2,
            label=None if _MERGED in labelled else _MERGED,
        )
        labelled |= {label, _MERGED}
        ticks[middle] = "padded" if cell["padding"] else "packed"
    axes.set_xticks(list(ticks), list(ticks.values()), fontsize=8)
    for index, layout in enumerate(layouts):
        axes.annotate(
            layout, (index, 0), (0, -22), xycoords=("data", "axes fraction"), textcoords="offset points", ha="center",
            va="top", fontsize=9,
        )  # fmt: skip
    axes.set_xlim(-0.5, len(layouts) - 0.5)
    axes.margins(y=0.1)
    tidy(axes)
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="x", visible=False)


assert {name for _, names, _ in _STACK for name in names} == {*PARTS, REST}, "every part has its place in a bar"

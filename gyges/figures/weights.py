"""Figure 3: transforming FFN weights, padded to pages or packed, with the overlap or in one stop; what padding costs.

Memory, by arithmetic (gyges.parallel.weight_layout): here one piece for each shard and layer is padded (gate, up, down together);
the paper pads every matrix. A mixture of experts keeps a shard of all its experts in one piece; matrix by matrix, each expert's.
Time, simulated: the switch of the system ``gyges`` with an empty KV cache. GEMM time: measured by ``gyges bench transform``.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gyges.bench.transform.padding import MAX_DEGREES, candidate_degrees, matrix_padding
from gyges.bench.transform.shapes import CUDA_PAGE
from gyges.figures import paper
from gyges.figures.base import FIGURES, Context, Data, FigureKind, Line
from gyges.figures.drawing import label_bars, model_names, not_measured, plain
from gyges.figures.shared import DEGREE, MERGE, SPLIT, gyges_switch, lost_s
from gyges.metrics.plots import BLUE, GREY, ORANGE, SKY, VERMILLION, new_figure, tidy
from gyges.parallel.sharding import ParallelLayout, ShardCount
from gyges.parallel.weight_layout import FFNLayout
from gyges.sim.models import SimModel, sim_model

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_EMPTY = {
    "part": "", "model": "", "kind": "", "padding": None, "overlap": None, "max_degree": None, "rows": None,
    "stop_s": None, "lost_s": None, "extra_bytes": None, "ffn_bytes": None, "padding_bytes": None, "padding_of_weights": None,
    "by_matrix_bytes": None, "by_matrix_of_weights": None, "slowdown": None, "slowdown_low": None, "slowdown_high": None,
}  # fmt: skip


def padding_memory(model: SimModel, max_degree: int, page_bytes: int = CUDA_PAGE) -> dict[str, Any]:
    """Bytes that padding adds on a TP1 instance, for every degree up to ``max_degree``; shares of all its weights."""
    geometry = model.geometry
    shards = ShardCount.for_degrees(geometry, candidate_degrees(max_degree))
    layout = FFNLayout.build(geometry, ParallelLayout(1, 0, shards), padding=True, page_bytes=page_bytes)
    expert = replace(geometry, intermediate_size=geometry.intermediate_size // model.experts)
    by_matrix = model.experts * matrix_padding(expert, shards.ffn, page_bytes)
    weights = model.weight_bytes(1)
    return {
        "max_degree": max_degree,
        "ffn_bytes": layout.used_bytes,
        "padding_bytes": layout.padding_bytes,
        "padding_of_weights": layout.padding_bytes / weights,
        "by_matrix_bytes": by_matrix,
        "by_matrix_of_weights": by_matrix / weights,
    }


def make(context: Context) -> Data:
    rows: list[dict[str, Any]] = []
    for name, (hub, hardware) in paper.MODELS.items():
        model = sim_model(hub)
        for kind, degrees in (("merge", MERGE), ("split", SPLIT)):
            for padding in (False, True):
                for overlap in (False, True):
                    switch = gyges_switch(model, hardware, *degrees, fill=0.0, padding=padding, overlap=overlap)
                    fixed = sum(switch.parts[part] for part in ("communicator", "graphs", "sync"))
                    rows.append(
                        _EMPTY
                        | {
                            "part": "time",
                            "model": name,
                            "kind": kind,
                            "padding": padding,
                            "overlap": overlap,
                            "stop_s": switch.pause_s - fixed,
                            "lost_s": lost_s(switch) - fixed,
                            "extra_bytes": switch.extra_bytes,
                        }
                    )
        for degree in MAX_DEGREES:
            if model.geometry.tp_degree_error(degree) is None:
                rows.append(_EMPTY | {"part": "memory", "model": name, **padding_memory(model, degree)})
    measured = _measured(context.measured)
    rows += [_EMPTY | {"part": "gemm", **cell} for cell in measured]
    return Data(rows, _lines(rows), _READINGS)


def _measured(folder: Path | None) -> list[dict[str, Any]]:
    """FFN time, padded over packed, minus 1, with the quartiles of its pairs; nothing where it was not measured."""
    if folder is None:
        return []
    padding = json.loads((folder / "transform.json").read_text())["padding"] or {"gemm": []}
    return [
        {
            "model": cell["model"],
            "rows": cell["rows"],
            "slowdown": cell["slowdown"]["median"],
            "slowdown_low": cell["slowdown"]["min"],
            "slowdown_high": cell["slowdown"]["max"],
        }
        for cell in padding["gemm"]
    ]


def _lines(rows: list[dict[str, Any]]) -> list[Line]:
    def lost(model: str, kind: str, *, padding: bool, overlap: bool) -> float:
        wanted = {"part": "time", "model": model, "kind": kind, "padding": padding, "overlap": overlap}
        (row,) = (row for row in rows if all(row[k] == v for k, v in wanted.items()))
        return float(row["lost_s"])

    def most(kind: str, **chosen: bool) -> float:
        """The largest cut of what serving loses over all models, against packed weights in one stop; negative."""
        return min(lost(m, kind, **chosen) / lost(m, kind, padding=False, overlap=False) - 1 for m in paper.MODELS)

    memory = [row for row in rows if row["part"] == "memory"]
    lines = [
        Line(
            "FFN weights, packed, one stop (Qwen2.5-32B, merge)", paper.FFN_NAIVE_S,
            lost("Qwen2.5-32B", "merge", padding=False, overlap=False), "s", "simulated",
        ),
        Line("padding alone, merge, largest cut of five models", paper.FFN_PADDING, most("merge", padding=True, overlap=False),
             "share", "simulated", "nothing is copied, pages are unmapped"),
        Line("padding alone, split, largest cut of five models", paper.FFN_PADDING, most("split", padding=True, overlap=False),
             "share", "simulated", "a split gathers the missing shards either way"),
        Line("padding and overlap, merge, largest cut", paper.FFN_OVERLAP, most("merge", padding=True, overlap=True), "share",
             "simulated", "unmapping is not overlapped: KV cache needs the room"),
        Line("padding and overlap, split, largest cut", paper.FFN_OVERLAP, most("split", padding=True, overlap=True), "share",
             "simulated"),
        Line("weight memory of padding, most of all models, one piece a shard", paper.PADDING_MEMORY,
             max(row["padding_of_weights"] for row in memory), "share", "arithmetic"),
        Line("the same, each matrix by itself, dense models", paper.PADDING_MEMORY,
             max(row["by_matrix_of_weights"] for row in memory if row["model"] != "Qwen3-30B-A3B"), "share", "arithmetic"),
        Line("the same, each matrix of each expert (Qwen3-30B-A3B)", paper.PADDING_MEMORY,
             max(row["by_matrix_of_weights"] for row in memory if row["model"] == "Qwen3-30B-A3B"), "share", "arithmetic",
             "a shard of an expert's matrix is smaller than a page"),
    ]  # fmt: skip
    gemm = [row for row in rows if row["part"] == "gemm"]
    slowest = max((row["slowdown"] for row in gemm), default=None)
    about = "largest median over models and rows; no GEMM here sees padding, what is measured is noise"
    source = "measured on a CPU" if gemm else "not measured"
    return [*lines, Line("FFN GEMM time of padding", (0.0, paper.PADDING_GEMM), slowest, "share", source, about)]


_READINGS = (
    paper.DOUBTFUL["ffn time"],
    "A padded merge copies nothing: what is left is unmapping, page by page and shard by shard. It gives all shards up in its "
    "pause, which makes room for KV cache, so the overlap takes nothing away from it; packed shards are copied beside serving.",
    "A mixture of experts must keep a shard of all experts in one piece: padded one by one its weights would more than double.",
)


def draw(data: Data) -> Figure:
    figure = new_figure(10.5, 6.8)
    figure.get_layout_engine().set(hspace=0.08)
    grid = figure.add_gridspec(2, 2)
    for place, kind in enumerate(("merge", "split")):
        axes = figure.add_subplot(grid[0, place])
        _times(axes, data, kind)
    _memory(figure.add_subplot(grid[1, 0]), data)
    _gemm(figure.add_subplot(grid[1, 1]), data)
    return figure


_WAYS = (
    (False, False, "packed, one stop", GREY),
    (False, True, "packed, overlap", SKY),
    (True, False, "padded, one stop", ORANGE),
    (True, True, "padded, overlap", BLUE),
)


def _times(axes: Axes, data: Data, kind: str) -> None:
    models = list(paper.MODELS)
    for shift, (padding, overlap, label, colour) in enumerate(_WAYS):
        rows = data.where(part="time", kind=kind, padding=padding, overlap=overlap)
        x = [models.index(row["model"]) + 0.2 * (shift - 1.5) for row in rows]
        axes.bar(x, [1e3 * row["lost_s"] for row in rows], width=0.19, color=colour, label=label)
    axes.set_ylabel("serving time lost, ms")
    direction = f"{DEGREE} x TP1 -> TP{DEGREE}" if kind == "merge" else f"TP{DEGREE} -> {DEGREE} x TP1"
    axes.set_title(f"{kind}, {direction}, FFN weights alone, simulated", fontsize=9)
    axes.legend(frameon=False, fontsize=7.5, loc="upper left")
    tidy(axes)
    model_names(axes, models)


def _memory(axes: Axes, data: Data) -> None:
    models = list(paper.MODELS)
    columns = (
        ("padding_of_weights", "one piece a shard", BLUE),
        ("by_matrix_of_weights", "each matrix by itself", ORANGE),
    )
    for shift, (column, label, colour) in enumerate(columns):
        for row in data.where(part="memory", max_degree=max(MAX_DEGREES)):
            at, value = models.index(row["model"]) + 0.4 * (shift - 0.5), 100 * row[column]
            bars = axes.bar(at, value, width=0.38, color=colour, label=label if row["model"] == models[0] else None)
            label_bars(axes, bars, [value])
    low, high = (100 * share for share in paper.PADDING_MEMORY)
    axes.axhspan(low, high, color=VERMILLION, alpha=0.08, label=f"the paper: {low:g} to {high:g} %")
    axes.set_yscale("symlog", linthresh=1.0)
    axes.set_ylim(0, 1000)
    axes.yaxis.set_major_formatter(lambda value, _: plain(value))
    axes.set_ylabel("padding, % of all weights (log above 1)")
    axes.set_title(f"memory of padding for TP1 to TP{max(MAX_DEGREES)}, 2 MiB pages", fontsize=9)
    axes.legend(frameon=False, fontsize=7.5, loc="upper left")
    tidy(axes)
    model_names(axes, models)


def _gemm(axes: Axes, data: Data) -> None:
    rows = data.where(part="gemm")
    axes.set_title("FFN time, padded against packed, measured on a CPU", fontsize=9)
    tidy(axes)
    if not rows:
        not_measured(axes)
        return
    names = list(dict.fromkeys(row["model"] for row in rows))
    counts = sorted({row["rows"] for row in rows})
    for shift, (name, colour, marker) in enumerate(zip(names, (BLUE, ORANGE), ("o", "s"), strict=False)):
        mine = [row for row in rows if row["model"] == name]
        x = [counts.index(row["rows"]) + 0.16 * (shift - 0.5) for row in mine]
        y = [100 * row["slowdown"] for row in mine]
        span = [[100 * abs(row["slowdown"] - row[end]) for row in mine] for end in ("slowdown_low", "slowdown_high")]
        axes.errorbar(x, y, span, fmt=marker, color=colour, capsize=3, ms=5, lw=1.2, label=name)
    axes.axhline(0, color="0.3", lw=0.8)
    axes.set_xticks(range(len(counts)), [str(count) for count in counts])
    axes.set_xlabel("rows of the batch")
    axes.set_ylabel("change, %: median of pairs, quartiles")
    axes.legend(frameon=False, fontsize=8)


FIGURES.add(
    "weight-transformation",
    FigureKind("Transforming FFN weights: padding and overlap", "transformation", "section 3, weights", make, draw),
)

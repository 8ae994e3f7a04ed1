"""Figure 5: the scheduler. 8 devices, 8 x TP1 at the start; 1K-token requests at 60/min, 50K-token requests at 1/min.

Two rooms for KV cache: the paper's (a 50K request fits nothing below TP4), and ours (prefill in chunks: it fits TP1, and merging
is a question of speed). Loads: the paper's and multiples, since at its own nobody is saturated and all finish what is offered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gyges.figures import paper
from gyges.figures.base import FIGURES, Context, Data, FigureKind, Line
from gyges.figures.drawing import log_scale
from gyges.figures.replays import Contender, gain, replay
from gyges.metrics.plots import BLACK, BLUE, ORANGE, PURPLE, VERMILLION, new_figure, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CONTENDERS = (
    Contender("gyges", "gyges", "gyges"),
    Contender("gyges, the paper's rules", "gyges", "gyges:paper"),
    Contender("RR", "gyges", "rr"),
    Contender("LLF", "gyges", "llf"),
    Contender("static, TP4 + 4 x TP1", "gyges", "static:tp4+tp1+tp1+tp1+tp1"),
)
LOADS, QUICK_LOADS = (1, 2, 3, 4, 6, 8), (1, 4)
DEAR, QUICK_DEAR, DEAR_LOAD = (
    (30.0, 100.0),
    (30.0,),
    4,
)  # on the seconds of switches, at this load, in the paper's room
ROOMS = ("paper", "own")


def make(context: Context) -> Data:
    duration = 240 if context.quick else 600
    rows: list[dict[str, Any]] = []
    for load in QUICK_LOADS if context.quick else LOADS:
        spec = f"paper-mix?short_per_min={60 * load}&long_per_min={load}&duration={duration}"
        workload = context.workload(spec)
        for room in ROOMS:
            dear = (QUICK_DEAR if context.quick else DEAR) if (load, room) == (DEAR_LOAD, "paper") else ()
            for factor in (1.0, *dear):
                for contender in CONTENDERS if factor == 1 else CONTENDERS[:4]:
                    row = replay(contender, workload, room=room, switch_factor=factor)
                    named = {"room": room, "scheduler": contender.label, "load": load, "switch_factor": factor}
                    rows.append(named | row)
    return Data(rows, _lines(rows), [*_READINGS, _why(rows, duration)])


def _lines(rows: list[dict[str, Any]]) -> list[Line]:
    most = max(row["load"] for row in rows)
    dear = [(DEAR_LOAD, row["switch_factor"]) for row in rows if row["switch_factor"] > 1]
    lines = []
    for load, factor in dict.fromkeys([(1, 1.0), (most, 1.0), *dear]):
        for other in ("RR", "LLF"):
            cell = {"room": "paper", "load": load, "switch_factor": factor}
            share = gain(rows, "output_tokens_per_s", cell | {"scheduler": "gyges"}, cell | {"scheduler": other})
            price = "" if factor == 1 else f", switches {factor:g} times as dear"
            lines.append(
                Line(
                    f"throughput against {other}, {_times(load)}{price}",
                    paper.SCHEDULER_GAIN,
                    share,
                    "share",
                    "simulated",
                )
            )
    for scheduler in ("gyges", "RR", "LLF"):
        row = next(r for r in rows if (r["room"], r["load"], r["scheduler"]) == ("paper", 1, scheduler))
        lines.append(Line(f"merges and splits, {scheduler}", None, row["merges"] + row["splits"], "count", "simulated"))
        lines.append(Line(f"TTFT p99, 1K requests, {scheduler}", None, row["short_ttft_p99_s"], "s", "simulated"))
        lines.append(Line(f"TTFT p50, 50K requests, {scheduler}", None, row["long_ttft_p50_s"], "s", "simulated"))
    return lines


def _why(rows: list[dict[str, Any]], duration: float) -> str:
    ours, theirs = (
        next(r for r in rows if (r["room"], r["load"], r["scheduler"]) == ("paper", 1, who)) for who in ("gyges", "RR")
    )
    counts = [row["merges"] + row["splits"] for row in (ours, theirs)]
    return (
        f"At the paper's load RR merges and splits {counts[1]} times, gyges {counts[0]} times, but all its pauses together are "
        f"{theirs['pause_total_s']:.1f} s of {duration} s: as they are priced here, their number cannot cost a quarter "
        "of the throughput. Dearer ones do not either: under load RR and LLF find few instances to merge, and make few changes."
    )


def _times(load: int) -> str:
    return "the paper's load" if load == 1 else f"{load} times its load"


_READINGS = (
    "The paper's room for KV cache (figure tp-tradeoff) is taken for the comparison; ours is beside it.",
    "Requests have 200 output tokens, which the paper does not say.",
    "With open arrivals below saturation every scheduler that finishes has the throughput that is offered; differences show in "
    "latency, and in throughput once the load is a multiple of the paper's.",
)

STYLES = {
    "gyges": (BLUE, "-", "o"),
    "gyges, the paper's rules": (BLACK, "--", "D"),
    "RR": (ORANGE, "-", "s"),
    "LLF": (VERMILLION, "-", "^"),
    "static, TP4 + 4 x TP1": (PURPLE, ":", "v"),
}
_COLUMNS = (
    ("output_tokens_per_s", "output tokens/s"),
    ("changes", "merges and splits"),
    ("short_ttft_p99_s", "TTFT p99 of 1K requests, s (log)"),
    ("long_ttft_p50_s", "TTFT p50 of 50K requests, s (log)"),
)


def draw(data: Data) -> Figure:
    figure = new_figure(13.0, 6.4)
    figure.get_layout_engine().set(wspace=0.05, hspace=0.06)
    panels = figure.subplots(2, 4, sharex=True)
    for band, room in zip(panels, ROOMS, strict=True):
        for axes, (column, label) in zip(band, _COLUMNS, strict=True):
            _curves(axes, data, room, column)
            axes.set_ylabel(label, fontsize=9)
            if room == ROOMS[-1]:
                axes.set_xlabel("load, times the paper's")
        whose = "the paper's room for KV cache" if room == "paper" else "our room: prefill in chunks"
        band[0].set_title(whose, fontsize=10, loc="left")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    figure.suptitle("Qwen2.5-32B on 8 H20, 1K requests at 60/min + 50K requests at 1/min, simulated", fontsize=10)
    return figure


def _curves(axes: Axes, data: Data, room: str, column: str) -> None:
    for contender in CONTENDERS:
        colour, dashes, marker = STYLES[contender.label]
        rows = data.where(room=room, scheduler=contender.label, switch_factor=1.0)
        values = [row["merges"] + row["splits"] if column == "changes" else row[column] for row in rows]
        shown = [(row["load"], value) for row, value in zip(rows, values, strict=True) if value is not None]
        axes.plot(
            [x for x, _ in shown], [y for _, y in shown], color=colour, ls=dashes, marker=marker, ms=4,
            lw=3 if contender.label == "gyges" else 1.3, label=contender.label,
        )  # fmt: skip
    if column.endswith("_s") and "ttft" in column:
        log_scale(axes, [row[column] for row in data.rows])
    else:
        axes.set_ylim(0, max(1.0, axes.get_ylim()[1]))
    tidy(axes)


FIGURES.add(
    "schedulers",
    FigureKind(
        "The scheduler against round robin and least load first", "scheduling", "section 5, scheduler", make, draw
    ),
)

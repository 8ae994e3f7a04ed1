"""Beyond the paper: every neighbour on chat traffic (Azure), long contexts (Mooncake), and a mix of chats and long prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gyges.figures import end_to_end
from gyges.figures.base import BEYOND, FIGURES, Context, Data, FigureKind, Line, Workload
from gyges.figures.buckets import CHAT, mixed
from gyges.figures.drawing import plain
from gyges.figures.replays import Contender, replay
from gyges.metrics.plots import BLUE, GREY, ORANGE, new_figure, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CONTENDERS = (
    Contender("gyges", "gyges"),
    Contender("KunServe", "kunserve"),
    Contender("LoongServe", "loongserve"),
    Contender("Seesaw", "seesaw"),
    Contender("Shift Parallelism", "shift"),
    Contender("Flying Serving", "flying"),
    Contender("PipeLive", "pipelive"),
    Contender("restart", "restart"),
    Contender("static, 8 x TP1", "fixed", "static:tp1"),
    Contender("static, TP4 + 4 x TP1", "fixed", "static:tp4+tp1+tp1+tp1+tp1"),
    Contender("static, 2 x TP4", "fixed", "static:tp4+tp4"),
    Contender("static, TP8", "fixed", "static:tp8"),
)
CHAT_RATE, LONG_RATE = 6.0, 0.8  # requests/s


def workloads(context: Context) -> dict[str, Workload]:
    """By a short name."""
    chats, longs = (200, 60) if context.quick else (3000, 600)
    return {
        "chat": context.workload(CHAT, rate=CHAT_RATE, limit=chats),
        "long contexts": context.workload(end_to_end.TRACE, rate=LONG_RATE, limit=longs),
        "mixed": mixed(context),
    }


def make(context: Context) -> Data:
    rows: list[dict[str, Any]] = []
    for kind, workload in workloads(context).items():
        for contender in CONTENDERS:
            row = replay(contender, workload)
            rows.append({"traffic": kind, "trace": workload.name, "system": contender.label, **row})
    return Data(rows, _lines(rows), _READINGS)


def _lines(rows: list[dict[str, Any]]) -> list[Line]:
    lines = []
    for kind in dict.fromkeys(row["traffic"] for row in rows):
        for column, name in (("goodput", "TTFT within 10 s"), ("ttft_p99_s", "TTFT p99"), ("tpot_p50_s", "TPOT p50")):
            mine = {row["system"]: row[column] for row in rows if row["traffic"] == kind}
            order = sorted(
                (name for name in mine if mine[name] is not None),
                key=lambda who: mine[who],
                reverse=column == "goodput",
            )
            unit = "share" if column == "goodput" else "s"
            lines.append(Line(f"{kind}: {name}, gyges", None, mine["gyges"], unit, "simulated"))
            lines.append(Line(f"{kind}: {name}, the best, {order[0]}", None, mine[order[0]], unit, "simulated"))
    return lines


_READINGS = (
    "Our room for KV cache. Each neighbour is driven by the policy that it is meant for (docs/neighbours.md).",
)

_PANELS = (
    ("goodput", "TTFT within 10 s, %", 100.0, GREY),
    ("ttft_p99_s", "TTFT p99, s", 1.0, ORANGE),
    ("tpot_p50_s", "TPOT p50, ms", 1e3, BLUE),
)


def draw(data: Data) -> Figure:
    kinds = list(dict.fromkeys(row["traffic"] for row in data.rows))
    figure = new_figure(11.5, 1.0 + 2.9 * len(kinds))
    figure.get_layout_engine().set(wspace=0.04, hspace=0.06)
    panels = figure.subplots(len(kinds), len(_PANELS), sharey=True)
    for band, kind in zip(panels, kinds, strict=True):
        rows = data.where(traffic=kind)
        for axes, (column, label, scale, colour) in zip(band, _PANELS, strict=True):
            _bars(axes, rows, column, scale, colour)
            axes.set_xlabel(label, fontsize=9)
        more = ", and long prompts" if kind == "mixed" else ""
        band[0].set_title(f"{kind}: {rows[0]['trace']}{more}", fontsize=9, loc="left")
    figure.suptitle("Qwen2.5-32B on 8 H20, simulated", fontsize=10)
    return figure


def _bars(axes: Axes, rows: list[Any], column: str, scale: float, colour: str) -> None:
    for place, row in enumerate(rows):
        value = row[column]
        if value is None:
            axes.annotate(
                "never, for some",
                (0.02, place),
                xycoords=("axes fraction", "data"),
                va="center",
                fontsize=7,
                color="0.35",
            )
            continue
        axes.barh(place, scale * value, color=colour, height=0.7)
        axes.annotate(
            plain(scale * value), (scale * value, place), (3, 0), textcoords="offset points", va="center", fontsize=7
        )
    axes.set_yticks(range(len(rows)), [row["system"] for row in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.margins(x=0.15)
    tidy(axes)
    axes.grid(axis="y", visible=False)


FIGURES.add("traces", FigureKind("All neighbours on three kinds of traffic", "beyond", BEYOND, make, draw))

"""Beyond the paper: who pays for long requests? TTFT and TPOT by prompt length, on chat traffic with a few long prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gyges.figures.base import BEYOND, FIGURES, Context, Data, FigureKind, Line, Workload
from gyges.figures.drawing import log_scale
from gyges.figures.replays import Contender, simulate, summary_of
from gyges.metrics.plots import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, new_figure, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CONTENDERS = (
    Contender("gyges", "gyges"),
    Contender("LoongServe", "loongserve"),
    Contender("static, 8 x TP1", "fixed", "static:tp1"),
    Contender("static, TP4 + 4 x TP1", "fixed", "static:tp4+tp1+tp1+tp1+tp1"),
    Contender("static, 2 x TP4", "fixed", "static:tp4+tp4"),
    Contender("static, TP8", "fixed", "static:tp8"),
)
CHAT, CHAT_RATE = "azure-2023-conv", 4.0
LONG_PROMPTS = "synthetic:poisson?rate=0.05&prompt=uniform:20000:100000&output=200"
REQUESTS, QUICK_REQUESTS = 3000, 200


def mixed(context: Context) -> Workload:
    """Chat traffic, and a prompt of 20K to 100K tokens every 20 s."""
    most = QUICK_REQUESTS if context.quick else REQUESTS
    return context.workload(CHAT, rate=CHAT_RATE, limit=most, mix_in=LONG_PROMPTS)


def make(context: Context) -> Data:
    workload = mixed(context)
    rows: list[dict[str, Any]] = []
    for contender in CONTENDERS:
        summary = summary_of(simulate(contender, workload))
        for label, bucket in summary["buckets"].items():
            rows.append(
                {
                    "system": contender.label,
                    "trace": workload.name,
                    "prompt_tokens": label,
                    "requests": bucket["requests"]["offered"],
                    **{f"{name}_{p}_s": bucket[f"{name}_s"][p] for name in ("ttft", "tpot") for p in ("p50", "p99")},
                }
            )
    return Data(rows, _lines(rows), _READINGS)


def _lines(rows: list[dict[str, Any]]) -> list[Line]:
    ends = [rows[0]["prompt_tokens"], rows[len({row["prompt_tokens"] for row in rows}) - 1]["prompt_tokens"]]
    lines = []
    for label in ends:
        for column, name in (("ttft_p99_s", "TTFT p99"), ("tpot_p99_s", "TPOT p99")):
            for contender in CONTENDERS:
                (row,) = (r for r in rows if (r["system"], r["prompt_tokens"]) == (contender.label, label))
                lines.append(
                    Line(f"{name}, prompts of {label}, {contender.label}", None, row[column], "s", "simulated")
                )
    return lines


_READINGS = ("Our room for KV cache: a TP1 instance holds most of the long prompts, if slowly.",)

STYLES = {
    "gyges": (BLUE, "-", "o"),
    "LoongServe": (ORANGE, "-", "^"),
    "static, 8 x TP1": (GREY, ":", "v"),
    "static, TP4 + 4 x TP1": (PURPLE, ":", "D"),
    "static, 2 x TP4": (GREEN, ":", "<"),
    "static, TP8": (BLACK, ":", ">"),
}


def draw(data: Data) -> Figure:
    figure = new_figure(11.0, 6.4)
    panels = list(figure.subplots(2, 2, sharex=True).flat)
    columns = (
        ("ttft_p50_s", "TTFT p50, s (log)", 1.0),
        ("ttft_p99_s", "TTFT p99, s (log)", 1.0),
        ("tpot_p50_s", "TPOT p50, ms (log)", 1e3),
        ("tpot_p99_s", "TPOT p99, ms (log)", 1e3),
    )
    for axes, (column, label, scale) in zip(panels, columns, strict=True):
        _curves(axes, data, column, scale)
        axes.set_ylabel(label)
    for axes in panels[2:]:
        axes.set_xlabel("prompt, tokens")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=8.5)
    title = f"{data.rows[0]['trace']} at {CHAT_RATE:g}/s and a prompt of 20K to 100K tokens every 20 s"
    figure.suptitle(f"Qwen2.5-32B on 8 H20, {title}, simulated", fontsize=10)
    return figure


def _curves(axes: Axes, data: Data, column: str, scale: float) -> None:
    buckets = list(dict.fromkeys(row["prompt_tokens"] for row in data.rows))
    for contender in CONTENDERS:
        colour, dashes, marker = STYLES[contender.label]
        rows = [row for row in data.where(system=contender.label) if row[column]]
        axes.plot(
            [buckets.index(row["prompt_tokens"]) for row in rows], [scale * row[column] for row in rows], color=colour,
            ls=dashes, marker=marker, ms=4, lw=1.4, label=contender.label,
        )  # fmt: skip
    log_scale(axes, [None if row[column] is None else scale * row[column] for row in data.rows])
    axes.set_xticks(range(len(buckets)), buckets)
    tidy(axes)


FIGURES.add("length-buckets", FigureKind("Latency by prompt length", "beyond", BEYOND, make, draw))

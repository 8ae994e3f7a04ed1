"""Beyond the paper: from 8 to 1,024 devices. Hosts of 8 H20 behind a router; transformations stay inside a host.

Load grows with the hosts: to each come chats, and a prompt of 60K to 120K tokens every 20 s, on average. With more hosts the same
traffic is smoother, and a router that knows lengths can keep long requests together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gyges.figures.base import BEYOND, FIGURES, Context, Data, FigureKind, Line
from gyges.figures.drawing import log_scale
from gyges.figures.replays import DEVICES, HARDWARE, MODEL, measures, summary_of
from gyges.metrics.plots import BLUE, GREEN, ORANGE, new_figure, tidy
from gyges.metrics.records import RequestRecord
from gyges.sim.setup import SimSetup, prepare

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROUTERS = ("round-robin", "least-loaded", "length-aware")
HOSTS, QUICK_HOSTS = (1, 2, 8, 32, 128), (1, 4)
CHATS_PER_S, LONG_PER_S = 4.0, 0.05  # to each host
DURATION_S, QUICK_DURATION_S = 90, 20


def make(context: Context) -> Data:
    rows: list[dict[str, Any]] = []
    duration = QUICK_DURATION_S if context.quick else DURATION_S
    for hosts in QUICK_HOSTS if context.quick else HOSTS:
        spec = (
            f"synthetic:poisson?rate={CHATS_PER_S * hosts}&prompt=lognormal:944:0.635:3:14050"
            f"&output=lognormal:160:0.75:7:1000&duration={duration}"
            f"+poisson?rate={LONG_PER_S * hosts}&prompt=uniform:60000:120000&output=200&duration={duration}"
        )
        workload = context.workload(spec)
        for router in ROUTERS:
            setup = SimSetup(model=MODEL, hardware=f"{HARDWARE}x{DEVICES}", policy="gyges", hosts=hosts, router=router)
            few = workload.requests[-1].arrival_s / 4
            result = prepare(setup).simulator().run(workload.requests, sample_s=few)
            row = measures(result.records, summary_of(result))
            rows.append(
                {
                    "hosts": hosts,
                    "devices": hosts * DEVICES,
                    "router": router,
                    "tokens_per_s_device": _tokens_until(result.records, duration) / duration / (hosts * DEVICES),
                    "changes_per_host": (row["merges"] + row["splits"]) / hosts,
                    **row,
                }
            )
    return Data(rows, _lines(rows), _READINGS)


def _tokens_until(records: Sequence[RequestRecord], moment: float) -> int:
    """Output tokens by then: while requests arrive, without the last ones' tail, which grows with the number of hosts."""
    return sum(int(np.searchsorted(record.token_times, moment, side="right")) for record in records)


def _lines(rows: list[dict[str, Any]]) -> list[Line]:
    most, least = max(row["hosts"] for row in rows), min(row["hosts"] for row in rows)
    lines = []
    for router in ROUTERS:
        few, many = (next(r for r in rows if (r["hosts"], r["router"]) == (h, router)) for h in (least, most))
        size = f"{many['devices']:,} devices"
        share = many["tokens_per_s_device"] / few["tokens_per_s_device"] - 1
        lines += [
            Line(
                f"throughput of a device, {size} against {few['devices']}, {router}", None, share, "share", "simulated"
            ),
            Line(f"TTFT p99 of chats, {size}, {router}", None, many["short_ttft_p99_s"], "s", "simulated"),
            Line(f"TTFT p50 of long prompts, {size}, {router}", None, many["long_ttft_p50_s"], "s", "simulated"),
        ]
    return lines


_READINGS = (
    "The length-aware router fills a host with long requests as long as they fit it: chats elsewhere are served sooner, and long "
    "prompts wait for one another.",
    "Policy gyges on every host, our room for KV cache. A router knows what it has sent and what came back, nothing else.",
)

STYLES = {"round-robin": (ORANGE, "s"), "least-loaded": (BLUE, "o"), "length-aware": (GREEN, "^")}
_PANELS = (
    ("tokens_per_s_device", "output tokens/s of a device,\nwhile requests arrive", False),
    ("short_ttft_p99_s", "TTFT p99 of chats, s (log)", True),
    ("long_ttft_p50_s", "TTFT p50 of long prompts, s (log)", True),
    ("changes_per_host", "merges and splits of a host", False),
)


def draw(data: Data) -> Figure:
    figure = new_figure(12.0, 3.8)
    figure.get_layout_engine().set(wspace=0.06)
    panels = figure.subplots(1, len(_PANELS))
    for axes, (column, label, logarithmic) in zip(panels, _PANELS, strict=True):
        _curves(axes, data, column, logarithmic=logarithmic)
        axes.set_ylabel(label, fontsize=9)
        axes.set_xlabel("devices (log)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    title = f"chats at {CHATS_PER_S:g}/s and a prompt of 60K to 120K tokens every {1 / LONG_PER_S:g} s to each host"
    figure.suptitle(f"Qwen2.5-32B on hosts of {DEVICES} H20, {title}, simulated", fontsize=10)
    return figure


def _curves(axes: Axes, data: Data, column: str, *, logarithmic: bool) -> None:
    for router in ROUTERS:
        colour, marker = STYLES[router]
        rows = [row for row in data.where(router=router) if row[column] is not None]
        axes.plot(
            [row["devices"] for row in rows], [row[column] for row in rows], color=colour, marker=marker, ms=4.5, lw=1.4,
            label=router,
        )  # fmt: skip
    log_scale(axes, [row["devices"] for row in data.rows], "x")
    if logarithmic:
        log_scale(axes, [row[column] for row in data.rows])
    else:
        axes.set_ylim(bottom=0)
    sizes = sorted({row["devices"] for row in data.rows})
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes], fontsize=8)
    tidy(axes)


FIGURES.add("scaling", FigureKind("From 8 to 1,024 devices", "beyond", BEYOND, make, draw))

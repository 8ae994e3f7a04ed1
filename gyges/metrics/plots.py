"""The plots of a run, as PNG (150 dpi) and SVG: latency CDFs, throughput and queue over time, the device map.

matplotlib is imported inside functions and used through its objects only, so no global state is touched.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gyges.errors import UserError
from gyges.metrics import definitions as d
from gyges.metrics.atomic import write_bytes
from gyges.metrics.records import RequestRecord, TimelineSample, TransformationEvent
from gyges.metrics.slo import Slo
from gyges.metrics.summary import bucket_indices, bucket_label
from gyges.metrics.timeline import fleet_series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito: told apart with any colour vision.
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILLION, PURPLE, GREY = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#F0E442",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
    "#999999",
)
# Yellow is left out, as a thin line on white is hardly seen in it; dashes tell the second blue from the first.
_BUCKET_STYLES = (
    (SKY, "-"),
    (ORANGE, "-"),
    (GREEN, "-"),
    (VERMILLION, "-"),
    (BLUE, "-"),
    (PURPLE, "-"),
    (GREY, "-"),
    (BLUE, "--"),
)
_POINTS = 1000  # of a curve: more cannot be seen, and make an SVG of a day's traffic unreadable by size
_WINDOWS_S = tuple(m * 10.0**e for e in range(-4, 6) for m in (1, 2, 5))


def write_plots(
    folder: Path,
    records: Sequence[RequestRecord],
    samples: Sequence[TimelineSample],
    events: Sequence[TransformationEvent],
    *,
    slo: Slo | None = None,
    label: str = "",
) -> list[Path]:
    """Write every plot that there is data for into ``folder``, atomically; returns the files.

    label: stands above each plot; say there what a reader must know ("simulated", "partial run", the model).
    """
    from gyges.metrics.plot_devices import device_map

    figures: dict[str, Figure] = {}
    if records:
        figures["latency_cdf"] = latency_cdf(records, slo=slo, label=label)
        figures["throughput_queue"] = throughput_queue(records, samples, events, label=label)
    if samples:
        figures["device_map"] = device_map(samples, events, end_s=run_end(records, samples, events), label=label)
    return save_figures(folder, figures)


def save_figures(folder: Path, figures: Mapping[str, Figure]) -> list[Path]:
    """Each figure as NAME.png (150 dpi) and NAME.svg in ``folder``, atomically; without any, makes no folder."""
    if not figures:
        return []
    from matplotlib import rc_context

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {folder} for the plots: {error.strerror}; choose another folder") from error
    written = []
    for name, figure in figures.items():
        # Once for both formats: each savefig would lay everything out twice, which takes longer than drawing it.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        for suffix in ("png", "svg"):
            buffer = io.BytesIO()
            # The same figures make the same bytes: no date, and names inside that are not drawn at random.
            with rc_context({"svg.hashsalt": name}):
                figure.savefig(buffer, format=suffix, dpi=150, metadata={"Date": None} if suffix == "svg" else None)
            write_bytes(folder / f"{name}.{suffix}", buffer.getvalue())
            written.append(folder / f"{name}.{suffix}")
    return written


def new_figure(width: float, height: float) -> Figure:
    """A figure of its own canvas, in inches, laid out so that nothing overlaps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def tidy(axes: Axes) -> None:
    """The frame that all plots share: no box, a faint grid behind."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)


def latency_cdf(records: Sequence[RequestRecord], *, slo: Slo | None = None, label: str = "") -> Figure:
    """The fraction of requests within x seconds, for TTFT, TPOT and E2E; a curve that ends below 1 shows failures."""
    figure = new_figure(10.5, 4.2)
    figure.get_layout_engine().set(wspace=0.04)
    panels = figure.subplots(1, 3, sharey=True)
    groups = [(bucket_label(low, high), places) for low, high, places in bucket_indices(records)]
    limits = (slo.ttft_s, slo.tpot_s, slo.e2e_s) if slo else (None, None, None)
    definitions = (("TTFT", d.ttft_s), ("TPOT", d.tpot_s), ("E2E latency", d.e2e_s))
    handles: dict[str, Any] = {}
    for axes, (title, latency), limit in zip(panels, definitions, limits, strict=True):
        tidy(axes)
        of_each = [latency(r) for r in records]
        curves = [("all requests", range(len(records)), (BLACK, "-"), 2.2)]
        if len(groups) > 1:
            curves += [(n, g, style, 1.3) for (n, g), style in zip(groups, _BUCKET_STYLES, strict=False)]
        finite: list[float] = []
        for name, places, (colour, dashes), width in curves:
            values = np.sort([v for i in places if (v := of_each[i]) is not None])
            x, y = cdf_points(values)
            finite += [v for v in x if v > 0]
            (handles[name],) = axes.plot(
                x, y, color=colour, linestyle=dashes, linewidth=width, drawstyle="steps-post", zorder=2 + (width < 2)
            )
        if limit is not None:
            handles["SLO limit"] = axes.axvline(limit, color="0.35", linestyle=(0, (4, 3)), linewidth=1.2)
            finite.append(limit)
        seconds_axis(axes, finite)
        axes.set(title=f"{title}, from scheduled arrival" if title != "TPOT" else title, ylim=(0, 1.02))
        if not finite:
            axes.set_xticks([])
            axes.text(0.5, 0.5, "no finite value", transform=axes.transAxes, ha="center", va="center", color="0.4")
    panels[0].set_ylabel("fraction of requests\n(failed ones never arrive)")
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=min(5, len(handles)),
        frameon=False,
        title="by prompt length, tokens" if len(groups) > 1 else None,
    )
    if label:
        figure.suptitle(label, fontsize=10)
    return figure


def cdf_points(ascending: np.ndarray[Any, Any]) -> tuple[list[float], list[float]]:
    """Steps of the empirical CDF over finite values, thinned to what can be seen; infinite ones only lower it."""
    finite = ascending[np.isfinite(ascending)]
    if not len(finite):
        return [], []
    ranks = np.unique(np.linspace(0, len(finite) - 1, min(len(finite), _POINTS)).astype(int))
    x, y = finite[ranks], (ranks + 1) / len(ascending)
    return [float(x[0]), *x.tolist()], [0.0, *y.tolist()]


def seconds_axis(axes: Axes, positive: Sequence[float]) -> None:
    """Logarithmic where latencies span more than a decade, with plain numbers; linear otherwise."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    if positive and max(positive) > 10 * min(positive):
        axes.set_xscale("log")
        few = max(positive) < 300 * min(positive)  # then 1, 2, 5 fit side by side
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,), numticks=9))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlim(0, 1.1 * max(positive, default=1.0))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
    axes.set_xlabel("seconds")


def throughput_queue(
    records: Sequence[RequestRecord],
    samples: Sequence[TimelineSample],
    events: Sequence[TransformationEvent],
    *,
    label: str = "",
) -> Figure:
    """Output tokens/s in windows, requests running and waiting, KV use, over the run; transformations as thin lines."""
    figure = new_figure(10.5, 6.6)
    top, middle, bottom = figure.subplots(3, 1, sharex=True)
    end = run_end(records, samples, events)
    edges, rates, window = token_rate(records, end)
    top.stairs(rates, edges, color=BLUE, linewidth=1.4)
    top.set_ylabel(f"output tokens/s\n({window:g} s windows)")
    series = fleet_series(samples)
    for name, colour, counts in (("running", GREEN, series.running), ("waiting", VERMILLION, series.waiting)):
        # Unclipped: a line along zero, or full use, would lose half its width at the frame.
        middle.plot(*_held(series.t_s, counts, end), color=colour, drawstyle="steps-post", label=name, clip_on=False)
    middle.set_ylabel("requests")
    use = [100 * u / t if t else 0.0 for u, t in zip(series.kv_used_blocks, series.kv_total_blocks, strict=True)]
    bottom.plot(*_held(series.t_s, use, end), color=PURPLE, drawstyle="steps-post", clip_on=False)
    bottom.set(ylabel="KV blocks in use (%)", xlabel="seconds since the run's start", ylim=(0, 103), xlim=(0, end or 1))
    for axes in (top, middle, bottom):
        tidy(axes)
        axes.yaxis.get_major_locator().set_params(integer=axes is middle)
        high = 103 if axes is bottom else max(1.0, axes.get_ylim()[1])
        axes.set_ylim(0, high)
        for kind, dashes in (("merge", "-"), ("split", ":")):
            if starts := [e.start_s for e in events if e.kind == kind]:
                name = f"{kind} starts" if axes is middle else None
                faint = min(1.0, 30 / len(starts))  # hundreds of lines must not become a wall
                axes.vlines(starts, 0, high, color="0.35", linestyle=dashes, lw=0.9, alpha=faint, label=name, zorder=1)
    # Beside the axes: a queue may fill any corner of the panel.
    middle.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.align_ylabels()
    if label:
        figure.suptitle(label, fontsize=10)
    return figure


def _held(t_s: Sequence[float], values: Sequence[float], end: float) -> tuple[list[float], list[float]]:
    """The last sample holds until the end."""
    return [*t_s, *([end] if t_s else [])], [*values, *values[-1:]]


def token_rate(
    records: Sequence[RequestRecord], end_s: float
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], float]:
    """(window edges in seconds, output tokens/s in each, window length): tokens counted where they appeared.

    Where only the end of a request is known, its tokens are spread evenly from the first delivery to the end.
    """
    window = next((w for w in _WINDOWS_S if w * 120 >= end_s), _WINDOWS_S[-1])
    edges = np.arange(max(1, math.ceil(end_s / window)) + 1) * window
    counts = np.zeros(len(edges) - 1)
    for record in records:
        times: Any = record.token_times
        first = record.first_token_s
        if not len(times) and record.output_tokens and first is not None:
            times = np.linspace(first, record.last_seen_s, record.output_tokens)
        if len(times):
            bins = np.clip((np.asarray(times) / window).astype(int), 0, len(counts) - 1)
            counts += np.bincount(bins, minlength=len(counts))
    return edges, counts / window, window


def run_end(
    records: Sequence[RequestRecord], samples: Sequence[TimelineSample], events: Sequence[TransformationEvent]
) -> float:
    moments = [r.last_seen_s for r in records] + [s.t_s for s in samples] + [e.end_s for e in events]
    return max(moments, default=0.0)

"""The picture of a trace: arrivals over time, lengths, gaps, contexts. Written as PNG and SVG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gyges.errors import UserError
from workloads.schema import Trace
from workloads.stats import CONTEXT_STEPS

# Okabe and Ito's palette, told apart by all common kinds of colour vision; line styles differ as well, for grey prints.
BLUE, ORANGE, GREEN, INK = "#0072B2", "#D55E00", "#009E73", "#333333"
# The salt makes the ids in an SVG, and so its bytes, the same every time.
_STYLE = {"font.size": 10, "svg.hashsalt": "gyges", "axes.spines.top": False, "axes.spines.right": False}


def plot_trace(trace: Trace, stem: Path) -> list[Path]:
    """Draw ``trace`` to ``stem``.png and ``stem``.svg and return both paths; a suffix of ``stem`` is replaced."""
    if not stem.parent.is_dir():
        raise UserError(f"cannot write the plot {stem}: there is no folder {stem.parent}")
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # A Figure of its own rather than pyplot: no global state, no display, nothing to close.
    with matplotlib.rc_context(_STYLE):
        figure: Any = Figure(figsize=(11, 7.5), layout="constrained")
        FigureCanvasAgg(figure)
        rate, lengths, gaps, contexts = figure.subplots(2, 2).flat
        _draw_rate(rate, trace)
        _draw_lengths(lengths, trace)
        _draw_gaps(gaps, trace)
        _draw_contexts(contexts, trace)
        figure.suptitle(f"{trace.name}: {len(trace):,} requests over {trace.duration_s:,.0f} s", color=INK)
        paths = [stem.with_suffix(suffix) for suffix in (".png", ".svg")]
        for path in paths:
            figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    return paths


def _draw_rate(axes: Any, trace: Trace) -> None:
    arrivals = np.array([request.arrival_s for request in trace.requests])
    span = max(trace.duration_s, 1.0)
    width = max(1.0, 10 ** np.floor(np.log10(span / 20)))
    edges = np.arange(arrivals[0], arrivals[-1] + 2 * width, width)
    counts, _ = np.histogram(arrivals, edges)
    axes.stairs(counts / width, edges, color=BLUE, fill=True, alpha=0.85)
    axes.set(xlabel="time (s)", ylabel="arrivals (requests/s)", title=f"Load, {width:g} s bins", ylim=(0, None))


def _draw_lengths(axes: Any, trace: Trace) -> None:
    for label, colour, style, values in (
        ("prompt", BLUE, "-", [request.prompt_tokens for request in trace.requests]),
        ("output", ORANGE, "--", [request.output_tokens for request in trace.requests]),
    ):
        axes.ecdf(values, color=colour, linestyle=style, linewidth=2, label=label)
    axes.set_xscale("log")
    axes.set(xlabel="length (tokens)", ylabel="share of requests", title="Lengths, cumulative", ylim=(0, 1.02))
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)


def _draw_gaps(axes: Any, trace: Trace) -> None:
    gaps = np.diff([request.arrival_s for request in trace.requests])
    axes.set(xlabel="gap between arrivals (s)", ylabel="share of gaps", title="Gaps, cumulative", ylim=(0, 1.02))
    if not len(gaps) or gaps.max() <= 0:
        axes.text(0.5, 0.5, "no gaps: all at once", ha="center", transform=axes.transAxes)
        return
    # Equal times have no place on a logarithmic axis: they stand at its left end.
    floor = max(gaps[gaps > 0].min(), gaps.max() * 1e-7)
    axes.ecdf(np.maximum(gaps, floor), color=BLUE, linewidth=2, label="trace")
    x = np.geomspace(floor, gaps.max(), 200)
    axes.plot(x, 1 - np.exp(-x / gaps.mean()), color=ORANGE, linestyle="--", linewidth=2, label="Poisson, same rate")
    axes.set_xscale("log")
    axes.legend(frameon=False, loc="upper left")
    axes.grid(alpha=0.3)


def _draw_contexts(axes: Any, trace: Trace) -> None:
    total = np.array([request.total_tokens for request in trace.requests])
    shares = [float(np.mean(total > step)) * 100 for step in CONTEXT_STEPS]
    bars = axes.bar([f"{step // 1024}k" for step in CONTEXT_STEPS], shares, color=GREEN)
    axes.bar_label(bars, fmt="%.1f %%", padding=2)
    axes.set(xlabel="prompt + output over (tokens)", ylabel="share of requests (%)", title="Long contexts")
    axes.set_ylim(0, max(1.0, max(shares) * 1.15))

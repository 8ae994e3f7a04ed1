"""The figure of ``gyges sim bench``: seconds over requests, and the straight line through them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gyges.metrics.plots import BLUE, ORANGE, new_figure, save_figures, tidy


def write_plot(folder: Path, document: Mapping[str, Any]) -> list[Path]:
    """``scaling.png`` (150 dpi) and ``.svg`` in ``folder``, written atomically."""
    runs, fit = document["scale"]["runs"], document["scale"]["fit"]
    figure = new_figure(6.0, 3.6)
    axes = figure.subplots()
    last = runs[-1]["requests"]
    axes.plot(
        [0, last],
        [fit["start_s"], fit["start_s"] + fit["seconds_per_request"] * last],
        color=ORANGE,
        label=f"{fit['seconds_per_request'] * 1e6:.0f} us a request, R² {fit['r2']:.4f}",
    )
    for key, marker, name in (("wall_s", "o", "in all"), ("loop_s", "x", "event loop")):
        xs = [run["requests"] for run in runs]
        axes.plot(xs, [run[key] for run in runs], marker, color=BLUE, label=name)
    axes.set_xlabel("requests")
    axes.set_ylabel("seconds on one core")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:,.0f}k" if value else "0")
    axes.set_title(f"{runs[-1]['devices']:,} simulated devices; time ~ requests^{fit['exponent']:.2f}", fontsize=10)
    axes.legend(frameon=False)
    tidy(axes)
    return save_figures(folder, {"scaling": figure})

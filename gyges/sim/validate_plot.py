"""One figure of ``gyges sim validate`` and ``agree``: output tokens per second over time, measured and simulated."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gyges.metrics.plots import BLACK, ORANGE, new_figure, save_figures, tidy


def write_plot(folder: Path, document: Mapping[str, Any], title: str) -> list[Path]:
    """``validation.png`` (150 dpi) and ``.svg`` in ``folder``, written atomically."""
    figure = new_figure(7.0, 3.4)
    axes = figure.subplots()
    series = document["over_time"]
    for name, colour in (("measured", BLACK), ("simulated", ORANGE)):
        rates = series[f"{name}_tokens_per_s"]
        axes.step(
            [(i + 0.5) * series["bin_s"] for i in range(len(rates))], rates, where="mid", color=colour, label=name
        )
    axes.set_xlabel("time since the first request (s)")
    axes.set_ylabel("output tokens/s")
    axes.set_ylim(bottom=0)
    latencies = [name for name in document["goals"] if name in document["latencies"]]
    errors = ", ".join(
        f"{name.removesuffix('_s').upper()} {document['latencies'][name]['mean']['error']:+.1%}" for name in latencies
    )
    axes.set_title(f"{title}; mean {errors}", fontsize=9)
    axes.legend(frameon=False)
    tidy(axes)
    return save_figures(folder, {"validation": figure})

"""One bar chart of `gyges bench peers`: useful tokens/s of each peer, per mix, with the floor as a line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gyges.bench.peers import GENERATE, GENERATE_BATCH, OWN
from gyges.metrics.plots import BLACK, BLUE, GREEN, GREY, ORANGE, new_figure, save_figures, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = {OWN: BLUE, GENERATE: ORANGE, GENERATE_BATCH: GREEN}


def write_plot(folder: Path, document: Mapping[str, Any]) -> list[Path]:
    """``tokens_per_s.png`` (150 dpi) and ``.svg`` in ``folder``, written atomically; none if nothing was measured."""
    if not any(peer["tokens_per_s"] for mix in document["mixes"].values() for peer in mix["peers"].values()):
        return []
    return save_figures(folder, {"tokens_per_s": tokens_per_s(document)})


def tokens_per_s(document: Mapping[str, Any]) -> Figure:
    """A panel per mix; bars are medians, whiskers reach from the slowest to the fastest repeat."""
    mixes = document["mixes"]
    figure = new_figure(max(5.4, 4.6 * len(mixes)), 4.2)
    panels = figure.subplots(1, len(mixes), squeeze=False)[0]
    for axes, (name, mix) in zip(panels, mixes.items(), strict=True):
        _bars(axes, mix, document["peers"])
        axes.set_title(f"{name}: {mix['requests']} requests", fontsize=10)
    panels[0].set_ylabel("useful tokens/s (higher is better)")
    model = document["model"]
    label = f"{model['name']}, {model['parameters'] / 1e6:.1f}M parameters, fp32, {document['cores']} cores"
    figure.suptitle(label, fontsize=10)
    return figure


def _bars(axes: Axes, mix: Mapping[str, Any], peers: Mapping[str, Any]) -> None:
    names = list(mix["peers"])
    ceiling = mix["floor"]["tokens_per_s"]["median"]
    top = ceiling
    for x, name in enumerate(names):
        speed = mix["peers"][name]["tokens_per_s"]
        if speed is None:
            axes.text(x, 0, "no result", ha="center", va="bottom", fontsize=9)
            continue
        median, top = speed["median"], max(top, speed["max"])
        axes.bar(x, median, width=0.62, color=_COLOURS.get(name, GREY))
        whiskers = [[median - speed["min"]], [speed["max"] - median]]
        axes.errorbar(x, median, yerr=whiskers, color=BLACK, capsize=4, linewidth=1)
        share = mix["peers"][name]["share_of_floor"]["median"]
        text = f"{median:.0f}\n{share:.0%} of floor"
        axes.annotate(text, (x, speed["max"]), (0, 4), textcoords="offset points", ha="center", fontsize=9)
    axes.axhline(ceiling, color=BLACK, linestyle="--", linewidth=1)
    axes.annotate(
        f"the floor's rate: {ceiling:.0f}",
        (len(names) - 0.5, ceiling),
        (0, 3),
        textcoords="offset points",
        ha="right",
        fontsize=9,
    )
    axes.set_xticks(range(len(names)), [peers[name]["label"] for name in names])
    axes.set(xlim=(-0.5, len(names) - 0.5), ylim=(0, 1.2 * top))
    tidy(axes)
    axes.grid(axis="x", visible=False)

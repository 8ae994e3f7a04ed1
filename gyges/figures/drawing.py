"""What the plots of figures share beside gyges.metrics.plots: axes with plain numbers, bars with their values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.container import BarContainer

_DENSE = (
    200.0  # up to this ratio between the ends of a logarithmic axis 1, 2 and 5 are labelled, beyond it powers of ten
)


def plain(value: float) -> str:
    """Three digits, never with an exponent: 0.0123, 1.2, 41.2, 1,040."""
    if abs(value) >= 999.5:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 1e-3 or not value else f"{value:.6f}".rstrip("0")


def log_scale(axes: Axes, values: Iterable[float | None], which: Literal["x", "y"] = "y") -> None:
    """A logarithmic axis with plain numbers. ``values``: that it shows; where none is positive the axis stays linear."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    positive = [value for value in values if value is not None and value > 0]
    axis = axes.yaxis if which == "y" else axes.xaxis
    if not positive:
        return
    axes.set(**{f"{which}scale": "log"})
    dense = max(positive) < _DENSE * min(positive)
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if dense else (1,), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
    axis.set_minor_formatter(NullFormatter())


def label_bars(axes: Axes, bars: BarContainer, values: Sequence[float], size: float = 7.5, digits: int = 3) -> None:
    """Each bar's value above it, rounded."""
    axes.bar_label(bars, [plain(float(f"{value:.{digits}g}")) for value in values], fontsize=size, padding=1.5)


def not_measured(axes: Axes) -> None:
    """A panel for which there is no measurement here."""
    axes.text(0.5, 0.5, "not measured here", transform=axes.transAxes, ha="center", va="center", color="0.35")
    axes.set_xticks([])
    axes.set_yticks([])


def model_names(axes: Axes, names: Sequence[str]) -> None:
    """Groups of bars, one for each model."""
    axes.set_xticks(range(len(names)), names, fontsize=7.5)
    axes.grid(axis="x", visible=False)

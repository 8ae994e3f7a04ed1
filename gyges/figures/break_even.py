"""Beyond the paper: when does transforming pay? Length of the long requests x load x what a switch costs.

Short requests (1,000 prompt, 200 output tokens) at a load, and one long request a minute. In each cell the system ``gyges`` is
compared by the mean time from arrival to end with a static mix of wide and narrow instances, and with the best of all static
layouts that can serve everything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gyges.figures.base import BEYOND, FIGURES, Context, Data, FigureKind, Line
from gyges.figures.replays import Contender, simulate
from gyges.metrics.definitions import e2e_s
from gyges.metrics.plots import new_figure
from gyges.metrics.summary import distribution
from gyges.sim.simulator import SimResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GYGES = Contender("gyges", "gyges")
MIX = "TP4 + 4 x TP1"
STATICS = tuple(
    Contender(label, "fixed", f"static:{layout}")
    for label, layout in (
        ("8 x TP1", "tp1"),
        (MIX, "tp4+tp1+tp1+tp1+tp1"),
        ("4 x TP2", "tp2+tp2+tp2+tp2"),
        ("2 x TP4", "tp4+tp4"),
        ("TP8", "tp8"),
    )
)
LENGTHS, QUICK_LENGTHS = (4_000, 16_000, 32_000, 64_000, 96_000, 128_000), (4_000, 64_000)  # prompt tokens
LOADS, QUICK_LOADS = (1.0, 2.0, 4.0, 6.0, 8.0, 10.0), (1.0, 4.0)  # short requests/s
COMPARED = {"gain_over_mix": MIX, "gain_over_best": "the best static layout"}
FACTORS, QUICK_FACTORS = (1.0, 30.0, 1000.0), (1.0, 1000.0)  # on the seconds of every switch


def make(context: Context) -> Data:
    lengths, loads, factors = (
        (QUICK_LENGTHS, QUICK_LOADS, QUICK_FACTORS) if context.quick else (LENGTHS, LOADS, FACTORS)
    )
    duration = 60 if context.quick else 240
    rows: list[dict[str, Any]] = []
    for length in lengths:
        for load in loads:
            spec = (
                f"synthetic:poisson?rate={load}&prompt=1000&output=200&duration={duration}"
                f"+constant?rate={1 / 60:.6f}&start=15&prompt={length}&output=200&duration={duration}"
            )
            workload = context.workload(spec)
            statics = {c.label: _mean_e2e(simulate(c, workload)) for c in STATICS}
            able = {label: seconds for label, seconds in statics.items() if seconds is not None}
            best = min(able, key=lambda label: able[label])
            for factor in factors:
                result = simulate(GYGES, workload, switch_factor=factor)
                ours = _mean_e2e(result)
                rows.append(
                    {
                        "long_prompt_tokens": length,
                        "short_per_s": load,
                        "switch_factor": factor,
                        "gyges_e2e_s": ours,
                        "changes": len(result.transformations),
                        "mix_e2e_s": able[MIX],
                        "best_static": best,
                        "best_e2e_s": able[best],
                        "gain_over_mix": None if ours is None else able[MIX] / ours - 1,
                        "gain_over_best": None if ours is None else able[best] / ours - 1,
                    }
                )
    return Data(rows, _lines(rows), _READINGS)


def _mean_e2e(result: SimResult) -> float | None:
    """Seconds; None: somebody was never served."""
    found = distribution([value for record in result.records if (value := e2e_s(record)) is not None])
    return None if found["infinite"] else found["mean"]


def _lines(rows: list[dict[str, Any]]) -> list[Line]:
    lines = []
    for factor in dict.fromkeys(row["switch_factor"] for row in rows):
        mine = [row for row in rows if row["switch_factor"] == factor]
        for column, whom in COMPARED.items():
            share = sum(row[column] is not None and row[column] > 0 for row in mine) / len(mine)
            lines.append(
                Line(f"cells where transforming beats {whom}, {_price(factor)}", None, share, "share", "simulated")
            )
    return lines


def _price(factor: float) -> str:
    return "switches as priced" if factor == 1 else f"switches {factor:g} times as dear"


_READINGS = (
    "The best static layout is chosen anew in every cell, knowing the whole trace; gyges does not know it.",
    "Our room for KV cache: two H20 hold the longest requests. gyges merges for those that do not fit, not for speed.",
    "In some cells dearer switches do better: gyges then makes fewer of them (column changes) and keeps its wide instance.",
    "Where nobody is saturated TP8 is the best layout: with NVLink and CUDA graphs tensor parallelism costs an H20 little, and "
    "one request has all devices. Transforming pays where narrow instances are needed for their throughput.",
)


def draw(data: Data) -> Figure:
    from matplotlib.colors import TwoSlopeNorm

    factors = list(dict.fromkeys(row["switch_factor"] for row in data.rows))
    figure = new_figure(4.0 * len(factors) + 1.0, 7.0)
    panels = figure.subplots(len(COMPARED), len(factors), sharex=True, sharey=True, squeeze=False)
    norm = TwoSlopeNorm(0.0, -100.0, 100.0)
    for band, (column, whom) in zip(panels, COMPARED.items(), strict=True):
        for axes, factor in zip(band, factors, strict=True):
            image = _map(axes, data, column, factor, norm)
            axes.set_title(f"against {whom}\n{_price(factor)}", fontsize=9)
        band[0].set_ylabel("short requests/s")
    for axes in panels[-1]:
        axes.set_xlabel("prompt of the long requests, tokens")
    figure.colorbar(
        image, ax=panels, label="static mean E2E / gyges - 1, %: positive where transforming pays", shrink=0.8
    )
    figure.suptitle("Qwen2.5-32B on 8 H20, one long request a minute, simulated", fontsize=10)
    return figure


def _map(axes: Axes, data: Data, column: str, factor: float, norm: Any) -> Any:
    cells = {(r["short_per_s"], r["long_prompt_tokens"]): r[column] for r in data.where(switch_factor=factor)}
    lengths, loads = (list(dict.fromkeys(key[i] for key in cells)) for i in (1, 0))
    gains = [[100 * (cells[load, length] or 0.0) for length in lengths] for load in loads]
    # Orange and purple: told apart with any colour vision; white is where it makes no difference.
    image = axes.imshow(gains, origin="lower", aspect="auto", cmap="PuOr", norm=norm)
    for y, load in enumerate(loads):
        for x, length in enumerate(lengths):
            value = cells[load, length]
            text = "never" if value is None else f"{100 * value:+.0f}"
            dark = value is not None and abs(value) > 0.6
            axes.text(x, y, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    axes.set_xticks(range(len(lengths)), [f"{length // 1000}K" for length in lengths])
    axes.set_yticks(range(len(loads)), [f"{load:g}" for load in loads])
    return image


FIGURES.add("break-even", FigureKind("When transforming pays", "beyond", BEYOND, make, draw))

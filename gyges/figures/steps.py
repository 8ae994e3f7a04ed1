"""Figure 4: how much of the model is transformed in one step: 1 layer, 5, half, all; and Seesaw, which goes through host memory.

Simulated, KV cache 90 % full, header-centric (the paper's layout, which moves layer by layer), FFN padded, with the overlap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gyges.figures import paper
from gyges.figures.base import FIGURES, Context, Data, FigureKind, Line
from gyges.figures.drawing import label_bars, log_scale
from gyges.figures.shared import DEGREE, FILL, MERGE, SPLIT, gyges_switch, held_tokens, lost_s, paper_fill, system_of
from gyges.metrics.plots import BLUE, ORANGE, VERMILLION, new_figure, tidy
from gyges.sim.models import sim_model
from gyges.sim.system import Switch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN, LAYOUT = "Qwen2.5-32B", "header-centric"
SEESAW = "Seesaw"


def steps_of(layers: int) -> dict[str, int]:
    """What the paper tried, by name."""
    return {"1": 1, "5": 5, "half": layers // 2, "all": layers}


def make(context: Context) -> Data:
    rows: list[dict[str, Any]] = []
    for name, (hub, hardware) in paper.MODELS.items():
        model = sim_model(hub)
        seesaw = system_of("seesaw", model, hardware)
        for kind, degrees in (("merge", MERGE), ("split", SPLIT)):
            for label, layers in steps_of(model.geometry.num_layers).items():
                switch = gyges_switch(model, hardware, *degrees, layout=LAYOUT, layers=layers)
                rows.append(_row("own", name, kind, label, switch))
                if name == SHOWN:
                    less = gyges_switch(model, hardware, *degrees, fill=paper_fill(), layout=LAYOUT, layers=layers)
                    rows.append(_row("paper", name, kind, label, less))
            other = seesaw.switch(*degrees, held_tokens(seesaw, degrees[0], FILL))
            rows.append(_row("own", name, kind, SEESAW, other))
    return Data(rows, _lines(rows), _READINGS)


def _row(room: str, model: str, kind: str, label: str, switch: Switch) -> dict[str, Any]:
    return {
        "room": room,
        "model": model,
        "kind": kind,
        "layers_per_step": label,
        "lasts_s": switch.total_s,
        "pause_s": switch.pause_s,
        "step_overhead": switch.slowdown - 1,
        "lost_s": lost_s(switch),
        "extra_bytes": switch.extra_bytes,
    }


def _lines(rows: list[dict[str, Any]]) -> list[Line]:
    def of(column: str, kind: str, label: str, model: str = SHOWN, room: str = "own") -> float:
        wanted = (room, model, kind, label)
        (row,) = (r for r in rows if (r["room"], r["model"], r["kind"], r["layers_per_step"]) == wanted)
        return float(row[column])

    lines = []
    for kind in ("merge", "split"):
        cuts = [of("lost_s", kind, "all", m) / of("lost_s", kind, SEESAW, m) - 1 for m in paper.MODELS]
        lines += [
            Line(f"{kind}, all layers in one step, against Seesaw, largest cut of five models", paper.AGAINST_SEESAW, min(cuts),
                 "share", "simulated"),
            Line(f"{kind}, steps are longer by, 1 layer a step, {SHOWN}", (0.0, paper.STEP_OVERHEAD),
                 of("step_overhead", kind, "1"), "share", "simulated", "90 % of our room for KV cache, 65K tokens a device"),
            Line(f"{kind}, the same, the paper's room", (0.0, paper.STEP_OVERHEAD),
                 of("step_overhead", kind, "1", room="paper"), "share", "simulated",
                 "a split gathers 41 GB of FFN weights on each device, whatever the KV cache" if kind == "split" else ""),
            Line(f"{kind}, serving time lost in all, 1 layer a step, {SHOWN}", None, of("lost_s", kind, "1"), "s", "simulated"),
            Line(f"{kind}, serving time lost in all, all layers a step, {SHOWN}", None, of("lost_s", kind, "all"), "s",
                 "simulated"),
        ]  # fmt: skip
    return lines


_READINGS = (
    "The paper's step-time overhead under 1 % is taken as how much longer one step is while a transformation goes on. Copies use "
    "the memory that decode steps read, and their bytes are the same however they are spread: few layers a step make it last and "
    "each step little longer, all layers at once make one long step.",
)

_LABELS = ("1", "5", "half", "all")
_COLOURS = {"merge": BLUE, "split": ORANGE}


def draw(data: Data) -> Figure:
    figure = new_figure(11.0, 4.0)
    figure.get_layout_engine().set(wspace=0.06)
    left, middle, right = figure.subplots(1, 3)
    _bars(left, data, "step_overhead", 100.0, _LABELS)
    left.axhline(100 * paper.STEP_OVERHEAD, color=VERMILLION, ls="--", lw=1.2, label="the paper: under 1 %")
    log_scale(
        left,
        [100 * row["step_overhead"] for row in data.where(room="own", model=SHOWN) if row["layers_per_step"] != SEESAW],
    )
    left.set_ylim(bottom=0.5)
    left.set_ylabel("a step beside it is longer by, % (log)")
    _bars(middle, data, "lasts_s", 1.0, (*_LABELS, SEESAW))
    middle.set_ylabel("from beginning to end, s")
    _bars(right, data, "lost_s", 1e3, (*_LABELS, SEESAW))
    right.set_ylabel("serving time lost, ms")
    for axes in (left, middle, right):
        axes.set_xlabel("layers in one step")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.suptitle(
        f"{SHOWN} on H20, KV cache {FILL:.0%} full, {DEGREE} x TP1 <-> TP{DEGREE}, with the overlap, simulated",
        fontsize=10,
    )
    return figure


def _bars(axes: Axes, data: Data, column: str, scale: float, labels: tuple[str, ...]) -> None:
    for shift, kind in enumerate(("merge", "split")):
        rows = {row["layers_per_step"]: row for row in data.where(room="own", model=SHOWN, kind=kind)}
        x = [index + 0.4 * (shift - 0.5) for index in range(len(labels))]
        values = [scale * rows[label][column] for label in labels]
        label_bars(axes, axes.bar(x, values, width=0.38, color=_COLOURS[kind], label=kind), values, size=7, digits=2)
    axes.set_xticks(range(len(labels)), labels)
    axes.margins(y=0.12)
    tidy(axes)
    axes.grid(axis="x", visible=False)


FIGURES.add(
    "layers-per-step",
    FigureKind("Layers per step, and Seesaw", "transformation", "section 4, order and overlap", make, draw),
)

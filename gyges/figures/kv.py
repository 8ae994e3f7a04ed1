"""Figure 2: transforming the KV cache by layout and overlap, five models, 90 % full, 4 x TP1 -> TP4.

Simulated: the switch of the system ``gyges``, whose bytes and copies follow from the layout as gyges.transform.plan moves them;
KV alone is the switch at 90 % less the one with an empty cache. What it costs is serving time: the pause, and the time by which
steps beside it are longer. Also shown: what this project's engine measured on a CPU, as ratios, since its copies are not a GPU's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gyges.figures import paper
from gyges.figures.base import FIGURES, Context, Data, FigureKind, Line
from gyges.figures.drawing import model_names, not_measured
from gyges.figures.shared import DEGREE, FILL, MERGE, gyges_switch, lost_s, paper_fill
from gyges.metrics.plots import BLUE, GREY, ORANGE, SKY, VERMILLION, new_figure, tidy
from gyges.sim.models import sim_model

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAIVE, PAPER, OURS = "token-first", "header-centric", "shard-pages"
SHOWN, PAPER_ROOM = "Qwen2.5-32B", "simulated, the paper's room"
LAYOUTS = (NAIVE, "page-friendly", PAPER, OURS)
_EMPTY = {
    "part": "", "model": "", "layout": "", "overlap": None, "layers": None, "stop_s": None, "lost_s": None,
    "lost_of_layer_s": None, "bytes_moved": None, "descriptors": None, "extra_bytes": None, "of_token_first": None,
}  # fmt: skip


def make(context: Context) -> Data:
    rows: list[dict[str, Any]] = []
    cases = [("simulated", model, FILL) for model in paper.MODELS] + [(PAPER_ROOM, SHOWN, paper_fill())]
    for part, name, fill in cases:
        mine = [_row(part, name, layout, fill, overlap=overlap) for layout in LAYOUTS for overlap in (False, True)]
        naive = mine[0]
        for row in mine:
            row["of_token_first"] = row["lost_s"] / naive["lost_s"]
            row["lost_of_layer_s"] = row["lost_s"] / row["layers"]
        rows += mine
    measured = _measured(context.measured)
    return Data([*rows, *measured], _lines(rows, measured), _READINGS)


def _row(part: str, name: str, layout: str, fill: float, *, overlap: bool) -> dict[str, Any]:
    hub, hardware = paper.MODELS[name]
    model = sim_model(hub)
    full, empty = (
        gyges_switch(model, hardware, *MERGE, fill=share, layout=layout, overlap=overlap) for share in (fill, 0.0)
    )
    return _EMPTY | {
        "part": part,
        "model": name,
        "layout": layout,
        "overlap": overlap,
        "layers": model.geometry.num_layers,
        "stop_s": full.pause_s - empty.pause_s,
        "lost_s": lost_s(full) - lost_s(empty),
        "bytes_moved": full.bytes_moved - empty.bytes_moved,
        "descriptors": full.descriptors - empty.descriptors,
        "extra_bytes": full.extra_bytes,
    }


def _measured(folder: Path | None) -> list[dict[str, Any]]:
    """The KV stage of a merge in one stop at the highest fill, of token-first's, by layout, of the models with real shapes."""
    if folder is None:
        return []
    document = json.loads((folder / "transform.json").read_text())["micro"] or {"models": []}
    found = []
    for model in document["models"]:
        if model["source"] == "preset":
            continue
        fill = max(cell["fill"] for cell in model["cells"])
        cells = [c for c in model["cells"] if c["kind"] == "merge" and c["padding"] and c["fill"] == fill]
        naive = next(c for c in cells if c["layout"] == NAIVE)
        for cell in cells:
            ratio = cell["kv_s"]["median"] / cell["kv_bytes"] / (naive["kv_s"]["median"] / naive["kv_bytes"])
            found.append(
                _EMPTY
                | {
                    "part": "measured",
                    "model": model["model"],
                    "layout": cell["layout"],
                    "overlap": False,
                    "layers": model["layers"],
                    "stop_s": cell["kv_s"]["median"],
                    "bytes_moved": cell["kv_moved_bytes"],
                    "descriptors": cell["kv_descriptors"],
                    "extra_bytes": cell["extra_bytes"],
                    "of_token_first": ratio,
                }
            )
    return found


def _lines(rows: list[dict[str, Any]], measured: list[dict[str, Any]]) -> list[Line]:
    def each(column: str, layout: str, *, overlap: bool) -> dict[str, float]:
        wanted = ("simulated", layout, overlap)
        return {r["model"]: r[column] for r in rows if (r["part"], r["layout"], r["overlap"]) == wanted}

    def in_paper_room(column: str, layout: str, *, overlap: bool) -> float:
        wanted = (PAPER_ROOM, layout, overlap)
        return next(float(r[column]) for r in rows if (r["part"], r["layout"], r["overlap"]) == wanted)

    def cut(layout: str, *, overlap: bool) -> float:
        """The largest over the models, negative."""
        return min(each("of_token_first", layout, overlap=overlap).values()) - 1

    def memory(layout: str) -> float:
        ours, naive = each("extra_bytes", layout, overlap=True), each("extra_bytes", NAIVE, overlap=False)
        return min(ours[model] / naive[model] - 1 for model in ours)

    layer = each("lost_of_layer_s", NAIVE, overlap=False)
    lines = [
        Line(f"{NAIVE}, one stop, a layer, {model}", paper.KV_NAIVE_S, seconds, "s", "simulated")
        for model, seconds in layer.items()
    ]
    note = "64 layers of 3.15 to 4 ms would be 202 to 256 ms: the paper's two figures differ as well"
    lines += [
        Line(f"{NAIVE}, one stop, all layers, {SHOWN}", paper.NAIVE_KV_S, each("lost_s", NAIVE, overlap=False)[SHOWN], "s",
             "simulated", note),
        Line(f"{NAIVE}, one stop, all layers, {SHOWN}, the paper's room", paper.NAIVE_KV_S,
             in_paper_room("lost_s", NAIVE, overlap=False), "s", "simulated", "0.9 GB of KV cache a device"),
    ]  # fmt: skip
    for layout in (PAPER, OURS):
        whose = "the paper's" if layout == PAPER else "ours"
        lines += [
            Line(f"{layout} ({whose}) in place, largest cut of five models", paper.KV_IN_PLACE, cut(layout, overlap=False),
                 "share", "simulated"),
            Line(f"{layout} with overlap, largest cut of five models", paper.KV_OVERLAP, cut(layout, overlap=True), "share",
                 "simulated"),
            Line(f"extra memory of {layout} against {NAIVE}, largest cut", paper.KV_EXTRA_MEMORY, memory(layout), "share",
                 "simulated"),
            Line(f"extra memory of {layout}, worst of five models", (0.0, paper.KV_EXTRA_BYTES),
                 max(each("extra_bytes", layout, overlap=True).values()), "bytes", "simulated",
                 "a step's copies, of a KV cache many times the paper's"),
            Line(f"extra memory of {layout}, {SHOWN}, the paper's room", (0.0, paper.KV_EXTRA_BYTES),
                 in_paper_room("extra_bytes", layout, overlap=True), "bytes", "simulated"),
        ]  # fmt: skip
        found = [r["of_token_first"] - 1 for r in measured if r["layout"] == layout]
        lines.append(
            Line(f"{layout} in place, largest cut of the shapes measured", paper.KV_IN_PLACE, min(found, default=None), "share",
                 "measured on a CPU" if found else "not measured")
        )  # fmt: skip
    return lines


_READINGS = (
    paper.DOUBTFUL["kv time"],
    "90 % full is of our room: 65K tokens of Qwen2.5-32B on an H20. Of the paper's room it would be a nineteenth of that.",
    "Naive is token-first: a shard's data is scattered in every page, so what stays is compacted before pages can be given back.",
)

_COLOURS = {NAIVE: GREY, "page-friendly": ORANGE, PAPER: SKY, OURS: BLUE}


def draw(data: Data) -> Figure:
    figure = new_figure(11.0, 7.0)
    panels = figure.subplots(2, 2).flat
    figure.get_layout_engine().set(hspace=0.08, wspace=0.05)
    _bars(panels[0], data, "lost_s", 1e3, overlap=False)
    panels[0].set_title("in one stop", fontsize=9)
    panels[0].set_ylabel("serving time lost, ms")
    _bars(panels[1], data, "lost_s", 1e3, overlap=True)
    panels[1].set_title("with the overlap: slower steps", fontsize=9)
    panels[1].set_ylabel("serving time lost, ms")
    _bars(panels[2], data, "extra_bytes", 1e-6, overlap=True)
    panels[2].axhline(paper.KV_EXTRA_BYTES / 1e6, color=VERMILLION, ls="--", lw=1, label="the paper's: under 70 MB")
    panels[2].legend(frameon=False, fontsize=8, loc="upper center")
    panels[2].set_title("memory beyond before and after, worst device, with the overlap", fontsize=9)
    panels[2].set_ylabel("MB")
    _measured_bars(panels[3], data)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    figure.suptitle(
        f"KV cache {FILL:.0%} full, {DEGREE} x TP1 -> TP{DEGREE}; simulated unless it says measured", fontsize=10
    )
    return figure


def _bars(axes: Axes, data: Data, column: str, scale: float, *, overlap: bool) -> None:
    models = list(paper.MODELS)
    for shift, layout in enumerate(LAYOUTS):
        rows = data.where(part="simulated", layout=layout, overlap=overlap)
        x = [models.index(row["model"]) + 0.2 * (shift - 1.5) for row in rows]
        label = layout if column == "lost_s" else None
        axes.bar(x, [scale * row[column] for row in rows], width=0.19, color=_COLOURS[layout], label=label)
    tidy(axes)
    model_names(axes, models)


def _measured_bars(axes: Axes, data: Data) -> None:
    rows = data.where(part="measured")
    axes.set_title("measured on a CPU, one stop: KV stage, of token-first's", fontsize=9)
    tidy(axes)
    if not rows:
        not_measured(axes)
        return
    models = list(dict.fromkeys(row["model"] for row in rows))
    for shift, layout in enumerate(LAYOUTS):
        mine = [row for row in rows if row["layout"] == layout]
        x = [models.index(row["model"]) + 0.2 * (shift - 1.5) for row in mine]
        axes.bar(x, [100 * row["of_token_first"] for row in mine], width=0.19, color=_COLOURS[layout])
    axes.set_ylabel("%, per byte of KV cache")
    model_names(axes, models)


FIGURES.add(
    "kv-transformation",
    FigureKind("Transforming the KV cache: layout and overlap", "transformation", "section 2, KV cache", make, draw),
)

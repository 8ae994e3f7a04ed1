"""The benchmark as a whole: which parts, with what, and which goals were reached. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gyges.bench.transform.micro import COPY_BYTES, MicroConfig, find_cell, measure_micro, paired_ratio
from gyges.bench.transform.padding import GEMM_ROWS, PAPER_SHARE, measure_padding
from gyges.bench.transform.pause import PauseConfig, measure_pause
from gyges.bench.transform.shapes import SHAPES
from gyges.config import available_cores
from gyges.errors import UnknownNameError, UserError
from gyges.kv_cache.layouts import LAYOUTS

Progress = Callable[[str], None]
Document = dict[str, Any]

MICRO, PAUSE, PADDING = "micro", "pause", "padding"
PARTS = (MICRO, PAUSE, PADDING)
REAL_SHAPES = tuple(name for name, shape in SHAPES.items() if not shape.is_preset)


@dataclass(frozen=True, slots=True)
class TransformConfig:
    """What to measure. Raises UserError for unknown names and impossible values.

    models: shapes of the micro-benchmark.   pause_models: presets that serve requests.   gemm_models: shapes whose FFN is timed.
    fills: shares of a TP1 instance's KV cache.   degrees: what TP1 instances are merged to.
    device_memory, page_bytes: of the micro-benchmark; pause_memory: of the engines. Bytes; 0 chooses.
    copy_bytes: each buffer of the memcpy it is compared with.   gemm_s: seconds that each FFN comparison may take.
    """

    models: tuple[str, ...] = tuple(SHAPES.names())
    pause_models: tuple[str, ...] = ("tiny",)
    gemm_models: tuple[str, ...] = ("small", "llama2-7b")
    layouts: tuple[str, ...] = tuple(LAYOUTS.names())
    pause_layouts: tuple[str, ...] = ()
    fills: tuple[float, ...] = (0.1, 0.5, 0.9)
    degrees: tuple[int, ...] = (4,)
    repeats: int = 2
    parts: tuple[str, ...] = PARTS
    seed: int = 0
    device_memory: int = 0
    page_bytes: int = 0
    pause_memory: int = 0
    copy_bytes: int = COPY_BYTES
    gemm_rows: tuple[int, ...] = GEMM_ROWS
    gemm_s: float = 2.0

    def __post_init__(self) -> None:
        for name in self.models + self.pause_models + self.gemm_models:
            SHAPES.get(name)
        for layout in self.layouts + self.pause_layouts:
            LAYOUTS.get(layout)
        for part in self.parts:
            if part not in PARTS:
                raise UnknownNameError("part", part, PARTS)
        for what in ("models", "layouts", "fills", "degrees", "parts"):
            if not getattr(self, what):
                raise UserError(f"give at least one of --{what}")
        if not all(0 < fill <= 1 for fill in self.fills):
            raise UserError(
                f"KV fills are percentages above 0 and up to 100, got {[100 * fill for fill in self.fills]}"
            )
        if not all(degree > 1 for degree in self.degrees):
            raise UserError(f"degrees to merge to are at least 2, got {self.degrees}")
        if self.repeats < 1:
            raise UserError(f"repeats must be at least 1, got {self.repeats}")

    @property
    def micro(self) -> MicroConfig:
        return MicroConfig(
            self.models, self.layouts, self.fills, self.degrees, self.repeats, self.seed, self.device_memory,
            self.page_bytes, self.copy_bytes,
        )  # fmt: skip

    def pause(self, model: str) -> PauseConfig:
        layouts = self.pause_layouts or self.layouts
        fills = tuple(fill for fill in self.fills if fill <= 0.92)
        if not fills:
            raise UserError(
                "requests that run need some KV cache to grow into: give --fills of 92 or less for part pause"
            )
        return PauseConfig(
            model, layouts, fills, max(self.degrees), self.repeats, self.seed, device_memory=self.pause_memory
        )


# What `--quick` changes: a minute, enough to see that everything works and roughly where it stands.
QUICK: dict[str, Any] = {
    "models": ("tiny", "llama3-8b"),
    "fills": (0.9,),
    "gemm_models": ("small",),
    "pause_layouts": ("token-first", "shard-pages"),
    "pause_memory": 16 << 20,
    "repeats": 1,
}


def bench_transform(config: TransformConfig, progress: Progress) -> Document:
    """Everything; minutes. Nothing that was started outlives the call. Raises EngineError where something went wrong that makes
    figures worthless: wrong content after a copy, a worker that broke."""
    document: Document = {"configuration": asdict(config), "cores": available_cores()}
    pauses = [config.pause(model) for model in config.pause_models] if PAUSE in config.parts else []
    document[MICRO] = measure_micro(config.micro, progress) if MICRO in config.parts else None
    document[PAUSE] = {"models": [measure_pause(each, progress) for each in pauses]} if pauses else None
    document[PADDING] = None
    if PADDING in config.parts:
        document[PADDING] = measure_padding(
            REAL_SHAPES, config.gemm_models, progress, rows=config.gemm_rows, budget_s=config.gemm_s
        )
    document["goals"] = goals(document)
    return document


# -- goals ------------------------------------------------------------------------------------------------------------

_OURS = ("shard-pages", "header-centric")
_FASTER, _OF_MEMCPY, _WEIGHTS_FASTER, _EXTRA, _SHORTER, _GAP, _SLOWDOWN = 2.5, 0.6, 20.0, 0.05, 0.86, 2.0, 0.01


def goals(document: Mapping[str, Any]) -> list[Document]:
    """Each goal with what was reached by the worst of the models (``where``; all are in ``each``); ``met`` is None where it was
    not measured. Medians decide. Goals of the micro-benchmark stand twice: for real shapes, and for presets, whose small pages
    make bookkeeping weigh more than copying."""
    found = []
    if document[MICRO] is not None:
        models = document[MICRO]["models"]
        for group in (
            [m for m in models if not SHAPES.get(m["model"]).is_preset],
            [m for m in models if SHAPES.get(m["model"]).is_preset],
        ):
            if group:
                found += _micro_goals(group)
    if document[PAUSE] is not None:
        for result in document[PAUSE]["models"]:
            found += _pause_goals(result)
    if document[PADDING] is not None:
        found += _padding_goals(document[PADDING])
    return found


def _goal(
    name: str, aim: str, limit: float, each: Mapping[str, Document | None], unit: str, *, least: bool = True
) -> Document:
    """``each``: median, min and max by model (or whatever was measured); the worst one counts."""
    known = {where: value for where, value in each.items() if value is not None}
    goal: Document = {"name": name, "aim": aim, "limit": limit, "unit": unit, "each": dict(each)}
    if not known:
        return goal | {"reached": None, "min": None, "max": None, "where": "", "met": None}
    worst = (min if least else max)(known, key=lambda where: known[where]["median"])
    value = known[worst]
    met = value["median"] >= limit if least else value["median"] <= limit
    return goal | {"reached": value["median"], "min": value["min"], "max": value["max"], "where": worst, "met": met}


def _exactly(value: float) -> Document:
    return {"median": value, "min": value, "max": value}


def _micro_goals(group: Sequence[Document]) -> list[Document]:
    """At the highest fill; a merge."""
    names = [m["model"] if len({n["degree"] for n in group}) == 1 else f"{m['model']} TP{m['degree']}" for m in group]

    def each(figure: Callable[[Document], Document | None]) -> dict[str, Document | None]:
        return {name: figure(model) for name, model in zip(names, group, strict=True)}

    def cell(model: Document, layout: str, *, padding: bool) -> Document | None:
        fill = max(c["fill"] for c in model["cells"])
        return find_cell(model, layout=layout, padding=padding, kind="merge", fill=fill)

    def weights_bytes(model: Document) -> Document | None:
        copied = [
            c["weights_moved_bytes"] + c["weights_local_bytes"]
            for c in model["cells"]
            if c["padding"] and c["kind"] == "merge"
        ]
        return _exactly(max(copied)) if copied else None

    def weights_speed(model: Document) -> Document | None:
        ratios = [
            paired_ratio(cell(model, layout, padding=False), cell(model, layout, padding=True), "weights_s")
            for layout in {c["layout"] for c in model["cells"]}
        ]
        known = [ratio for ratio in ratios if ratio is not None]
        return min(known, key=lambda ratio: ratio["median"]) if known else None

    def speed(layout: str) -> Callable[[Document], Document | None]:
        return lambda m: paired_ratio(cell(m, "token-first", padding=True), cell(m, layout, padding=True), "kv_s")

    def of_memcpy(layout: str) -> Callable[[Document], Document | None]:
        return lambda m: (cell(m, layout, padding=True) or {}).get("of_memcpy")

    def descriptors(model: Document) -> Document | None:
        found = cell(model, "shard-pages", padding=True)
        return _exactly(found["kv_descriptors"] / found["moved_pairs"]) if found and found["moved_pairs"] else None

    def extra(layout: str) -> Callable[[Document], Document | None]:
        def of(model: Document) -> Document | None:
            found = cell(model, layout, padding=True)
            return _exactly(found["extra_share"]) if found else None

        return of

    found = [
        _goal("FFN bytes copied, merge, padded", "none", 0, each(weights_bytes), "bytes", least=False),
        _goal("FFN merge, padded over packed", "at least 20x", _WEIGHTS_FASTER, each(weights_speed), "ratio"),
    ]
    for layout in _OURS:
        found.append(_goal(f"KV: {layout} / token-first", "at least 2.5x", _FASTER, each(speed(layout)), "ratio"))
    for layout in _OURS:
        found.append(_goal(f"KV: {layout}, of memcpy", "at least 60%", _OF_MEMCPY, each(of_memcpy(layout)), "share"))
    found.append(_goal("KV: copies per (block, shard)", "1", 1.0, each(descriptors), "count", least=False))
    for layout in _OURS:
        name = f"extra memory, {layout}"
        found.append(_goal(name, "under 5%", _EXTRA, each(extra(layout)), "share", least=False))
    return found


def _pause_goals(result: Document) -> list[Document]:
    """At the highest fill, padding on, of the layouts whose shards leave whole."""
    cells = [c for c in result["cells"] if c["padding"] and c["layout"] in _OURS]
    top = max((c["asked_fill"] for c in cells), default=0.0)
    by = {(c["layout"], c["kind"], c["overlap"]): c for c in cells if c["asked_fill"] == top}
    layouts = [layout for layout in _OURS if any(key[0] == layout for key in by)]

    def shorter(kind: str, figure: str) -> dict[str, Document | None]:
        each: dict[str, Document | None] = {}
        for layout in layouts:
            on, off = by.get((layout, kind, True)), by.get((layout, kind, False))
            each[layout] = _reduction(off[figure]["values"], on[figure]["values"]) if on and off else None
        return each

    def gap(kind: str) -> dict[str, Document | None]:
        return {layout: (by.get((layout, kind, True)) or {}).get("gap_over_merged") for layout in layouts}

    found = []
    for kind in ("merge", "split"):
        found.append(
            _goal(f"pause, {kind}: cut by overlap", "at least 86%", _SHORTER, shorter(kind, "pause_s"), "share")
        )
        found.append(
            _goal(f"max gap, {kind}: cut by overlap", "at least 86%", _SHORTER, shorter(kind, "max_gap_s"), "share")
        )
        found.append(_goal(f"max gap, {kind}: of merged gap", "at most 2x", _GAP, gap(kind), "ratio", least=False))
    same = result["same_tokens"]["tokens"]
    each = {result["model"]: None if same is None else _exactly(same)}
    return [*found, _goal("same tokens in all cells", "all", 1.0, each, "share")]


def _reduction(off: Sequence[float], on: Sequence[float]) -> Document | None:
    """1 - on / off of paired repeats."""
    from gyges.bench.run import spread

    return spread([1 - a / b for a, b in zip(on, off, strict=False) if b > 0])


def _padding_goals(result: Document) -> list[Document]:
    slower: dict[str, Document | None] = {f"{g['model']} x {g['rows']}": g["slowdown"] for g in result["gemm"]}
    share: dict[str, Document | None] = {
        f"{m['model']} TP{m['max_degree']}": _exactly(m["share_of_weights"]) for m in result["memory"]
    }
    return [
        _goal("FFN time, padded over packed", "under 1% more", _SLOWDOWN, slower, "share", least=False),
        _goal(
            "weight memory of padding", f"paper: to {PAPER_SHARE[1]:.0%}", PAPER_SHARE[1], share, "share", least=False
        ),
    ]


def memcpy_drift(document: Mapping[str, Any]) -> float:
    """Largest relative distance of a memcpy rate from its model's median: how unsteady the machine was."""
    rates = [m["memcpy"]["all_bytes_per_s"] for m in (document[MICRO] or {"models": []})["models"]]
    return max((max(r["max"] / r["median"] - 1, 1 - r["min"] / r["median"]) for r in rates), default=0.0)

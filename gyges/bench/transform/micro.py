"""Merges and splits on real pages and processes, without a model: every layout, padding on and off, several KV fills.

A visit fills the devices, merges all of them into one instance, looks whether everything is there, and splits it again. Repeats
are interleaved (all combinations, then all combinations again), and numpy's memcpy is measured around every group of visits, by
as many processes at the same time: four workers on two cores have no more bandwidth than that.

    total_s      of the worker that took longest, from a common start
    kv_s         of it, the stage that moves KV blocks: maps, copies, unmaps, waits of the worker that took longest
    weights_s    the same for the stage of the FFN weights
    parts        where the time went: the mean over workers, so that the parts of a cell add up to its time
    plan_s       composing the program, which the controller does while everybody waits
    extra        memory beyond the larger of before and after, on the worker that needed most; share: of its KV cache in use
    at_once      the same if all KV blocks were copied before any is given up, instead of in rounds
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gyges.bench.run import spread
from gyges.bench.transform.cell import Cell, Program, make_cell
from gyges.bench.transform.crew import Crew
from gyges.bench.transform.shapes import SHAPES, Sizing, sizing
from gyges.bench.transform.tasks import Case, Check, MemCopy, Prepare, Run
from gyges.config import format_bytes
from gyges.errors import EngineError, UserError
from gyges.transform.ops import Barrier, pack_ids

Progress = Callable[[str], None]
Document = dict[str, Any]

# What a bar is stacked of, and of which fields of gyges.transform.device.Spent.
PARTS = {
    "map": ("map_s",),
    "unmap": ("unmap_s",),
    "copy": ("peer_copy_s",),
    "compaction": ("local_copy_s",),
    "weights": ("weights_s",),
    "communicator": ("communicator_s",),
    "wait": ("wait_s",),
}
REST = "other"  # the workers' own arithmetic: which pages, which runs

_CHECKED_BLOCKS = 8  # of each narrow instance, in full, on each worker
_COPIES = 3
COPY_BYTES = 256 << 20  # so much that libc's memcpy writes past the cache, which is the fastest it does


@dataclass(frozen=True, slots=True)
class MicroConfig:
    """Bytes; 0 chooses. ``copy_bytes``: each of two buffers of a process."""

    models: tuple[str, ...]
    layouts: tuple[str, ...]
    fills: tuple[float, ...]
    degrees: tuple[int, ...]
    repeats: int
    seed: int
    device_memory: int = 0
    page_bytes: int = 0
    copy_bytes: int = COPY_BYTES


def measure_micro(config: MicroConfig, progress: Progress) -> Document:
    """One entry per model and degree. Raises EngineError if a copy went wrong, ChildError if a worker broke."""
    results = []
    for degree in config.degrees:
        sizes = {}
        for name in config.models:
            if reason := SHAPES.get(name).geometry.tp_degree_error(degree):
                raise UserError(f"{name} cannot be merged to TP{degree}: {reason}; leave one of them out")
            sizes[name] = sizing(name, degree, page_bytes=config.page_bytes, device_memory=config.device_memory)
        with Crew(degree) as crew:
            progress(f"micro: {degree} worker processes started")
            results += [_measure_model(config, crew, name, degree, size, progress) for name, size in sizes.items()]
    return {"models": results}


def _measure_model(
    config: MicroConfig, crew: Crew, name: str, degree: int, size: Sizing, progress: Progress
) -> Document:
    crew.open(size.page_bytes, size.device_pages)
    whole = SHAPES.get(name).geometry
    cells = {
        (layout, padding, fill): make_cell(
            Case(size.model, size.page_bytes, size.device_pages, degree, layout, padding), fill
        )
        for fill in config.fills
        for layout in config.layouts
        for padding in (True, False)
    }
    visits: dict[tuple[str, bool, float], list[Document]] = defaultdict(list)
    copies = []
    for repeat in range(config.repeats):
        for fill in config.fills:
            before = _mem_copy(crew, config)
            group = {key: cell for key, cell in cells.items() if key[2] == fill}
            for key, cell in group.items():
                visits[key].append(_visit(crew, cell, config.seed + repeat))
            after = _mem_copy(crew, config)
            copies += [before, after]
            rate = statistics.fmean([before["all_bytes_per_s"], after["all_bytes_per_s"]])
            for key in group:
                visits[key][-1]["copy_bytes_per_s"] = rate
            took = sum(visits[key][-1][kind]["total_s"] for key in group for kind in ("merge", "split"))
            progress(
                f"micro: {name}, TP1 <-> TP{degree}, {fill:.0%} full, repeat {repeat + 1} of {config.repeats}: "
                f"{2 * len(group)} transformations in {took:.1f} s, memcpy {rate / 1e9:.1f} GB/s"
            )
    return {
        "model": name,
        "source": SHAPES.get(name).source,
        "degree": degree,
        "layers": size.model.num_layers,
        "layers_uncut": whole.num_layers,
        "item_size": size.model.item_size,
        "page_bytes": size.page_bytes,
        "device_bytes": size.device_pages * size.page_bytes,
        "memcpy": {
            "processes": degree,
            "buffer_bytes": config.copy_bytes,
            "all_bytes_per_s": spread([c["all_bytes_per_s"] for c in copies]),
            "one_bytes_per_s": spread([c["one_bytes_per_s"] for c in copies]),
        },
        "cells": [
            _cell_result(cells[key], kind, visits[key], size.page_bytes) for key in cells for kind in ("merge", "split")
        ],
    }


def _mem_copy(crew: Crew, config: MicroConfig) -> Document:
    """Bytes copied per second: by all workers at the same time, together, and by one alone."""
    rates = {}
    for name, members in (("all", tuple(range(crew.size))), ("one", (0,))):
        results = crew.ask(MemCopy(members, config.copy_bytes, _COPIES))
        slowest = max(result["seconds"] for result in results)
        rates[f"{name}_bytes_per_s"] = len(members) * _COPIES * config.copy_bytes / slowest
    return rates


def _visit(crew: Crew, cell: Cell, seed: int) -> Document:
    crew.ask([Prepare(cell.case, pack_ids(blocks), seed) for blocks in cell.blocks])
    found = {}
    for program in (cell.merge, cell.split):
        results = crew.ask(Run(program.ops))
        _check(crew, cell, program)
        found[program.kind] = _figures(program, results)
    return found


def _check(crew: Crew, cell: Cell, program: Program) -> None:
    tasks = [
        Check(
            [(n, pack_ids(ids)) for n, ids in enumerate(program.blocks) if worker in program.holders[n]],
            _CHECKED_BLOCKS,
        )
        for worker in range(crew.size)
    ]
    for worker, answer in enumerate(crew.ask(tasks)):
        if answer["wrong_blocks"] or answer["wrong_units"]:
            raise EngineError(
                f"after a {program.kind} ({cell.case.layout}, padding {cell.case.padding}, {cell.fill:.0%} full) worker "
                f"{worker} has {answer['wrong_blocks']} KV blocks and {answer['wrong_units']} FFN units with wrong content"
            )


def _figures(program: Program, results: Sequence[Document]) -> Document:
    """Of one transformation; bytes, descriptors and pages are sums over workers but for the extra pages."""
    found: Document = {name: max(r[name] for r in results) for name in ("total_s", "weights_stage_s", "kv_stage_s")}
    for reduce, name in ((statistics.fmean, "parts"), (max, "parts_max")):
        found[name] = {part: reduce([sum(r[f] for f in fields) for r in results]) for part, fields in PARTS.items()}
    found["parts"][REST] = max(0.0, statistics.fmean(r["total_s"] for r in results) - sum(found["parts"].values()))
    for name in (
        "kv_peer_bytes", "kv_local_bytes", "weights_peer_bytes", "weights_local_bytes", "kv_descriptors",
        "weights_descriptors", "mapped_pages", "unmapped_pages",
    ):  # fmt: skip
        found[name] = sum(r[name] for r in results)
    found["extra_pages"] = max(r["peak_pages"] - max(r["start_pages"], r["end_pages"]) for r in results)
    found["at_once_pages"] = max(0, *(r["at_once_pages"] - max(r["start_pages"], r["end_pages"]) for r in results))
    found["plan_s"] = program.plan_s
    return found


def _cell_result(cell: Cell, kind: str, visits: Sequence[Document], page_bytes: int) -> Document:
    """A row of the document; what does not vary between repeats is taken from the last."""
    program = cell.merge if kind == "merge" else cell.split
    runs = [visit[kind] for visit in visits]
    last = runs[-1]
    rates = [visit["copy_bytes_per_s"] for visit in visits]
    moved = last["kv_peer_bytes"]
    return {
        "layout": cell.case.layout,
        "padding": cell.case.padding,
        "fill": cell.fill,
        "kind": kind,
        "total_s": spread([run["total_s"] for run in runs]),
        "kv_s": spread([run["kv_stage_s"] for run in runs]),
        "weights_s": spread([run["weights_stage_s"] for run in runs]),
        "plan_s": program.plan_s,
        "parts": {part: spread([run["parts"][part] for run in runs]) for part in last["parts"]},
        "parts_max": {part: spread([run["parts_max"][part] for run in runs]) for part in last["parts_max"]},
        "kv_bytes": cell.kv_bytes,
        "kv_moved_bytes": moved,
        "kv_compacted_bytes": last["kv_local_bytes"],
        "kv_descriptors": last["kv_descriptors"],
        "moved_pairs": program.moved_pairs,
        "weights_moved_bytes": last["weights_peer_bytes"],
        "weights_local_bytes": last["weights_local_bytes"],
        "weights_descriptors": last["weights_descriptors"],
        "pages": last["mapped_pages"] + last["unmapped_pages"],
        "rounds": sum(isinstance(op, Barrier) for op in program.ops),
        "kv_bytes_per_s": spread([moved / run["kv_stage_s"] for run in runs]),
        "of_memcpy": spread([moved / run["kv_stage_s"] / rate for run, rate in zip(runs, rates, strict=True)]),
        "extra_bytes": last["extra_pages"] * page_bytes,
        "extra_share": last["extra_pages"] / program.kv_pages,
        "at_once_share": last["at_once_pages"] / program.kv_pages,
    }


def find_cell(result: Mapping[str, Any], **wanted: Any) -> Document | None:
    """The cell of one model's entry with these values."""
    return next((cell for cell in result["cells"] if all(cell[k] == v for k, v in wanted.items())), None)


def paired_ratio(numerator: Document | None, denominator: Document | None, name: str) -> Document | None:
    """Of one figure of two cells, repeat by repeat, per byte of KV content in use where it is about KV."""
    if numerator is None or denominator is None:
        return None
    scale = denominator["kv_bytes"] / numerator["kv_bytes"] if name == "kv_s" else 1.0
    pairs = zip(numerator[name]["values"], denominator[name]["values"], strict=True)
    return spread([scale * a / b for a, b in pairs if b > 0])


def describe(result: Mapping[str, Any]) -> str:
    """What was cut, for a heading."""
    cut = "" if result["layers"] == result["layers_uncut"] else f" of {result['layers_uncut']}"
    dtype = {2: "bf16", 4: "fp32"}[result["item_size"]]
    pages = f"{format_bytes(result['page_bytes'])} pages"
    return f"{result['model']}, {result['layers']}{cut} layers, {dtype}, {pages}, TP1 <-> TP{result['degree']}"

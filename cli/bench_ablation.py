"""What ``gyges bench ablation`` does: a grid of cells, each a replay on an engine of its own -> table, plots, report."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cli.bench_run import timed_requests
from cli.bench_tables import stopwatch, table
from cli.render import seconds
from gyges.bench.ablation.axes import AXES, parse_set
from gyges.bench.ablation.backend import backend
from gyges.bench.ablation.document import build
from gyges.bench.ablation.grid import KINDS, Grid
from gyges.bench.ablation.run import AblationConfig, MakeWork, Planned, estimate_s, find_done, plan, run_cells
from gyges.bench.ablation.table import Column, columns, footnotes, label, write_tables
from gyges.bench.ablation.work import Work
from gyges.errors import UserError
from gyges.metrics.results import ResultFolder
from gyges.models.hub import resolve_model
from gyges.sim.models import sim_model
from workloads import transforms
from workloads.load import load_trace
from workloads.options import TraceOptions

KIND = "ablation"


def grid_of(sets: Sequence[str], *, full: bool, kinds: str | None) -> Grid:
    """Raises UserError for what cannot be read."""
    values = [parse_set(text) for text in sets]
    names = [name for name, _ in values]
    if len(set(names)) < len(names):
        raise UserError("--set names an axis twice; give all its values at once: --set rate=1,2")
    if full and kinds:
        raise UserError("--full is every combination, --cells a choice of them; give one")
    chosen = tuple(part.strip() for part in kinds.split(",") if part.strip()) if kinds else KINDS
    return Grid(dict(values), full, chosen)


def work_maker(trace_spec: str, options: TraceOptions, config: AblationConfig) -> MakeWork:
    """Requests of a cell from the settings of the trace's axes; token ids that every model of the grid knows."""
    base = config.base
    models = config.grid.sets.get("model", (base.model,))
    if backend(config.backend).simulated:
        vocab = min(sim_model(name).geometry.vocab_size for name in models)
    else:
        resolved = [resolve_model(name, revision=base.revision) for name in models]
        vocab = min(model.config.geometry("float32").vocab_size for model in resolved)

    def make(settings: Mapping[str, str], long_over: int | None) -> Work:
        values = {name: AXES.get(name).read(text) for name, text in settings.items()}
        named = {n.replace("-", "_"): v for n, v in values.items() if n not in ("trace", "rate", "long-share")}
        chosen = replace(options, **named)
        trace = load_trace(str(values.get("trace", trace_spec)), chosen)
        if "long-share" in values:
            if long_over is None:
                raise UserError(
                    "what is long is not known, since no engine of this environment can work; see --dry-run"
                )
            trace = transforms.long_share(trace, values["long-share"], long_over, chosen.seed)
        if "rate" in values:
            trace = transforms.rate(trace, values["rate"])
        return Work(timed_requests(trace, vocab, chosen.seed), trace.content_sha256, chosen.seed, trace.manifest())

    return make


def ablation_command(
    console: Console,
    *,
    config: AblationConfig,
    make_work: MakeWork,
    out: Path | None,
    dry_run: bool,
) -> dict[str, Any]:
    """Returns ablation.json's fields plus ``state``, ``folder``, ``plots`` and ``report``; of a dry run the grid and its time."""
    planned = plan(config, make_work)
    if dry_run:
        if out is not None:
            find_done(planned, out, config.repeats)
        return _dry_run(console, config, planned, out)
    started = time.monotonic()
    with _open(out, config, planned) as folder:
        find_done(planned, folder.path, config.repeats)
        left = estimate_s(config, planned, folder.path)
        console.print(
            f"{len(planned)} cells, {config.repeats} repeats, about {seconds(left)}; results: {folder.path}",
            soft_wrap=True,
            highlight=False,
        )
        whole = run_cells(config, planned, folder.path, sys.argv, stopwatch())
        document = build(config, planned, folder.path)
        document["duration_s"] = time.monotonic() - started
        folder.write_json("ablation.json", document)
        write_tables(folder.path, document)
        from gyges.bench.ablation.plot import write_plots

        plots = write_plots(folder.plots, document, folder.path)
        state, reason = _state(document, whole)
        folder.finish(state, reason)
        from gyges.report.page import write_report

        report = write_report(folder.path)
    render(console, document)
    console.print(f"plots:   {folder.plots}", soft_wrap=True, highlight=False)
    console.print(f"report:  {report}", soft_wrap=True, highlight=False)
    return {
        **document,
        "state": state,
        "reason": reason,
        "folder": str(folder.path),
        "plots": [str(path) for path in plots],
        "report": str(report),
    }


def _state(document: Mapping[str, Any], whole: bool) -> tuple[Any, str | None]:
    if not whole:
        return "partial", "interrupted; the same command with --out goes on where it was"
    failed = [cell["name"] for cell in document["cells"] if len(cell["repeats"]) < document["repeats"]]
    if len(failed) == len(document["cells"]):
        return "failed", "no cell could be run"
    return "complete", f"cells that failed: {'; '.join(failed)}" if failed else None


def _open(out: Path | None, config: AblationConfig, planned: Sequence[Planned]) -> ResultFolder:
    """A new folder, or the one of an ablation that goes on."""
    first = planned[0].work
    about: dict[str, Any] = {
        "configuration": config.to_dict(),
        "seed": first.seed,
        "trace": dict(first.trace),
        "trace_sha256": first.sha256 if len({each.work.sha256 for each in planned}) == 1 else None,
    }
    if out is not None and (out / "manifest.json").is_file():
        return ResultFolder.reopen(out, KIND, **about)
    return ResultFolder.create(out, KIND, **about)


def _dry_run(console: Console, config: AblationConfig, planned: Sequence[Planned], out: Path | None) -> dict[str, Any]:
    names = list(dict.fromkeys(name for each in planned for name in each.cell.settings))
    grid = table(f"{len(planned)} cells, {config.repeats} repeats")
    for head in ("cell", *names, "done"):
        grid.add_column(head, no_wrap=head == "done")
    for each in planned:
        settings = [each.cell.settings.get(name, "") for name in names]
        grid.add_row(escape(each.cell.name), *map(escape, settings), f"{len(each.done)}/{config.repeats}")
    console.print(grid)
    for each in planned:
        if each.error:
            console.print(f"[bold red]{escape(each.cell.name)} cannot run[/]: {escape(each.error)}", highlight=False)
    left = estimate_s(config, planned, out)
    console.print(f"estimated time: {seconds(left)}", highlight=False)
    return {
        "cells": [
            {
                "name": each.cell.name,
                "settings": dict(each.cell.settings),
                "reference": None if each.cell.reference == each.cell.name else each.cell.reference,
                "done": len(each.done),
                "error": each.error or None,
            }
            for each in planned
        ],
        "repeats": config.repeats,
        "estimated_s": left,
        "state": "dry run",
    }


def render(console: Console, document: Mapping[str, Any]) -> None:
    """The table in as many blocks as the width asks for; footnotes below."""
    for block in blocks(document, console.width):
        console.print(block)
    for note in footnotes(document):
        console.print(f"[dim]{escape(note)}[/]", highlight=False)


def blocks(document: Mapping[str, Any], width: int) -> list[Table]:
    """Columns are taken as long as they fit ``width``; each block begins with the cells' names."""
    labels = [label(cell) for cell in document["cells"]]
    first = max(map(len, (*labels, "cell"))) + 2
    packed: list[list[Column]] = []
    left = 0
    for column in columns(document):
        size = max(map(len, (*_head(column), *column.text))) + 2
        if not packed or size > left:
            packed.append([])
            left = width - first
        packed[-1].append(column)
        left -= size
    found = []
    for index, group in enumerate(packed):
        block = table("" if index else "Ablation")
        block.add_column("cell", no_wrap=True)
        for column in group:
            block.add_column("\n".join(_head(column)), justify="right", no_wrap=True)
        for row, name in enumerate(labels):
            block.add_row(escape(name), *(escape(column.text[row]) for column in group))
        found.append(block)
    return found


def _head(column: Column) -> list[str]:
    """The widest word in two: no figure is as wide."""
    return "\n".join(column.head).replace("transformations", "transfor-\nmations").split("\n")

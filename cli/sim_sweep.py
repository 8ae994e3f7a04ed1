"""What ``gyges sim sweep`` does: every combination of some options of ``gyges sim run`` -> a folder of runs, one table.

A cell is a ``gyges sim run`` in another process; it is kept by the hash of what it depends on, so the same command with the same
folder goes on where it was, and so does one with more values.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from cli.bench_tables import stopwatch, table
from cli.render import number, percent, seconds
from cli.sim_cell import UsageError, run_cell, run_command
from gyges.bench.ablation.run import code_digest
from gyges.errors import UnknownNameError, UserError
from gyges.metrics.atomic import write_bytes, write_json
from gyges.metrics.results import ResultFolder, load_manifest
from gyges.sim.executors import Executor

KIND = "sim-sweep"
_OWN = ("out", "json")  # of a run, decided by the sweep
# name -> where it stands in summary.json
FIGURES: dict[str, tuple[str, ...]] = {
    "offered": ("requests", "offered"),
    "completed": ("requests", "completed"),
    "output_tokens_per_s": ("throughput", "output_tokens_per_s"),
    "ttft_p50_s": ("ttft_s", "p50"),
    "ttft_p99_s": ("ttft_s", "p99"),
    "tpot_p50_s": ("tpot_s", "p50"),
    "tpot_p99_s": ("tpot_s", "p99"),
    "goodput": ("goodput", "fraction"),
    "merges": ("transformations", "merges"),
    "splits": ("transformations", "splits"),
    "preemptions": ("preemptions",),
}


@dataclass(slots=True)
class Cell:
    """``settings``: option -> value, as written.   arguments: of ``gyges sim run``.   error: why it could not be run."""

    settings: Mapping[str, str]
    arguments: list[str]
    key: str
    error: str = ""
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return ", ".join(f"{option}={value}" for option, value in self.settings.items())

    @property
    def slug(self) -> str:
        """Of its folder; the hash tells apart what only differs in signs."""
        return re.sub(r"[^A-Za-z0-9.+=-]+", "-", self.name)[:80].strip("-") + "-" + self.key[:8]


def plan(sets: Sequence[str], rest: Sequence[str]) -> list[Cell]:
    """The product of ``sets`` ("policy=static,gyges"), each with the options of ``rest``. Everything is parsed, nothing run.

    Raises UserError for what ``gyges sim run`` does not know.
    """
    command = run_command()
    options = {name.lstrip("-"): option for option in command.params for name in option.opts if name.startswith("--")}
    values: dict[str, list[str]] = {}
    for text in sets:
        name, equals, listed = (part.strip() for part in text.partition("="))
        found = [value.strip() for value in listed.split(",") if value.strip()]
        if not equals or not found:
            raise UserError(f"cannot read --set {text!r}; write for example --set policy=static,gyges")
        if name not in options or name in _OWN:
            raise UnknownNameError("option of gyges sim run", name, [each for each in options if each not in _OWN])
        if name in values or len(set(found)) < len(found):
            raise UserError(f"--set names {name} or one of its values twice; give each value once: --set {name}=A,B")
        values[name] = found
    if not values:
        raise UserError("nothing varies; give at least one --set, for example --set policy=static,gyges")
    cells = []
    for combination in itertools.product(*values.values()):
        settings = dict(zip(values, combination, strict=True))
        arguments = list(rest)
        for name, value in settings.items():
            arguments += _argument(options[name], name, value)
        cells.append(Cell(settings, arguments, _key(command, arguments)))
    return cells


def _argument(option: Any, name: str, value: str) -> list[str]:
    if not getattr(option, "is_flag", False):
        return [f"--{name}", value]
    if value not in ("on", "off"):
        raise UserError(f"--{name} is on or off, got {value!r}")
    return [f"--{name}"] if value == "on" else list(option.secondary_opts[:1])


def _key(command: Any, arguments: list[str]) -> str:
    """sha256 of what the cell's figures depend on: options, the files that they name, this project's code."""
    try:
        context = command.make_context("gyges sim run", list(arguments))
    except UsageError as error:
        raise UserError(error.format_message()) from None
    given = {name: str(value) for name, value in context.params.items() if name not in _OWN}
    files = {name: _digest(Path(value)) for name, value in given.items() if Path(value).expanduser().exists()}
    about = {"options": given, "files": files, "code": code_digest()}
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> str:
    path = path.expanduser()
    digest = hashlib.sha256()
    for each in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if each.is_file():
            with each.open("rb") as file:
                digest.update(f"{each.relative_to(path)}".encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def sweep_command(
    console: Console, sets: Sequence[str], rest: Sequence[str], executor: Executor, out: Path | None
) -> dict[str, Any]:
    """Returns sweep.json's fields plus ``state`` and ``folder``."""
    cells = plan(sets, rest)
    progress = stopwatch()
    configuration = {"set": list(sets), "options": list(rest)}
    known = out is not None and (out / "manifest.json").is_file()
    make = ResultFolder.reopen if known else ResultFolder.create
    with make(out, KIND, configuration=configuration) as folder:  # type: ignore[arg-type]
        left = [cell for cell in cells if not _read(cell, folder.path)]
        progress(f"{len(cells)} cells, {len(cells) - len(left)} of them there already")
        state = "complete"
        try:
            for index, (error, files) in executor.run(run_cell, [cell.arguments for cell in left]):
                cell = left[index]
                cell.error = error
                if not error:
                    _keep(cell, folder.path, files)
                    _read(cell, folder.path)
                progress(f"{cell.name}: {f'cannot run: {error.splitlines()[0]}' if error else _said(cell)}")
        except KeyboardInterrupt:
            state = "partial"
        document = {
            "cells": [
                {"settings": dict(c.settings), "folder": c.slug, "error": c.error, "figures": c.figures} for c in cells
            ]
        }
        folder.write_json("sweep.json", document)
        write_bytes(folder.path / "sweep.csv", _csv(cells).encode())
        if all(cell.error for cell in cells):
            state = "failed"
        reason = {"partial": "interrupted; the same command with --out goes on where it was", "failed": cells[0].error}
        folder.finish(state, reason.get(state))  # type: ignore[arg-type]
    render(console, cells)
    console.print(f"results: {folder.path}", soft_wrap=True, highlight=False)
    return {**document, "state": state, "folder": str(folder.path)}


def _keep(cell: Cell, root: Path, files: Mapping[str, bytes]) -> None:
    """The manifest comes last, with the key: a folder that has it is whole."""
    folder = root / cell.slug
    shutil.rmtree(folder, ignore_errors=True)
    for name, data in files.items():
        if name != "manifest.json":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_bytes(folder / name, data)
    write_json(folder / "manifest.json", json.loads(files["manifest.json"]) | {"sweep": {"key": cell.key}})


def _read(cell: Cell, root: Path) -> bool:
    """Whether the folder has the cell already; its figures then."""
    folder = root / cell.slug
    try:
        manifest = load_manifest(folder)
    except UserError:
        return False
    if manifest["state"] != "complete" or manifest.get("sweep", {}).get("key") != cell.key:
        return False
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    for name, where in FIGURES.items():
        value: Any = summary
        for part in where:
            value = value[part]
        cell.figures[name] = value
    return True


def _said(cell: Cell) -> str:
    f = cell.figures
    return f"{f['completed']} of {f['offered']} requests, {number(f['output_tokens_per_s'])} tok/s"


def _csv(cells: Sequence[Cell]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*cells[0].settings, *FIGURES, "error"])
    for cell in cells:
        writer.writerow([*cell.settings.values(), *(cell.figures.get(name) for name in FIGURES), cell.error])
    return text.getvalue()


def render(console: Console, cells: Sequence[Cell]) -> None:
    rows = table(f"{len(cells)} cells")
    for option in cells[0].settings:
        rows.add_column(option)
    for head in ("done", "tok/s", "TTFT p50", "p99", "TPOT p50", "p99", "good", "merges"):
        rows.add_column(head, justify="right", no_wrap=True)
    for cell in cells:
        f = cell.figures
        if not f:
            rows.add_row(*map(escape, cell.settings.values()), *["-"] * 8)
            continue
        infinite = f["completed"] < f["offered"]
        latencies = (f[name] for name in ("ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "tpot_p99_s"))
        rows.add_row(
            *map(escape, cell.settings.values()),
            percent(f["completed"] / f["offered"]),
            number(f["output_tokens_per_s"]),
            *(seconds(value, infinite=infinite) for value in latencies),
            percent(f["goodput"]) if f["goodput"] is not None else "-",
            str(f["merges"]),
        )
    console.print(rows)
    for cell in cells:
        if cell.error:
            console.print(f"[bold red]{escape(cell.name)}[/]: {escape(cell.error)}", highlight=False)

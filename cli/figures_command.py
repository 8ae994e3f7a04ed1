"""What ``gyges figures`` does: make, keep, show. The figures are those of gyges.figures."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cli.bench_tables import stopwatch, table
from gyges.errors import UserError
from gyges.figures.base import Context
from gyges.figures.catalogue import FIGURES
from gyges.figures.run import make_figures
from gyges.metrics.results import ResultFolder
from workloads.published import published_trace

KIND = "figures"
MEASURED = Path("results/transform")


def list_figures(console: Console) -> dict[str, Any]:
    """Prints and returns name, title, group and place in the paper of every figure."""
    rows = table("Figures")
    rows.add_column("name", no_wrap=True)
    rows.add_column("", overflow="fold")
    rows.add_column("paper", overflow="fold")
    known = {name: {"title": k.title, "group": k.group, "where": k.where} for name, k in FIGURES.items()}
    for name, kind in known.items():
        rows.add_row(name, kind["title"], kind["where"])
    console.print(rows)
    return {"figures": known}


def figures_command(
    console: Console, names: Sequence[str], out: Path | None, traces: Path | None, measured: Path | None, *, quick: bool
) -> dict[str, Any]:
    """Returns figures.json's fields plus ``folder``. Raises UserError for unknown names and folders that are not there."""
    chosen = list(dict.fromkeys(names)) or FIGURES.names()
    for name in chosen:
        FIGURES.get(name)
    if traces is not None and not traces.is_dir():
        raise UserError(f"there is no folder {traces}; --traces is a folder that holds published traces")
    context = Context(
        read_trace=partial(published_trace, folder=traces),
        quick=quick,
        measured=_measured(measured),
        progress=stopwatch(),
    )
    configuration = {"names": chosen, "quick": quick, "measured": str(context.measured) if context.measured else None}
    started = time.monotonic()
    with _folder(out, configuration) as folder:
        document = make_figures(chosen, folder.path, context)
        folder.update_manifest(
            traces={key: about for f in document["figures"].values() for key, about in f["traces"].items()}
        )
    for name in chosen:
        console.print(lines_table(name, document["figures"][name]))
        for reading in document["figures"][name]["readings"]:
            console.print(f"[dim]- {escape(reading)}[/]", highlight=False)
        console.print()
    console.print(
        f"{len(chosen)} figures in {time.monotonic() - started:.0f} s: {folder.path}", soft_wrap=True, highlight=False
    )
    return {**document, "folder": str(folder.path)}


def _measured(given: Path | None) -> Path | None:
    """The folder, or the usual one where it is there; None: neither. UserError for one that was given and is something else."""
    folder = given or MEASURED
    if (folder / "transform.json").is_file():
        return folder
    if given is not None:
        raise UserError(
            f"there is no transform.json in {given}; --measured is a folder that gyges bench transform wrote"
        )
    return None


def _folder(out: Path | None, configuration: Mapping[str, Any]) -> ResultFolder:
    """A new folder, or one of earlier figures, whose files are replaced one by one."""
    if out is not None and (out / "manifest.json").is_file():
        return ResultFolder.reopen(out, KIND, configuration=configuration)
    return ResultFolder.create(out, KIND, configuration=configuration)


def lines_table(name: str, figure: Mapping[str, Any]) -> Table:
    """What the paper says and what is found here."""
    rows = table(f"{name}: {escape(figure['title'])} ({figure['where']})")
    rows.add_column("", overflow="fold", min_width=28)
    for head in ("paper", "here", "deviation"):
        rows.add_column(head, justify="right", max_width=13)
    rows.add_column("source", overflow="fold", max_width=12)
    for line in figure["lines"]:
        words = line["shown"]
        rows.add_row(*map(escape, (line["what"], words["paper"], words["here"], words["deviation"], line["source"])))
    return rows

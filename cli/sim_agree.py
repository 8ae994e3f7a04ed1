"""What ``gyges sim agree`` does: simulate a run of our engine, keep, show. The figures are those of gyges.sim.agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from cli.sim_validate import render_errors
from gyges.config import format_instances
from gyges.metrics.results import ResultFolder
from gyges.sim.agree import agree
from gyges.sim.validate_plot import write_plot


def agree_command(console: Console, run: Path, profile: Path, out: Path | None) -> dict[str, Any]:
    """Returns agree.json's fields plus ``folder`` and ``plots``."""
    document = agree(run, profile)
    with ResultFolder.create(out, "sim-agree", configuration={"run": str(run), "profile": str(profile)}) as folder:
        folder.write_json("agree.json", document)
        what = f"{document['model']} on {format_instances(tuple(document['instances']))}, CPU devices"
        plots = write_plot(folder.plots, document, what)
    left = f" ({document['left_out']} others left out)" if document["left_out"] else ""
    console.print(
        f"[bold]{escape(what)}[/]: {document['requests']} requests of {escape(document['run'])}{left}, simulated"
    )
    render_errors(console, document)
    console.print(f"results: {folder.path}", soft_wrap=True, highlight=False)
    return {**document, "folder": str(folder.path), "plots": [str(path) for path in plots]}

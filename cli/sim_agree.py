"""What ``gyges sim agree`` does: simulate runs of our engine, keep, show. The figures are those of gyges.sim.agree."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cli.bench_tables import met, stopwatch, table
from cli.render import number, seconds
from cli.sim_validate import render_errors, signed
from gyges.config import format_instances
from gyges.metrics.results import ResultFolder
from gyges.sim.agree import agree
from gyges.sim.validate_plot import write_plot

KIND = "sim-agree"


def agree_command(
    console: Console, run: Path, profile: Path, transform: Path | None, out: Path | None
) -> dict[str, Any]:
    """Returns agree.json's fields plus ``folder`` and ``plots``."""
    document = agree(run, profile, transform)
    inputs = {"run": str(run), "profile": str(profile), "transform": str(transform) if transform else None}
    with ResultFolder.create(out, KIND, configuration=inputs) as folder:
        folder.write_json("agree.json", document)
        plots = _plots(folder, document)
    render(console, document)
    console.print(f"results: {folder.path}", soft_wrap=True, highlight=False)
    return {**document, "folder": str(folder.path), "plots": [str(path) for path in plots]}


def measure_command(console: Console, out: Path | None, *, quick: bool) -> dict[str, Any]:
    """Measures first (cli.sim_agree_measure says what). Returns agree.json's fields, ``runs``: name -> the document of that run,
    plus ``folder`` and ``plots``."""
    from cli.sim_agree_measure import measure

    with ResultFolder.create(out, KIND, configuration={"measure": True, "quick": quick}) as folder:
        runs = {}
        for name, run in measure(folder.path, stopwatch(), quick=quick):
            runs[name] = agree(run, folder.path / "profile", folder.path / "transform")
        document = {"runs": runs}
        folder.write_json("agree.json", document)
        plots = _plots(folder, runs["static"])
    for each in runs.values():
        render(console, each)
    console.print(f"results: {folder.path}", soft_wrap=True, highlight=False)
    return {**document, "folder": str(folder.path), "plots": [str(path) for path in plots]}


def _plots(folder: ResultFolder, document: Mapping[str, Any]) -> list[Path]:
    return write_plot(folder.plots, document, _what(document)) if "over_time" in document else []


def _what(document: Mapping[str, Any]) -> str:
    return f"{document['model']} on {format_instances(tuple(document['instances']))}, CPU devices"


def render(console: Console, document: Mapping[str, Any]) -> None:
    """The errors of one run, in 80 columns."""
    title = f"[bold]{escape(_what(document))}[/]"
    if "pauses" in document:
        count = len(document["transformations"])
        unseen = f" ({document['unseen']} that no request noticed left out)" if document["unseen"] else ""
        console.print(f"{title}: {count} transformations of {escape(document['run'])}{unseen}, simulated")
        console.print(pauses_table(document))
        for note in document["notes"]:
            console.print(f"[dim]note: {escape(note)}[/]", highlight=False)
        return
    left = f" ({document['left_out']} others left out)" if document["left_out"] else ""
    console.print(f"{title}: {document['requests']} requests of {escape(document['run'])}{left}, simulated")
    render_errors(console, document)


def pauses_table(document: Mapping[str, Any]) -> Table:
    """One line for each transformation, then the means."""
    rows = table("Pauses of transformations (+: the simulation's is longer)")
    for head in ("", "held,\ntokens", "pause,\nmeasured", "pause,\nsimulated", "error", "goal\n(mean)"):
        rows.add_column(head, justify="right" if head else "left", no_wrap=True)
    for each in document["transformations"]:
        rows.add_row(each["kind"], number(each["held_tokens"]), *_pause(each["pause_s"]), "")
    for kind, value in document["pauses"].items():
        goal = document["goals"][kind]
        rows.add_row(
            f"mean of {value['count']} {kind}s", "", *_pause(value), f"{met(goal['met'])}, {goal['limit']:.0%}"
        )
    return rows


def _pause(pair: Mapping[str, Any]) -> tuple[str, str, str]:
    return seconds(pair["measured"]), seconds(pair["simulated"]), signed(pair["error"])

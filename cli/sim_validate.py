"""What ``gyges sim validate`` does: replay, keep, show. The figures are those of gyges.sim.validate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cli.bench_tables import met, table
from cli.render import number, seconds
from gyges.metrics.results import ResultFolder
from gyges.sim.compare import STATISTICS
from gyges.sim.validate import validate
from gyges.sim.validate_plot import write_plot

_NAMES = {"ttft_s": "TTFT", "tpot_s": "TPOT", "e2e_s": "E2E", "queue_s": "queueing"}


def validate_command(
    console: Console, requests: Path, meta: Path, profile: Path, hardware: str | None, out: Path | None
) -> dict[str, Any]:
    """Returns validate.json's fields plus ``folder`` and ``plots``."""
    document = validate(requests, meta, profile, hardware)
    inputs = {"requests": str(requests), "meta": str(meta), "profile": str(profile), "hardware": document["hardware"]}
    with ResultFolder.create(out, "sim-validate", configuration=inputs) as folder:
        folder.write_json("validate.json", document)
        title = f"{document['model']}, {document['engine']}, {document['hardware']}"
        plots = write_plot(folder.plots, document, title)
    render(console, document)
    console.print(f"results: {folder.path}", soft_wrap=True, highlight=False)
    return {**document, "folder": str(folder.path), "plots": [str(path) for path in plots]}


def render(console: Console, document: Mapping[str, Any]) -> None:
    """A table that fits in 80 columns: signed errors, and the means behind them."""
    console.print(
        f"[bold]{escape(document['model'])}[/] on {document['hardware']}, {document['engine']}, TP{document['tp']}: "
        f"{document['requests']} measured requests, simulated",
        highlight=False,
    )
    render_errors(console, document)


def render_errors(console: Console, document: Mapping[str, Any]) -> None:
    console.print(errors_table(document))
    for name, unit in (("throughput", " tokens/s"), ("duration_s", " s")):
        values, goal = document[name], document["goals"].get(name)
        console.print(
            f"{name.removesuffix('_s')}: measured {number(values['measured'])}{unit}, "
            f"simulated {number(values['simulated'])}{unit}, {signed(values['error'])}"
            + (f" (within {goal['limit']:.1%}: {met(goal['met'])})" if goal else ""),
            highlight=False,
        )
    for note in document["notes"]:
        console.print(f"[dim]note: {escape(note)}[/]", highlight=False)


def errors_table(document: Mapping[str, Any]) -> Table:
    rows = table("Error of the simulation (+: it is slower)")
    rows.add_column("", no_wrap=True)
    for head in ("mean,\nmeasured", "mean,\nsimulated", *(f"error,\n{name}" for name in STATISTICS), "goal\n(mean)"):
        rows.add_column(head, justify="right", no_wrap=True)
    for name, label in _NAMES.items():
        values, goal = document["latencies"][name], document["goals"].get(name)
        rows.add_row(
            label,
            seconds(values["mean"]["measured"]),
            seconds(values["mean"]["simulated"]),
            *(signed(values[statistic]["error"]) for statistic in STATISTICS),
            f"{met(goal['met'])}, {goal['limit']:.1%}" if goal else "",
        )
    return rows


def signed(share: float | None) -> str:
    return "-" if share is None else f"{share:+.2%}"

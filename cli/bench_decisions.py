"""What ``gyges bench decisions`` does: time, keep, show. The figures are those of gyges.bench.decisions."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cli.bench_tables import met, reached, stopwatch, table
from cli.render import seconds
from gyges.bench.decisions import REVIEW, ROUTE, DecisionsConfig, bench_decisions
from gyges.errors import UserError
from gyges.metrics.results import ResultFolder


def sizes(text: str) -> tuple[int, ...]:
    """``"8,64,1000"`` -> (8, 64, 1000)."""
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise UserError(f"cannot read {text!r} as numbers of instances; write 8,64,1000") from None


def decisions_command(console: Console, config: DecisionsConfig, out: Path | None) -> dict[str, Any]:
    """Returns decisions.json's fields plus ``folder``."""
    started = time.monotonic()
    with ResultFolder.create(out, "bench-decisions", configuration=asdict(config), seed=config.seed) as folder:
        document = bench_decisions(config, stopwatch())
        document["duration_s"] = time.monotonic() - started
        folder.write_json("decisions.json", document)
    render(console, document)
    console.print(f"results: {folder.path}", soft_wrap=True, highlight=False)
    return {**document, "folder": str(folder.path)}


def render(console: Console, document: Mapping[str, Any]) -> None:
    """Tables that fit in 80 columns."""
    for instances in document["instances"]:
        console.print(times_table(document, instances))
    console.print(goals_table(document))
    console.print("[dim]CPU time of the deciding thread: what a decision takes on a free core[/]", highlight=False)


def times_table(document: Mapping[str, Any], instances: int) -> Table:
    """A row for each policy."""
    rows = table(f"{instances:,} instances")
    rows.add_column("policy", overflow="fold")
    for call in (ROUTE, REVIEW):
        for name in ("p50", "p99", "max"):
            rows.add_column(f"{call}\n{name}", justify="right", no_wrap=True)
    for text, by_size in document["policies"].items():
        figures = by_size[str(instances)]
        cells = (seconds(figures[call][name]) for call in (ROUTE, REVIEW) for name in ("p50", "p99", "max"))
        rows.add_row(text, *cells)
    return rows


def goals_table(document: Mapping[str, Any]) -> Table:
    """Each goal, what the slowest policy reached, and whether that is enough."""
    rows = table("Goals")
    for head in ("", "aim"):
        rows.add_column(head, no_wrap=True)
    rows.add_column("reached", justify="right", no_wrap=True)
    rows.add_column("(slowest)", overflow="fold")
    rows.add_column("met", no_wrap=True)
    for goal in document["goals"]:
        shown = reached(goal["reached"], goal["unit"])
        rows.add_row(goal["name"], goal["aim"], shown, goal["where"], met(goal["met"]))
    return rows

"""What ``gyges doctor`` does: gather, try, keep, show. Findings and checks are those of gyges.doctor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cli.bench_tables import met, names, reached, stopwatch, table
from cli.render import seconds
from gyges.doctor.ability import abilities
from gyges.doctor.facts import Fact, data_of, gather
from gyges.doctor.full import BUDGET_S, choose, document_of, run_checks
from gyges.errors import UserError
from gyges.metrics.results import ResultFolder

_MARKS = {"good": "[green]ok[/]", "note": "[dim]-[/]", "warn": "[yellow]![/]", "missing": "[bold red]x[/]"}
_STATES = {
    "passed": "[green]passed[/]",
    "failed": "[bold red]FAILED[/]",
    "cannot": "[dim]-[/]",
    "no time": "[yellow]no time[/]",
}


def doctor_command(
    console: Console, *, full: bool, only: str, skip: str, minutes: float | None, out: Path | None
) -> tuple[dict[str, Any], bool]:
    """(the document, whether all is well): without ``full`` whether CPU devices work here, with it whether no check failed."""
    if not full and (only or skip or out or minutes is not None):
        raise UserError("--only, --skip, --minutes and --out are about the checks: give --full too")
    checks = choose(names(only), names(skip)) if full else []
    facts = gather()
    render_facts(console, facts)
    render_abilities(console, facts)
    if not full:
        engine = abilities(facts)[0]
        console.print("[dim]gyges doctor --full tries all of it[/]", highlight=False)
        return document_of(facts), engine.works
    configuration = {"checks": [check.name for check in checks], "minutes": minutes}
    document: dict[str, Any] = {}
    with ResultFolder.create(out, "doctor", configuration=configuration, gpus=_gpu_names(facts)) as folder:

        def keep(so_far: dict[str, Any]) -> None:
            document.update(so_far)
            folder.write_json("doctor.json", so_far)

        run_checks(checks, facts, stopwatch(), keep, budget_s=BUDGET_S if minutes is None else 60 * minutes)
    render_checks(console, document)
    console.print(f"results: {folder.path}", soft_wrap=True, highlight=False)
    return {**document, "folder": str(folder.path)}, not document["counts"]["failed"]


def _gpu_names(facts: Sequence[Fact]) -> list[str]:
    devices = data_of(facts, "gpu", "devices") or 0
    return [data_of(facts, "gpu", f"device {n}")["name"] for n in range(devices)]


def render_facts(console: Console, facts: Sequence[Fact]) -> None:
    """A table for each group; fits in 80 columns."""
    for group, rows in groupby(facts, key=lambda fact: fact.group):
        shown = _plain_table(group)
        for fact in rows:
            remedy = f"\n[yellow]-> {escape(fact.remedy)}[/]" if fact.remedy else ""
            shown.add_row(_MARKS[fact.state], escape(fact.name), escape(fact.value) + remedy)
        console.print(shown)


def render_abilities(console: Console, facts: Sequence[Fact]) -> None:
    shown = _plain_table("What this machine can do")
    for ability in abilities(facts):
        shown.add_row("[green]yes[/]" if ability.works else "[dim]no[/]", ability.name, escape(ability.why))
    console.print(shown)


def _plain_table(title: str) -> Table:
    shown = table(title)
    shown.show_header = False
    shown.add_column(no_wrap=True)
    shown.add_column(no_wrap=True, style="bold")
    shown.add_column(overflow="fold")
    return shown


def render_checks(console: Console, document: Mapping[str, Any]) -> None:
    """A row for each check, and one for each goal."""
    shown = table("Checks")
    for head in ("", "check"):
        shown.add_column(head, no_wrap=True)
    shown.add_column("time", justify="right", no_wrap=True)
    shown.add_column("outcome", overflow="fold")
    for check in document["checks"]:
        said = check["summary"] or check["why"]
        shown.add_row(_STATES[check["state"]], check["name"], seconds(check["seconds"] or None), escape(said))
    console.print(shown)
    goals = [goal for check in document["checks"] for goal in check["goals"]]
    if goals:
        console.print(goals_table(goals))
    counts = ", ".join(f"{count} {state}" for state, count in document["counts"].items() if count)
    console.print(f"{counts or 'no check ran'}, of {document['planned']}", highlight=False)


def goals_table(goals: Sequence[Mapping[str, Any]]) -> Table:
    rows = table("Goals")
    rows.add_column("", overflow="fold")
    rows.add_column("aim", no_wrap=True)
    rows.add_column("reached", justify="right", no_wrap=True)
    rows.add_column("met", no_wrap=True)
    for goal in goals:
        rows.add_row(escape(goal["name"]), goal["aim"], reached(goal["reached"], goal["unit"]), met(goal["met"]))
    return rows

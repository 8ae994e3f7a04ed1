"""What ``gyges sim agree`` does: simulate runs of our engine, keep, show. The figures are those of gyges.sim.agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from gyges.sim.rounds import drift, pool
from gyges.sim.validate_plot import write_plot

KIND = "sim-agree"


def agree_command(
    console: Console, run: Path, profiles: Sequence[Path], transforms: Sequence[Path], out: Path | None
) -> dict[str, Any]:
    """Returns agree.json's fields plus ``folder`` and ``plots``."""
    document = agree(run, profiles, transforms)
    inputs = {"run": str(run), "profiles": list(map(str, profiles)), "transforms": list(map(str, transforms))}
    with ResultFolder.create(out, KIND, configuration=inputs) as folder:
        folder.write_json("agree.json", document)
        plots = _plots(folder.plots, document)
    render(console, document)
    console.print(f"results: {folder.path}", soft_wrap=True, highlight=False)
    return {**document, "folder": str(folder.path), "plots": [str(path) for path in plots]}


def measure_command(console: Console, out: Path | None, *, rounds: int, quick: bool) -> dict[str, Any]:
    """Measures first (cli.sim_agree_measure says what). Returns agree.json's fields plus ``folder`` and ``plots``:

    rounds: of each, run -> its document.   summary: ``figures`` (gyges.sim.rounds.pool), ``drift`` (gyges.sim.rounds.drift).
    """
    from cli.sim_agree_measure import measure

    plots: list[Path] = []
    made: list[dict[str, Any]] = []
    profiles: list[Path] = []
    configuration = {"measure": True, "rounds": rounds, "quick": quick}
    with ResultFolder.create(out, KIND, configuration=configuration) as folder:
        for each in measure(folder.path, stopwatch(), rounds=rounds, quick=quick):
            made.append({name: agree(run, each.profiles, each.transforms) for name, run in each.runs.items()})
            profiles = [*(profiles or each.profiles[:1]), each.profiles[1]]
            document = {"rounds": made, "summary": {"figures": pool(made), "drift": drift(profiles)}}
            folder.write_json("agree.json", document)  # after each round: who interrupts keeps those that were done
            plots += _plots(folder.path / f"round-{len(made)}" / "plots", made[-1]["static"])
    render_rounds(console, document)
    console.print(f"results: {folder.path}", soft_wrap=True, highlight=False)
    return {**document, "folder": str(folder.path), "plots": [str(path) for path in plots]}


def _plots(folder: Path, document: Mapping[str, Any]) -> list[Path]:
    return write_plot(folder, document, _what(document)) if "over_time" in document else []


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


def render_rounds(console: Console, document: Mapping[str, Any]) -> None:
    """The pooled errors, how far the rounds lie apart, and how the machine drifted, in 80 columns."""
    rounds, summary = document["rounds"], document["summary"]
    many = "a round" if len(rounds) == 1 else f"{len(rounds)} rounds"
    console.print(f"[bold]{escape(rounds[0]['static']['model'])} on CPU devices[/]: {many} of runs, simulated")
    console.print(rounds_table(summary["figures"]))
    console.print("Decode steps of 1 to 16 sequences, after each round against before it:", highlight=False)
    for degree, ratios in summary["drift"].items():
        changes = ", ".join(f"{ratio - 1:+.1%}" for ratio in ratios)
        console.print(f"  {degree.upper()} {changes}", highlight=False)
    for note in dict.fromkeys(note for runs in rounds for each in runs.values() for note in each["notes"]):
        console.print(f"[dim]note: {escape(note)}[/]", highlight=False)


def rounds_table(figures: Mapping[str, Mapping[str, Any]]) -> Table:
    """One line for each figure of gyges.sim.rounds.pool."""
    rows = table("Error, pooled over the rounds (+: the simulation's is larger)")
    rows.add_column("", no_wrap=True)
    for head in ("goal", "error", "met"):
        rows.add_column(head, justify="right", no_wrap=True)
    rows.add_column("of each round", overflow="fold")
    for name, figure in figures.items():
        rows.add_row(
            _label(name),
            f"{figure['limit']:.0%}",
            _tenths(figure["error"]),
            met(figure["met"]),
            " ".join(map(_tenths, figure["rounds"])),
        )
    return rows


def _label(name: str) -> str:
    """merge_pause_s_stopping -> pause of merges, stopping."""
    kind, pause, run = name.partition("_pause_s_")
    return f"pause of {kind}s, {run}" if pause else name.removesuffix("_s").upper() if name.endswith("_s") else name


def _tenths(error: float | None) -> str:
    return "-" if error is None else f"{error:+.1%}"


def _pause(pair: Mapping[str, Any]) -> tuple[str, str, str]:
    return seconds(pair["measured"]), seconds(pair["simulated"]), signed(pair["error"])

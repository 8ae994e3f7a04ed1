"""What ``gyges bench peers`` does: measure, keep, show. The figures are those of gyges.bench.run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cli.bench_tables import met, reached, span, stopwatch, table
from cli.render import percent, seconds
from gyges.bench.peers import GENERATE, OWN
from gyges.bench.run import PeersConfig, bench_peers, rates_drift
from gyges.config import format_bytes
from gyges.metrics.results import ResultFolder

_UNSTEADY = 0.1


def peers_command(console: Console, config: PeersConfig, out: Path | None) -> dict[str, Any]:
    """Returns peers.json's fields plus ``folder`` and ``plots``."""
    started = time.monotonic()
    with ResultFolder.create(out, "bench-peers", configuration=asdict(config), seed=config.seed) as folder:
        document = bench_peers(config, stopwatch())
        document["duration_s"] = time.monotonic() - started
        folder.write_json("peers.json", document)
        from gyges.bench.plot import write_plot

        plots = write_plot(folder.plots, document)
    render(console, document)
    console.print(f"results: {folder.path}", soft_wrap=True, highlight=False)
    return {**document, "folder": str(folder.path), "plots": [str(path) for path in plots]}


def render(console: Console, document: Mapping[str, Any]) -> None:
    """Tables that fit in 80 columns."""
    model, rates = document["model"], document["rates"]
    gemm, copy = rates["gemm_flops_per_s"], rates["copy_bytes_per_s"]
    console.print(
        f"[bold]{escape(model['name'])}[/], {model['parameters'] / 1e6:.1f}M parameters, fp32, {document['cores']} cores. "
        f"GEMM {span(gemm, 1e9)} GFLOP/s, copy {span(copy, 1e9)} GB/s",
        highlight=False,
    )
    for name, mix in document["mixes"].items():
        console.print(mix_table(name, mix, document["peers"]))
        for peer, result in mix["peers"].items():
            if result["error"]:
                console.print(f"[red]{peer}[/]: {escape(result['error'])}", highlight=False)
    console.print(goals_table(document))
    for line in remarks(document):
        console.print(f"[dim]{escape(line)}[/]", highlight=False)


def mix_table(name: str, mix: Mapping[str, Any], peers: Mapping[str, Any]) -> Table:
    """Median [slowest-fastest repeat] of each peer, and the floor's own line."""
    floor = mix["floor"]
    rows = table(f"{name}: {mix['requests']} requests, {mix['prompt_tokens']} prompt + {mix['output_tokens']} tokens")
    for column in ("", "tokens/s", "x generate", "% of floor"):
        rows.add_column(column, justify="right" if column else "left", no_wrap=True)
    for peer, result in mix["peers"].items():
        ratio = {"median": 1.0, "min": 1.0, "max": 1.0} if peer == GENERATE else result["ratio_to"].get(GENERATE)
        rows.add_row(
            peers[peer]["label"],
            span(result["tokens_per_s"]),
            span(ratio if result["tokens_per_s"] else None),
            span(result["share_of_floor"], 0.01),
        )
    rows.add_row("floor", span(floor["tokens_per_s"]), "", "100", style="dim")
    bound = " or ".join(dict.fromkeys(floor["bound"]))
    rows.caption = f"the floor is set by {bound}; median [slowest-fastest repeat]"
    rows.caption_justify = "left"
    return rows


def goals_table(document: Mapping[str, Any]) -> Table:
    """Each goal, what was reached, and whether that is enough."""
    rows = table("Goals")
    rows.add_column("", no_wrap=True)
    rows.add_column("aim", no_wrap=True)
    rows.add_column("reached", justify="right", no_wrap=True)
    rows.add_column("met", no_wrap=True)
    for goal in document["goals"]:
        rows.add_row(goal["name"], goal["aim"], reached(goal["reached"], goal["unit"]), met(goal["met"]))
    return rows


def remarks(document: Mapping[str, Any]) -> list[str]:
    """What stands beside the tables, one line each."""
    lines = []
    ends = {each["label"]: each.get("end", {}).get("peak_rss_bytes") for each in document["peers"].values()}
    lines.append("peak RSS: " + ", ".join(f"{label} {format_bytes(peak)}" for label, peak in ends.items() if peak))
    for name, mix in document["mixes"].items():
        own = mix["peers"].get(OWN)
        if own and own["details"]:
            last = own["details"][-1]
            lines.append(
                f"{name}: {last['steps']} steps, controller {seconds(last['controller_overhead_per_step_s'])} per step, "
                f"worker busy {percent(last['worker_share_of_wall'])} of the time"
            )
            same = [f"{percent(a['tokens'])} with {peer}" for peer, a in own["agreement_with"].items()]
            if same:
                lines.append(f"{name}: same tokens up to a first difference: {', '.join(same)}")
    if (reduced := document["all_reduce"]) and reduced["median_s"]["gloo"]:
        lines.append(f"all-reduce through gloo: {seconds(reduced['median_s']['gloo']['median'])}")
    if started := document["start_up"]:
        for layout, peak in started["worker_peak_rss_bytes"].items():
            if peak:
                lines.append(f"{started['model']}, {layout}: peak RSS per worker {format_bytes(peak['max'])}")
    for part in ("all_reduce", "start_up"):
        lines += [f"{name}: {error}" for name, error in ((document[part] or {}).get("errors") or {}).items()]
    if (drift := rates_drift(document)) > _UNSTEADY:
        lines.append(
            f"unsteady machine: its rates changed by up to {drift:.0%} within a round; repeat when it is quiet"
        )
    return lines

"""What ``gyges sim run`` does: trace -> simulator -> result folder -> table. The figures are those of every run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from cli.live import LiveSnapshot, LiveView
from cli.render import render_summary, seconds
from gyges.bench.simulated import simulate
from gyges.config import EngineConfig, format_instances
from gyges.metrics.results import ResultFolder
from gyges.metrics.slo import parse_slo
from gyges.sim.of_engine import prepare_engine, requests_of
from gyges.sim.progress import OnProgress, SimProgress
from gyges.sim.setup import Prepared, SimSetup, prepare
from gyges.sim.simulation import Simulation
from workloads.load import load_trace
from workloads.options import TraceOptions


def sim_run(
    console: Console,
    setup: SimSetup,
    trace_spec: str,
    trace_options: TraceOptions,
    slo: str | None,
    out: Path | None,
) -> dict[str, Any]:
    """Returns summary.json's fields plus ``state``, ``folder`` and ``plots``."""
    prepared = prepare(setup)
    about = {**asdict(setup), "profile": str(setup.profile) if setup.profile else None, "slo": slo}
    where = f"{setup.hosts} x {setup.hardware}, {setup.router}" if setup.hosts > 1 else setup.hardware
    label = f"{setup.model} on {where}, {format_instances(prepared.degrees)}, {prepared.policy}"
    return _run(console, prepared, about, label, trace_spec, trace_options, "open", slo, out)


def sim_engine_run(
    console: Console,
    config: EngineConfig,
    scheduler: str,
    simulation: Simulation,
    trace_spec: str,
    trace_options: TraceOptions,
    mode: str,
    slo: str | None,
    out: Path | None,
) -> dict[str, Any]:
    """The same of an engine's configuration: ``gyges bench run --backend sim``."""
    prepared = prepare_engine(config, scheduler, simulation)
    about = {
        "engine": config.to_dict(),
        "scheduler": scheduler,
        "simulation": asdict(simulation),
        "mode": mode,
        "slo": slo,
    }
    label = f"{config.model} on {simulation.hardware}, {format_instances(prepared.degrees)}, {scheduler}"
    return _run(console, prepared, about, label, trace_spec, trace_options, mode, slo, out)


def _run(
    console: Console,
    prepared: Prepared,
    about: Mapping[str, Any],
    label: str,
    trace_spec: str,
    trace_options: TraceOptions,
    mode: str,
    slo: str | None,
    out: Path | None,
) -> dict[str, Any]:
    within = parse_slo(slo) if slo else None
    requests_of([], mode)
    prepared.simulator()  # whatever cannot be simulated is said before there is a folder
    trace = load_trace(trace_spec, trace_options)
    lengths = [(each.arrival_s, each.prompt_tokens, each.output_tokens) for each in trace.requests]
    folder = ResultFolder.create(
        out,
        "run",
        name="sim-" + re.sub(r"[^A-Za-z0-9.-]+", "-", trace.name)[:36].strip("-"),
        configuration=dict(about),
        seed=trace_options.seed,
        trace=trace.manifest(),
        trace_sha256=trace.content_sha256,
    )
    with folder:
        with LiveView(console, len(lengths), title=f"simulated: {label}") as view:
            result, summary = simulate(prepared, lengths, folder, mode=mode, slo=within, on_progress=_watching(view))
        from gyges.metrics.plots import write_plots

        plots = write_plots(
            folder.plots,
            result.records,
            result.samples,
            result.transformations,
            slo=within,
            label=f"simulated: {label}",
        )
    render_summary(console, summary, title=label)
    for note in summary["notes"]:
        console.print(f"[dim]note: {note}[/]", highlight=False)
    console.print(
        f"{len(lengths):,} requests, {result.steps:,} steps, simulated in {seconds(result.loop_s)}", highlight=False
    )
    console.print(f"results: {folder.path}", soft_wrap=True, highlight=False)
    return {**summary, "state": "complete", "folder": str(folder.path), "plots": [str(path) for path in plots]}


def _watching(view: LiveView) -> OnProgress:
    """Shows progress on the simulated clock."""
    before = [(0.0, 0)]  # when, and output tokens by then

    def show(progress: SimProgress) -> None:
        (at, tokens), before[0] = before[0], (progress.now_s, progress.output_tokens)
        passed = progress.now_s - at
        view.update(
            LiveSnapshot(
                elapsed_s=progress.now_s,
                sent=progress.sent,
                finished=progress.completed,
                rejected=progress.rejected,
                instances=progress.instances,
                output_tokens_per_s=(progress.output_tokens - tokens) / passed if passed > 0 else 0.0,
                transforming=progress.transforming,
            )
        )

    return show

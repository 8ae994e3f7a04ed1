"""What ``gyges sim run`` does: trace -> simulator -> result folder -> table. The figures are those of every run."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from cli.render import render_summary, seconds
from gyges.config import format_instances, parse_instances
from gyges.errors import UserError
from gyges.metrics.results import ResultFolder
from gyges.metrics.slo import parse_slo
from gyges.metrics.summary import summarize
from gyges.scheduling.batching import BatchLimits
from gyges.scheduling.specification import layout_of, make_policy
from gyges.sim.cost.sources import CostSpec, cost_model
from gyges.sim.hardware import load_hardware
from gyges.sim.models import kv_capacity_tokens, sim_model
from gyges.sim.simulator import SimRequest, Simulator
from workloads.load import load_trace
from workloads.options import TraceOptions


@dataclass(frozen=True, slots=True)
class SimRunOptions:
    """As on the command line. instances: "tp2,tp1,tp1", or None: one device each.   kv_tokens: of KV cache for each device;
    None: what memory is left over."""

    model: str
    hardware: str
    policy: str
    instances: str | None
    cost: str
    profile: Path | None
    dtype: str
    kv_tokens: int | None
    max_batch_tokens: int
    max_seqs: int
    block_size: int


def sim_run(
    console: Console,
    options: SimRunOptions,
    trace_spec: str,
    trace_options: TraceOptions,
    slo: str | None,
    out: Path | None,
) -> dict[str, Any]:
    """Returns summary.json's fields plus ``state``, ``folder`` and ``plots``."""
    within = parse_slo(slo) if slo else None
    simulator, facts = make_simulator(options)
    trace = load_trace(trace_spec, trace_options)
    requests = [SimRequest(each.arrival_s, each.prompt_tokens, each.output_tokens) for each in trace.requests]
    configuration = {**asdict(options), "profile": str(options.profile) if options.profile else None, "slo": slo}
    folder = ResultFolder.create(
        out,
        "run",
        name="sim-" + re.sub(r"[^A-Za-z0-9.-]+", "-", trace.name)[:36].strip("-"),
        configuration=configuration,
        seed=trace_options.seed,
        trace=trace.manifest(),
        trace_sha256=trace.content_sha256,
    )
    with folder:
        folder.update_manifest(simulation=facts)
        result = simulator.run(requests)
        summary = summarize(
            result.records,
            result.samples,
            slo=within,
            duration_s=result.end_s,
            simulated=True,
            notes=notes_of(simulator),
        )
        summary["simulator"] = {"loop_s": result.loop_s, "steps": result.steps, "events": result.events}
        folder.save(result.records, result.samples, [], summary)
        from gyges.metrics.plots import write_plots

        label = f"{options.model} on {options.hardware}, {format_instances(tuple(simulator.degrees))}, {options.policy}"
        plots = write_plots(folder.plots, result.records, result.samples, [], slo=within, label=f"simulated: {label}")
    render_summary(console, summary, title=label)
    for note in summary["notes"]:
        console.print(f"[dim]note: {note}[/]", highlight=False)
    console.print(
        f"{len(requests):,} requests, {result.steps:,} steps, simulated in {seconds(result.loop_s)}", highlight=False
    )
    console.print(f"results: {folder.path}", soft_wrap=True, highlight=False)
    return {**summary, "state": "complete", "folder": str(folder.path), "plots": [str(path) for path in plots]}


def make_simulator(options: SimRunOptions) -> tuple[Simulator, dict[str, Any]]:
    """The simulator and, for the manifest, what it assumes. Raises UserError for what does not go together."""
    hardware, devices = load_hardware(options.hardware)
    policy = make_policy(options.policy)
    layout = layout_of(policy, devices)
    if layout and options.instances:
        raise UserError(f"{options.policy} and --instances both say which instances there are; give one of them")
    degrees = layout or (parse_instances(options.instances) if options.instances else (1,) * devices)
    if sum(degrees) > devices:
        raise UserError(
            f"{format_instances(degrees)} take {sum(degrees)} devices, and {options.hardware} has {devices}; "
            f"write --hardware {hardware.name}x{sum(degrees)} for more"
        )
    model = sim_model(options.model, options.dtype)
    costs, kv_tokens = {}, {}
    for degree in sorted(set(degrees)):
        costs[degree] = cost_model(options.cost, CostSpec(model, hardware, degree, options.profile))
        given = options.kv_tokens
        kv_tokens[degree] = kv_capacity_tokens(model, hardware, degree) if given is None else given * degree
    limits = BatchLimits(options.max_batch_tokens, options.max_seqs, options.block_size)
    facts = {
        "instances": list(degrees),
        "devices": devices,
        "kv_tokens": {str(degree): tokens for degree, tokens in kv_tokens.items()},
        "hardware": asdict(hardware),
        "max_position": model.max_position,
    }
    return Simulator(degrees, costs, kv_tokens, limits, policy), facts


def notes_of(simulator: Simulator) -> list[str]:
    """What a reader must know: steps beyond what a source of step times has measured."""
    notes = []
    for degree, cost in simulator.costs.items():
        share = cost.coverage()["extrapolated_share"] if hasattr(cost, "coverage") else 0.0
        if share and math.isfinite(share):
            notes.append(f"TP{degree}: {share:.1%} of the steps lie beyond the profile and are extrapolated")
    return notes

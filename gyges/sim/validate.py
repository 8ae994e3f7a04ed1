"""``gyges sim validate``: a measured vLLM run, replayed from its arrivals and a profile of its card, and the signed errors.

Nothing is fitted to the run: step times are the profile's, the constants of the card are in its hardware file with their sources,
the engine's behaviour follows from its version and settings. Latency counts from when the engine queued a request, in both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from gyges.errors import UserError
from gyges.sim.compare import compare
from gyges.sim.cost.bundle import read_bundle
from gyges.sim.cost.tables import TableCost
from gyges.sim.hardware import Hardware, hardware_named, known_hardware, load_hardware
from gyges.sim.measured_run import MeasuredRun, read_run
from gyges.sim.models import kv_capacity_tokens, sim_model
from gyges.sim.pipelined import PipelinedInstance

# What LLMServingSim 2.0 reaches on the run of its repository; signed errors of the mean, as shares.
GOALS = {"ttft_s": 0.04, "tpot_s": 0.01, "e2e_s": 0.018}


def validate(requests: Path, meta: Path, profile: Path, hardware: str | None = None) -> dict[str, Any]:
    """The document that the command prints: :func:`gyges.sim.compare.compare`'s, and what was simulated with what.

    ``coverage``: steps, and the share of them beyond the profile.
    Raises UserError for bad files, an unknown card, a profile without the run's TP degree.
    """
    run, bundle = read_run(requests, meta), read_bundle(profile)
    card = _hardware(hardware, bundle.meta, run)
    model = sim_model(run.model, run.dtype)
    cost = TableCost(bundle, model.geometry, run.degree, card, run.graph_tokens)
    kv_tokens = kv_capacity_tokens(model, card, run.degree)
    served = PipelinedInstance(run.requests, cost, run.limits, kv_tokens, depth=run.depth).run()
    outputs = [request.output_tokens for request in run.requests]
    coverage, notes = cost.coverage(), list(bundle.notes)
    if coverage["extrapolated_share"]:
        notes.append(f"{coverage['extrapolated_share']:.1%} of the steps lie beyond the profile and are extrapolated")
    if bundle.meta.get("model") not in (None, run.model):
        notes.append(f"the profile is of {bundle.meta['model']}, the run of {run.model}")
    return {
        "model": run.model,
        "hardware": card.name,
        "engine": f"vLLM {run.version}",
        "tp": run.degree,
        "requests": len(run.requests),
        "limits": asdict(run.limits),
        "constants": {
            "steps_in_flight": run.depth,
            "graph_tokens": run.graph_tokens,
            "kernel_gap_s": card.kernel_gap_s,
            "launch_gap_s": card.launch_gap_s,
            "kv_tokens": kv_tokens,
        },
        **compare(run.served, served, outputs, GOALS),
        "coverage": coverage,
        "notes": notes,
    }


def _hardware(name: str | None, meta: Mapping[str, Any], run: MeasuredRun) -> Hardware:
    name = name or hardware_named(str(meta.get("hardware", "")))
    if name is None:
        raise UserError(
            f"the profile's hardware {meta.get('hardware')!r} is not a bundled description; "
            f"name one with --hardware: {', '.join(known_hardware())}, or a .yaml file"
        )
    card = load_hardware(name)[0]
    return replace(card, memory_utilization=float(run.memory_utilization)) if run.memory_utilization else card

"""``gyges sim validate``: a measured vLLM run, replayed from its arrivals and a profile of its card, and the signed errors.

Nothing is fitted to the run: step times are the profile's, the constants of the card are in its hardware file with their sources,
the engine's behaviour follows from its version and settings. Latency counts from when the engine queued a request, in both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from gyges.errors import UserError
from gyges.sim.cost.bundle import read_bundle
from gyges.sim.cost.tables import TableCost
from gyges.sim.hardware import Hardware, hardware_named, known_hardware, load_hardware
from gyges.sim.measured_run import MeasuredRun, read_run
from gyges.sim.models import kv_capacity_tokens, sim_model
from gyges.sim.pipelined import PipelinedInstance, Served

# What LLMServingSim 2.0 reaches on the run of its repository; signed errors of the mean, as shares.
GOALS = {"ttft_s": 0.04, "tpot_s": 0.01, "e2e_s": 0.018}
STATISTICS = ("mean", "p50", "p90", "p99")
_BIN_S = 1.0


def validate(requests: Path, meta: Path, profile: Path, hardware: str | None = None) -> dict[str, Any]:
    """The document that the command prints.

    ``latencies``: name -> statistic -> ``measured``, ``simulated`` (seconds), ``error`` (signed share; None where undefined).
    ``throughput``: output tokens per second, the same three.   ``duration_s`` likewise.   ``over_time``: per second,
    ``measured_tokens_per_s`` and ``simulated_tokens_per_s``.
    ``goals``: met or not.   ``coverage``: steps and the share of them beyond the profile.
    Raises UserError for bad files, an unknown card, a profile without the run's TP degree.
    """
    run, bundle = read_run(requests, meta), read_bundle(profile)
    card = _hardware(hardware, bundle.meta, run)
    model = sim_model(run.model, run.dtype)
    cost = TableCost(bundle, model.geometry, run.degree, card, run.graph_tokens)
    kv_tokens = kv_capacity_tokens(model, card, run.degree)
    served = PipelinedInstance(run.requests, cost, run.limits, kv_tokens, depth=run.depth).run()
    outputs = np.array([request.output_tokens for request in run.requests])
    measured, simulated = latencies(run.served, outputs), latencies(served, outputs)
    compared = {name: _compared(measured[name], simulated[name]) for name in measured}
    spans = [
        max(each.last_token_s for each in those) - min(each.queued_s for each in those)
        for those in (run.served, served)
    ]
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
        "latencies": compared,
        "throughput": _pair(outputs.sum() / spans[0], outputs.sum() / spans[1]),
        "duration_s": _pair(*spans),
        "goals": {
            name: {
                "limit": limit,
                "error": compared[name]["mean"]["error"],
                "met": abs(compared[name]["mean"]["error"]) <= limit,
            }
            for name, limit in GOALS.items()
            if compared[name]["mean"]["error"] is not None
        },
        "over_time": over_time(run, served),
        "coverage": coverage,
        "notes": notes,
    }


def latencies(served: list[Served], outputs: np.ndarray) -> dict[str, np.ndarray]:
    """Seconds of each request. TPOT of requests with at least two output tokens (docs/metrics.md)."""
    queued, first, last = (
        np.array([getattr(s, name) for s in served]) for name in ("queued_s", "first_token_s", "last_token_s")
    )
    more = outputs > 1
    return {
        "ttft_s": first - queued,
        "tpot_s": (last - first)[more] / (outputs[more] - 1),
        "e2e_s": last - queued,
        "queue_s": np.array([s.scheduled_s for s in served]) - queued,
    }


def over_time(run: MeasuredRun, served: list[Served]) -> dict[str, Any]:
    """Output tokens per second. Only the first and the last token of a request are stamped: those between are spread evenly,
    in both, so that the two compare."""
    end = max(each.last_token_s for each in (*run.served, *served))
    edges = np.arange(0.0, end + _BIN_S, _BIN_S)
    document: dict[str, Any] = {"bin_s": _BIN_S}
    for name, those in (("measured", run.served), ("simulated", served)):
        counts = np.zeros(len(edges) - 1)
        for request, each in zip(run.requests, those, strict=True):
            stamps = np.linspace(each.first_token_s, each.last_token_s, request.output_tokens)
            counts += np.histogram(stamps, edges)[0]
        document[f"{name}_tokens_per_s"] = (counts / _BIN_S).tolist()
    return document


def _hardware(name: str | None, meta: Mapping[str, Any], run: MeasuredRun) -> Hardware:
    name = name or hardware_named(str(meta.get("hardware", "")))
    if name is None:
        raise UserError(
            f"the profile's hardware {meta.get('hardware')!r} is not a bundled description; "
            f"name one with --hardware: {', '.join(known_hardware())}, or a .yaml file"
        )
    card = load_hardware(name)[0]
    return replace(card, memory_utilization=float(run.memory_utilization)) if run.memory_utilization else card


def _compared(measured: np.ndarray, simulated: np.ndarray) -> dict[str, Any]:
    return {
        statistic: _pair(_statistic(measured, statistic), _statistic(simulated, statistic)) for statistic in STATISTICS
    }


def _statistic(values: np.ndarray, name: str) -> float:
    if not len(values):
        return 0.0
    return float(values.mean() if name == "mean" else np.percentile(values, float(name[1:])))


def _pair(measured: float, simulated: float) -> dict[str, float | None]:
    error = simulated / measured - 1 if measured else None
    return {
        "measured": float(measured),
        "simulated": float(simulated),
        "error": None if error is None else float(error),
    }

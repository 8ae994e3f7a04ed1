"""Replays of workloads by different ways of serving, as rows: what the figures from the scheduler on compare."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gyges.figures import paper
from gyges.figures.base import Workload
from gyges.figures.shared import limits_of, system_of
from gyges.figures.tradeoff import fitted_bytes_per_token, fitted_context
from gyges.metrics import definitions as d
from gyges.metrics.records import RequestRecord
from gyges.metrics.slo import Slo
from gyges.metrics.summary import distribution, summarize
from gyges.scheduling.specification import layout_of, make_policy
from gyges.sim.hardware import load_hardware
from gyges.sim.models import sim_model
from gyges.sim.simulator import SimResult, Simulator
from gyges.sim.system import System

MODEL, HARDWARE, DEVICES = "Qwen/Qwen2.5-32B", "h20", 8
SLO = Slo(ttft_s=paper.SLO_TTFT_S)
LONG = 32_768  # tokens of a prompt, from which on a request is called long


@dataclass(frozen=True, slots=True)
class Contender:
    """label: in plots.   system, policy: as in ``gyges sim run``; policy "": the one that the system is meant for."""

    label: str
    system: str
    policy: str = ""


@dataclass(frozen=True, slots=True)
class With:
    """A system with other prices or another room; everything else is passed on.

    kv_tokens: by degree.   switch_factor: on the seconds of every switch.
    """

    system: System
    kv_tokens: Mapping[int, int]
    switch_factor: float = 1.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.system, name)

    def switch(self, before: tuple[int, ...], after: tuple[int, ...], held_tokens: Sequence[int]) -> Any:
        found, factor = self.system.switch(before, after, held_tokens), self.switch_factor
        pace = found.pace
        if pace is not None:
            pace = replace(pace, steps=max(1, round(factor * pace.steps)))
        return replace(
            found,
            pause_s=factor * found.pause_s,
            ahead_s=factor * found.ahead_s,
            behind_s=factor * found.behind_s,
            pace=pace,
        )


def paper_room(system: System) -> dict[int, int]:
    """Tokens by degree that an instance of ``system`` would hold with the paper's usable memory and bytes for a token.

    From its own room follow the weights that its d devices hold together, d u - tokens x KV bytes; the paper's room is then
    (d u' - weights) / k with u' and k as in figure 1. With evenly cut weights that is the paper's 3.75K at TP1 and 41.25K at TP2.
    """
    model, hardware = sim_model(MODEL), load_hardware(HARDWARE)[0]
    usable = hardware.memory_bytes * hardware.memory_utilization - hardware.reserve_bytes
    token = fitted_bytes_per_token(model)
    theirs = token * (fitted_context(1) - fitted_context(0))
    held = {d: d * usable - tokens * model.kv_bytes_per_token(1) for d, tokens in system.kv_tokens.items()}
    return {d: max(1, int((d * theirs - weights) / token)) for d, weights in held.items()}


def replay(
    contender: Contender, workload: Workload, *, room: str = "own", switch_factor: float = 1.0
) -> dict[str, Any]:
    """Figures of one replay (:func:`measures`)."""
    result = simulate(contender, workload, room=room, switch_factor=switch_factor)
    return measures(result.records, summary_of(result))


def simulate(contender: Contender, workload: Workload, *, room: str = "own", switch_factor: float = 1.0) -> SimResult:
    """Qwen2.5-32B on 8 H20. room: of the KV cache, "own" or "paper" (:func:`paper_room`).   switch_factor: see :class:`With`."""
    system = system_of(contender.system, sim_model(MODEL), HARDWARE, DEVICES)
    kv_tokens = system.kv_tokens if room == "own" else paper_room(system)
    system = With(system, kv_tokens, switch_factor)
    policy = make_policy(contender.policy or system.policy)
    degrees = layout_of(policy, DEVICES) or (system.degrees[0],) * (DEVICES // system.degrees[0])
    # Nobody looks at the timeline between transformations.
    few = max(workload.requests[-1].arrival_s / 20, 1.0)
    return Simulator.of(system, degrees, limits_of(system), policy).run(workload.requests, sample_s=few)


def summary_of(result: SimResult) -> dict[str, Any]:
    """As of every run (gyges.metrics.summary); good is a TTFT within the paper's 10 s."""
    return summarize(result.records, result.samples, result.transformations, slo=SLO, simulated=True)


def measures(records: Sequence[RequestRecord], summary: Mapping[str, Any]) -> dict[str, Any]:
    """One row. Latencies in seconds, from the scheduled arrival; None: infinite (a mean, if one failed), or of nobody."""
    changes = summary["transformations"]
    row = {
        "requests": summary["requests"]["offered"],
        "completed": summary["requests"]["completed"],
        "output_tokens_per_s": summary["throughput"]["output_tokens_per_s"],
        "total_tokens_per_s": summary["throughput"]["total_tokens_per_s"],
        "goodput": summary["goodput"]["fraction"],
        "merges": changes["merges"],
        "splits": changes["splits"],
        "pause_total_s": changes["pause_total_s"],
    }
    groups = {"": records, "short_": [r for r in records if r.prompt_tokens < LONG],
              "long_": [r for r in records if r.prompt_tokens >= LONG]}  # fmt: skip
    for prefix, group in groups.items():
        for name, figure in (("ttft", d.ttft_s), ("tpot", d.tpot_s)):
            values = distribution([value for r in group if (value := figure(r)) is not None])
            for statistic in ("mean", "p50", "p99"):
                row[f"{prefix}{name}_{statistic}_s"] = (
                    values[statistic] if not (statistic == "mean" and values["infinite"]) else None
                )
    return row


def gain(
    rows: Sequence[Mapping[str, Any]], column: str, of: Mapping[str, Any], against: Mapping[str, Any]
) -> float | None:
    """By how much one replay's figure is over another's, as a share; None where one of them is not finite."""
    (ours,), (theirs,) = (
        [row for row in rows if all(row[key] == value for key, value in wanted.items())] for wanted in (of, against)
    )
    if not ours[column] or not theirs[column]:
        return None
    share = ours[column] / theirs[column] - 1
    return share if math.isfinite(share) else None

"""A simulated replay, and the result folder that it leaves: the one of a run on the engine, marked as simulated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from gyges.metrics.results import ResultFolder
from gyges.metrics.slo import Slo
from gyges.metrics.summary import summarize
from gyges.sim.of_engine import requests_of
from gyges.sim.progress import OnProgress
from gyges.sim.setup import Prepared
from gyges.sim.simulator import SimResult


def simulate(
    prepared: Prepared,
    lengths: Sequence[tuple[float, int, int]],
    folder: ResultFolder,
    *,
    names: Sequence[str] = (),
    mode: str = "open",
    slo: Slo | None = None,
    on_progress: OnProgress | None = None,
) -> tuple[SimResult, dict[str, Any]]:
    """Replays requests of these (arrival_s, prompt tokens, output tokens) and saves what came of it. (result, summary).

    names: of the requests; empty: r0, r1 and so on. Records are in the given order.   on_progress: see
    :meth:`Simulator.run`. Raises UserError before anything is saved.
    """
    requests, order = requests_of(lengths, mode)
    simulator = prepared.simulator()
    folder.update_manifest(simulation=dict(prepared.facts))
    result = simulator.run(requests, on_progress=on_progress)
    records = list(result.records)
    for place, index in enumerate(order):
        name = names[index] if names else f"r{index}"
        record = result.records[place]
        records[index] = record if record.request_id == name else replace(record, request_id=name)
    result.records = records
    summary = summarize(
        records,
        result.samples,
        result.transformations,
        slo=slo,
        replay_mode=mode,
        duration_s=result.end_s,
        simulated=True,
        notes=prepared.notes(),
    )
    summary["simulator"] = {
        "loop_s": result.loop_s,
        "steps": result.steps,
        "events": result.events,
        "transformation_parts_s": result.parts,
    }
    folder.save(records, result.samples, result.transformations, summary)
    return result, summary

"""``gyges sim agree``: a run of this project's own engine, simulated from a profile of the same device, and the signed errors.

Without transformations, each instance is simulated with the requests that it served, from when the client sent them, so that
what is scored is step times and batching, not routing. With transformations, their pauses are scored (gyges.sim.pauses).
Instances that share cores slow each other down, which a profile of one instance does not have.

Of several profiles, taken before and after a run, the mean counts: what a machine's speed drifts steadily by is in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from gyges.config import EngineConfig
from gyges.engine.placement import HostPlacement, Placer
from gyges.errors import UserError
from gyges.metrics.records import RequestRecord
from gyges.metrics.results import load_manifest
from gyges.metrics.tables import read_requests, read_timeline
from gyges.models.hub import resolve_model
from gyges.scheduling.batching import BatchLimits
from gyges.sim.compare import compare
from gyges.sim.cost.base import CostModel
from gyges.sim.cost.bundle import read_bundle
from gyges.sim.cost.mean import MeanCost
from gyges.sim.cost.tables import TableCost
from gyges.sim.pauses import PauseTable, compare_pauses
from gyges.sim.pipelined import PipelinedInstance, PipelinedRequest, Served

GOALS = {"throughput": 0.05, "tpot_s": 0.05, "ttft_s": 0.10}
# What makes a profile one of another engine.
_SAME = ("model", "dtype", "layout", "padding", "block_size", "threads")


def agree(run: Path, profiles: Sequence[Path], transforms: Sequence[Path] = ()) -> dict[str, Any]:
    """What both kinds of run have: ``run``, ``model``, ``instances``, ``coverage``, ``notes``, ``goals``. Of a run without
    transformations also :func:`gyges.sim.compare.compare`'s document of its completed requests; of one with them
    :func:`gyges.sim.pauses.compare_pauses`'s.

    ``run``: a folder of ``gyges bench run``.   ``profiles``: one or more of ``gyges profile``.   ``transforms``: one or more of
    ``gyges bench transform``, which a run with transformations needs.   Raises UserError for anything else.
    """
    manifest = load_manifest(run)
    engine = (manifest.get("configuration") or {}).get("engine")
    if manifest.get("kind") != "run" or not isinstance(engine, Mapping):
        raise UserError(f"{run} is not a result folder of gyges bench run")
    if not (run / "requests.parquet").is_file():
        raise UserError(f"{run} has no requests.parquet; the run did not get so far")
    timeline = run / "timeline.parquet"
    samples, events = read_timeline(timeline) if timeline.is_file() else ([], [])
    if events and not transforms:
        raise UserError(
            f"{run} transforms while it runs: what its pauses should be comes from a folder of gyges bench transform; "
            "name it with --transform-bench"
        )
    config = EngineConfig.from_dict(dict(engine))
    bundles = [read_bundle(profile) for profile in profiles]
    model = resolve_model(config.model, seed=config.seed, revision=config.revision, weights=False)
    placer = Placer(config, model.config, model.config.geometry(config.dtype))
    degrees = {sample.tp for sample in samples if sample.tp} if events else set(config.instances)
    costs = {
        degree: MeanCost([TableCost(bundle, placer.geometry, degree) for bundle in bundles])
        for degree in sorted(degrees)
    }
    if events:
        wide = max(max(*event.before, *event.after) for event in events)
        scored = compare_pauses(events, samples, placer.shape, costs, PauseTable.read(transforms, config, wide))
    else:
        scored = _compare_requests(run, placer.host(), config, costs)
    notes = [note for bundle in bundles for note in (*bundle.notes, *_differences(manifest, bundle.meta, config))]
    return {
        "run": run.name,
        "model": config.model,
        "instances": list(config.instances),
        **scored,
        "coverage": {f"tp{degree}": cost.coverage() for degree, cost in costs.items()},
        "notes": list(dict.fromkeys(notes)),
    }


def _compare_requests(
    run: Path, placement: HostPlacement, config: EngineConfig, costs: Mapping[int, CostModel]
) -> dict[str, Any]:
    records = read_requests(run / "requests.parquet")
    limits = BatchLimits(config.max_batch_tokens, config.max_seqs, placement.block_size)
    measured: list[Served] = []
    simulated: list[Served] = []
    outputs: list[int] = []
    for number, instance in enumerate(placement.instances):
        own = [record for record in records if record.instance == f"i{number}" and _whole(record)]
        requests = [PipelinedRequest(_sent(record), record.prompt_tokens, record.output_tokens) for record in own]
        served = PipelinedInstance(requests, costs[instance.degree], limits, instance.max_tokens, depth=1).run()
        # As a client sees it: from sending, in both.
        simulated += [replace(each, queued_s=request.arrival_s) for each, request in zip(served, requests, strict=True)]
        measured += [_measured(record) for record in own]
        outputs += [request.output_tokens for request in requests]
    if not outputs:
        raise UserError(f"{run} has no completed request with token times")
    return {
        "requests": len(outputs),
        "left_out": len(records) - len(outputs),
        "limits": asdict(limits),
        **compare(measured, simulated, outputs, GOALS),
    }


def _whole(record: RequestRecord) -> bool:
    stamped = record.sent_s is not None and record.first_scheduled_s is not None and len(record.token_times)
    return record.status == "completed" and bool(stamped)


def _sent(record: RequestRecord) -> float:
    assert record.sent_s is not None
    return record.sent_s


def _measured(record: RequestRecord) -> Served:
    assert record.first_scheduled_s is not None
    return Served(_sent(record), record.first_scheduled_s, record.token_times[0], record.token_times[-1])


def _differences(manifest: Mapping[str, Any], meta: Mapping[str, Any], config: EngineConfig) -> list[str]:
    """What a reader must know before trusting the figures."""
    notes = []
    profiled, ran = meta.get("engine") or {}, config.to_dict()
    for name in _SAME:
        if name in profiled and profiled[name] != ran.get(name):
            notes.append(f"the profile has {name} = {profiled[name]}, the run {ran.get(name)}")
    cpus = [(source.get(key) or {}).get("cpu") for source, key in ((meta, "machine"), (manifest, "hardware"))]
    if all(cpus) and cpus[0] != cpus[1]:
        notes.append(f"the profile is of {cpus[0]}, the run of {cpus[1]}")
    if len(config.instances) > 1:
        notes.append("instances share the machine's cores; the profile is of one instance alone")
    return notes

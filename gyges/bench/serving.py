"""What the manifest and the summary of every run on a real engine hold beside its figures."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from gyges.config import EngineConfig, available_cores
from gyges.engine.engine import Engine
from gyges.engine.replay import ReplayResult


def happenings(result: ReplayResult) -> dict[str, Any]:
    """What happened besides requests, for the manifest. Times: seconds from the replay's start."""
    return {
        "incidents": [asdict(incident) for incident in result.incidents],
        "failed_transformations": [asdict(event) for event in result.events if event.error],
        "by_hand": [outcome.to_dict() for outcome in result.by_hand],
    }


def engine_facts(engine: Engine) -> dict[str, Any]:
    """What the engine came to, for the manifest: sizes in tokens, blocks, pages, bytes; times in seconds."""
    return {
        "model": engine.model.name,
        "revision": engine.model.revision,
        "dtype": engine.dtype,
        "block_size": engine.placement.block_size,
        "shards": {"kv": engine.placement.shards.kv, "ffn": engine.placement.shards.ffn},
        "threads_per_worker": engine.config.worker_threads,
        "start_s": engine.start_s,
        "degrees": {str(d): {"kv_tokens": engine.placer.shape.max_tokens(d)} for d in engine.config.candidate_degrees},
        "instances": [
            {
                "degree": p.degree,
                "devices": list(p.members),
                "kv_tokens": p.max_tokens,
                "weight_pages": p.weight_pages,
                "kv_pages": p.kv_pages,
            }
            for p in engine.placement.instances
        ],
        "workers": [
            {"worker": r.worker, "load_s": r.load_s, "rss_bytes": r.rss_bytes, "free_pages": r.free_pages}
            for r in engine.ready
        ],
    }


def notes_of(config: EngineConfig) -> list[str]:
    """What a reader must know beside the figures of a run."""
    cores = available_cores()
    if config.num_devices <= cores:
        return []
    return [
        f"{config.num_devices} CPU devices share {cores} cores: compare policies by what they decide, not by throughput"
    ]

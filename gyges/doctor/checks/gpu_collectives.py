"""Collectives of workers that share a GPU: by peer memory, and by way of the host. Not yet run on hardware (docs/cuda.md)."""

from __future__ import annotations

import statistics
from typing import Any

from gyges.bench.allreduce import SHARED_GPU, all_reduce_times
from gyges.config import KIB, MIB, format_bytes
from gyges.doctor.checks import goal

_RUN_S = 50.0


def shared_gpu(
    workers: int = 4, sizes: tuple[int, ...] = (16 * KIB, 4 * MIB), calls: int = 200, driver: str = ""
) -> dict[str, Any]:
    """Sums of ``workers`` processes on one GPU, each looked at, and what they take. ``driver``: as in all_reduce_times."""
    figures: dict[str, Any] = {"workers": workers, "calls": calls}
    for way in SHARED_GPU:
        figures[way] = {}
        for size in sizes:
            seconds = sorted(all_reduce_times(way, workers, size, calls, _RUN_S, driver))
            p50, p99 = statistics.median(seconds), seconds[int(0.99 * (len(seconds) - 1))]
            figures[way][str(size)] = {"p50_us": p50 * 1e6, "p99_us": p99 * 1e6}
    peer, staged = (figures[way] for way in SHARED_GPU)
    said = [
        f"{format_bytes(size)} in {peer[str(size)]['p50_us']:.0f} us, staged {staged[str(size)]['p50_us']:.0f} us"
        for size in sizes
    ]
    goals = [
        goal(
            f"all-reduce of {format_bytes(size)} by peer memory against staged", "faster", 1.0,
            peer[str(size)]["p50_us"] / staged[str(size)]["p50_us"], unit="ratio", least=False,
        )
        for size in sizes
    ]  # fmt: skip
    return {"figures": figures, "goals": goals, "summary": f"{workers} workers on one GPU: {'; '.join(said)} (p50)"}

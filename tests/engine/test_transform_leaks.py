"""Merging and splitting for a long time, under load, leaves descriptors, mappings and memory where they were.

``GYGES_CYCLES=1000`` runs the long version.
"""

import os

import psutil
import pytest
from engine.transforming import Running, requests, result

from gyges import Engine, EngineConfig

pytestmark = pytest.mark.engine

CYCLES = int(os.environ.get("GYGES_CYCLES", "60"))
SETTLED = 10  # cycles after which nothing may grow


def footprint(engine: Engine) -> list[dict[str, int]]:
    """Of the controller's process (without its threads' stacks) and of every worker."""
    found = []
    for pid in [os.getpid(), *(worker.pid for worker in engine.workers)]:
        process = psutil.Process(pid)
        with open(f"/proc/{pid}/maps") as maps:
            mappings = len(maps.readlines())
        with open(f"/proc/{pid}/smaps_rollup") as rollup:
            anonymous = next(int(line.split()[1]) for line in rollup if line.startswith("Anonymous:"))
        found.append({"descriptors": process.num_fds(), "mappings": mappings, "anonymous_kib": anonymous})
    return found


@pytest.mark.parametrize(("layout", "padding"), [("shard-pages", True), ("token-first", False)])
def test_cycles_under_load_leak_nothing(layout, padding):
    config = EngineConfig(
        model="tiny",
        instances=(1, 1),
        tp_degrees=(1, 2),
        device_memory=16 << 20,
        threads=1,
        layout=layout,
        padding=padding,
    )
    prompts = [[(7 * i + 3 * j) % 2000 + 3 for j in range(20 + 9 * i)] for i in range(6)]
    with Engine(config) as engine:
        before = None
        running, batch = Running(engine), 0
        running.submit(*requests(prompts, [40] * 6, name="0-"))
        for cycle in range(CYCLES):
            if len(running.ends) == len(running.tokens):
                batch += 1
                running = Running(engine)
                running.submit(*requests(prompts, [40] * 6, name=f"{batch}-"))
            overlap = cycle % 2 == 0
            assert result(engine.merge((0, 1), overlap=overlap)).after == (2,)
            assert result(engine.split((0, 1), (1, 1), overlap=overlap)).after == (1, 1)
            if cycle == SETTLED:
                running.finish()
                before = footprint(engine)
        running.finish()
        after = footprint(engine)
        assert engine.failure is None
        assert not engine.incidents
        assert all(s.kv_used_blocks == 0 for s in engine.status())
        assert len(engine.reports) == 2 * CYCLES
    for was, now in zip(before, after, strict=True):
        assert now["descriptors"] == was["descriptors"]
        # Pages that are next to each other share a mapping, so the count breathes with what is free.
        assert now["mappings"] <= was["mappings"] + 200
        assert now["anonymous_kib"] <= was["anonymous_kib"] + 8 * 1024

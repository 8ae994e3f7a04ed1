"""All-reduce of a small message over several worker processes: the engine's shared memory against gloo; NCCL, a GPU for each.

``python -m gyges.bench.allreduce '{"backend": "shm", ...}'`` is one worker; :func:`all_reduce_times` starts them all. One
thread each, as the engine's workers have where they outnumber cores. Rank 0's seconds of each call, in order.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from gyges.bench.child import ChildError, child_environment
from gyges.errors import UnknownNameError

BACKENDS = ("shm", "gloo")  # of CPU devices
NCCL = "nccl"
_WARM_UP = 50
_COLLECTIVE_TIMEOUT_S = 60.0


def all_reduce_times(
    backend: str, workers: int = 4, message_bytes: int = 16 * 1024, calls: int = 400, timeout_s: float = 120.0
) -> list[float]:
    """Seconds of each of ``calls`` all-reduces of ``message_bytes`` of fp32. Raises ChildError if any worker fails."""
    if backend not in (*BACKENDS, NCCL):
        raise UnknownNameError("all-reduce backend", backend, (*BACKENDS, NCCL))
    from gyges.parallel.arena import SharedArena

    arena = SharedArena.create(workers, message_bytes)
    store = os.memfd_create("gyges-store", os.MFD_CLOEXEC)
    processes: list[subprocess.Popen[str]] = []
    try:
        for rank in range(workers):
            setup = {
                "backend": backend,
                "rank": rank,
                "workers": workers,
                "bytes": message_bytes,
                "calls": calls,
                "fd": arena.fd,
                "store": store,
            }
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "gyges.bench.allreduce", json.dumps(setup)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    pass_fds=(arena.fd, store),
                    env=child_environment(1),
                )
            )
        return _collect(processes, time.monotonic() + timeout_s, backend)
    finally:
        for process in processes:
            with contextlib.suppress(OSError):
                process.kill()
            process.wait()
        os.close(store)
        arena.close()


def _collect(processes: Sequence[subprocess.Popen[str]], deadline: float, backend: str) -> list[float]:
    answers = []
    for rank, process in enumerate(processes):
        try:
            out, error = process.communicate(timeout=max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise ChildError(f"{backend}: worker {rank} did not finish in time") from None
        if process.returncode:
            last = error.strip().splitlines()[-1:] or ["(it said nothing)"]
            raise ChildError(f"{backend}: worker {rank} ended with exit code {process.returncode}: {last[0]}")
        answers.append(out)
    return [float(value) for value in json.loads(answers[0].strip().splitlines()[-1])]


def _worker(setup: dict[str, Any]) -> list[float]:
    import torch

    torch.set_num_threads(1)
    rank, workers = setup["rank"], setup["workers"]
    device = torch.device("cuda", rank) if setup["backend"] == NCCL else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    mine = torch.full((setup["bytes"] // 4,), float(rank + 1), device=device)
    from gyges.parallel.arena import SharedArena
    from gyges.parallel.collectives import COLLECTIVES, Wanted

    arena = SharedArena(setup["fd"], workers, -(-setup["bytes"] // 4096) * 4096)
    wanted = Wanted(arena, rank, device, _COLLECTIVE_TIMEOUT_S, setup["store"])
    collectives = COLLECTIVES.get(setup["backend"]).make(wanted)
    comm = collectives.comm(tuple(range(workers)))
    held = mine.clone()

    def reduce() -> Any:
        held.copy_(mine)  # some sum in place: without this the sums would grow without bound
        total = comm.all_reduce(held)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return total

    seconds = []
    for call in range(_WARM_UP + setup["calls"]):
        started = time.perf_counter()
        total = reduce()
        if call >= _WARM_UP:
            seconds.append(time.perf_counter() - started)
        elif not call:
            expected = float(math.comb(workers + 1, 2))
            assert bool((total == expected).all()), f"the sum is {total[0]}, expected {expected}"
    collectives.close()
    return seconds


if __name__ == "__main__":
    print(json.dumps(_worker(json.loads(sys.argv[1]))))

"""All-reduce of one message over several worker processes: the engine's shared memory against gloo; NCCL, a GPU for each;
peer memory against the way by the host, where workers share GPUs.

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
SHARED_GPU = ("peer", "staged")  # worker w has GPU w % GPUs
_WARM_UP = 50
_COLLECTIVE_TIMEOUT_S = 60.0


def all_reduce_times(
    backend: str,
    workers: int = 4,
    message_bytes: int = 16 * 1024,
    calls: int = 400,
    timeout_s: float = 120.0,
    driver: str = "",
) -> list[float]:
    """Seconds of each of ``calls`` all-reduces of ``message_bytes`` of fp32. Raises ChildError if a worker fails, or its sums do.

    driver: "module:function" that makes one for every worker, whose GPU is this machine's memory then.
    """
    if backend not in (*BACKENDS, NCCL, *SHARED_GPU):
        raise UnknownNameError("all-reduce backend", backend, (*BACKENDS, NCCL, *SHARED_GPU))
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
                "driver": driver,
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


def _device(setup: dict[str, Any]) -> tuple[Any, Any]:
    """(torch's device, the GPU's driver where it is one's own) of a worker."""
    import torch

    if setup["backend"] in BACKENDS:
        return torch.device("cpu"), None
    from gyges.memory.cuda_driver import open_driver

    if setup["driver"]:
        return torch.device("cpu"), open_driver(0, setup["driver"])
    device = torch.device("cuda", setup["rank"] % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device, open_driver(device.index) if setup["backend"] in SHARED_GPU else None


def _worker(setup: dict[str, Any]) -> list[float]:
    import torch

    torch.set_num_threads(1)
    rank, workers = setup["rank"], setup["workers"]
    device, driver = _device(setup)
    mine = torch.full((setup["bytes"] // 4,), float(rank + 1), device=device)
    from gyges.parallel.arena import SharedArena
    from gyges.parallel.collectives import COLLECTIVES, Wanted

    arena = SharedArena(setup["fd"], workers, -(-setup["bytes"] // 4096) * 4096)
    wanted = Wanted(arena, rank, device, _COLLECTIVE_TIMEOUT_S, setup["store"], driver)
    collectives = COLLECTIVES.get(setup["backend"]).make(wanted)
    everyone = tuple(range(workers))
    collectives.prepare([everyone])
    comm = collectives.comm(everyone)
    # One after the other without a look in between: a sum with a part of another call would be another number.
    totals = [comm.all_reduce(mine * (call + 1)).clone() for call in range(_WARM_UP)]
    for call, total in enumerate(totals):
        expected = float(math.comb(workers + 1, 2) * (call + 1))
        assert bool((total == expected).all()), f"sum {call} is {total[0]}, expected {expected}"
    del totals, total
    held = mine.clone()

    def reduce() -> None:
        held.copy_(mine)  # some sum in place: without this the sums would grow without bound
        comm.all_reduce(held)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    seconds = []
    for _ in range(setup["calls"]):
        started = time.perf_counter()
        reduce()
        seconds.append(time.perf_counter() - started)
    collectives.close()
    return seconds


if __name__ == "__main__":
    print(json.dumps(_worker(json.loads(sys.argv[1]))))

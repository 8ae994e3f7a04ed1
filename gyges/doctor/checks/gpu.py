"""The CUDA memory pool on the GPU at hand: contract, other processes, budget, copies, ranges that begin unmapped.

Every function takes the device as a :class:`Gpu`; the tests give it one made of this machine's memory, so that a mistake here is
found before it costs time on a GPU. Not yet run on hardware (docs/cuda.md).
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gyges.bench.child import child_environment
from gyges.config import GIB, MIB, format_bytes
from gyges.doctor.checks import goal
from gyges.doctor.checks.memory import contract
from gyges.memory.cuda import CudaPagePool, CudaPeerMemory
from gyges.memory.cuda_driver import CudaDriver

_PEER_TIMEOUT_S = 60.0
_REPEATS = 9


@dataclass(frozen=True)
class Gpu:
    """``driver`` makes one for a pool of its own.   stream: what copies run on.   page_bytes: of every pool here."""

    driver: Callable[[], CudaDriver]
    stream: int
    page_bytes: int
    peer_arguments: tuple[str, ...] = ()

    def pool(self, pages: int) -> CudaPagePool:
        return CudaPagePool(pages, self.page_bytes, "gyges-doctor", driver=self.driver())


def first_gpu() -> Gpu:
    """Device 0, with a stream of torch's; pages of 2 MiB, or its granule where that is larger."""
    import torch

    stream = torch.cuda.Stream()
    _KEEP.append(stream)
    driver = CudaDriver(0)
    try:
        page = max(2 * MIB, driver.granule)
    finally:
        driver.close()
    return Gpu(lambda: CudaDriver(0), stream.cuda_stream, page)


_KEEP: list[Any] = []  # streams live as long as the process


# -- contract ---------------------------------------------------------------------------------------------------------


def pool_contract(gpu: Gpu | None = None) -> dict[str, Any]:
    """What every backend promises; the peer is this process itself."""
    gpu = gpu or first_gpu()
    pool = gpu.pool(12)
    try:
        contract(pool, lambda p: CudaPeerMemory(p.export(), p.capacity, p.page_bytes, driver=pool.driver))
    finally:
        pool.close()
    return {"figures": {"page_bytes": gpu.page_bytes}, "summary": "values, budget, peers, 300 random maps and unmaps"}


def peer_process(gpu: Gpu | None = None) -> dict[str, Any]:
    """Whether another process reads the same pages through the exported descriptors."""
    gpu = gpu or first_gpu()
    pool = gpu.pool(12)
    try:
        seen = _seen_by_another_process(gpu, pool)
    finally:
        pool.close()
    return {"figures": {"pages_seen_by_another_process": seen}, "summary": f"{seen} pages, by their descriptors"}


def _seen_by_another_process(gpu: Gpu, pool: CudaPagePool) -> int:
    import torch

    where = pool.reserve("shared", 8)
    slots = [1, 3, 4, 7]
    pool.map(where, slots)
    for slot in slots:
        where.tensor(torch.int32, (gpu.page_bytes // 4,), slot * gpu.page_bytes).fill_(1000 + slot)
    pool.driver.wait()
    descriptors = pool.export()
    about = {
        "descriptors": list(descriptors),
        "capacity": pool.capacity,
        "page_bytes": gpu.page_bytes,
        "start": where.table_start,
        "slots": where.num_pages,
    }
    done = subprocess.run(
        [sys.executable, "-m", "gyges.doctor.checks.peer_process", json.dumps(about), *gpu.peer_arguments],
        pass_fds=descriptors, env=child_environment(1), capture_output=True, text=True, timeout=_PEER_TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"the other process failed: {done.stderr.strip()[-2000:]}"
    found = json.loads(done.stdout.splitlines()[-1])
    wanted = {str(slot): 1000 + slot for slot in slots}
    assert found == wanted, f"the other process reads {found}, written was {wanted}"
    pool.unmap(where, slots)
    return len(slots)


# -- budget -----------------------------------------------------------------------------------------------------------


def budget(gpu: Gpu | None = None, most_bytes: int = 16 * GIB) -> dict[str, Any]:
    """The device's own count of free memory before, with, and after a pool, through many maps and unmaps."""
    gpu = gpu or first_gpu()
    watcher = gpu.driver()
    before, total = watcher.memory()
    pages = min(most_bytes, before // 2) // gpu.page_bytes
    pool = gpu.pool(pages)
    try:
        taken, wanted = before - watcher.memory()[0], pages * gpu.page_bytes
        assert taken >= wanted, f"a pool of {format_bytes(wanted)} took {format_bytes(taken)} of the device"
        where = pool.reserve("kv", 2 * pages)
        steps = []
        for step in range(8):
            count = max(1, pages * (step + 1) // 10)
            pool.map(where, range(step, step + count))
            steps.append(watcher.memory()[0])
            pool.check()
            pool.unmap(where, range(step, step + count))
            steps.append(watcher.memory()[0])
    finally:
        pool.close()
    left = before - watcher.memory()[0]
    watcher.close()
    drift = max(steps) - min(steps)
    figures = {
        "pages": pages, "budget_bytes": wanted, "taken_bytes": taken, "overhead_bytes": taken - wanted,
        "drift_bytes": drift, "left_behind_bytes": left, "device_bytes": total,
    }  # fmt: skip
    goals = [
        goal(
            "memory taken beyond the budget, share of it", "at most 1 %", 0.01, (taken - wanted) / wanted, least=False
        ),
        goal("change of free memory while pages come and go", "none", 0, float(drift), unit="bytes", least=False),
    ]
    said = [
        f"{format_bytes(value)} {what}" for value, what in ((taken, "taken"), (drift, "drift"), (left, "left behind"))
    ]
    return {"figures": figures, "goals": goals, "summary": f"{format_bytes(wanted)} budget: {', '.join(said)}"}


# -- copies -----------------------------------------------------------------------------------------------------------


def copy_rate(gpu: Gpu, size: int, repeats: int = _REPEATS) -> float:
    """Bytes per second that are copied from one place of the device to another (each is read once and written once)."""
    pages = -(-size // gpu.page_bytes)
    pool = gpu.pool(2 * pages)
    try:
        where = pool.reserve("copy", 2 * pages)
        pool.map(where, range(2 * pages))
        driver, length = pool.driver, pages * gpu.page_bytes
        seconds = []
        for _ in range(repeats + 1):
            driver.wait(gpu.stream)
            began = time.perf_counter()
            driver.copy(where.address + length, where.address, length, gpu.stream)
            driver.wait(gpu.stream)
            seconds.append(time.perf_counter() - began)
    finally:
        pool.close()
    return length / statistics.median(seconds[1:])


def copies(gpu: Gpu | None = None, sizes: tuple[int, ...] = (2 * MIB, 64 * MIB, GIB)) -> dict[str, Any]:
    gpu = gpu or first_gpu()
    rates = {str(size): copy_rate(gpu, size) for size in sizes}
    best = rates[str(sizes[-1])]
    # Named as in the field "transform" of a hardware file.
    figures = {"bytes_per_s": rates, "hardware": {"local_bytes_per_s": best}}
    text = f"{best / 1e9:.0f} GB/s from place to place of the device ({format_bytes(sizes[-1])}), twice that read and written"
    return {"figures": figures, "summary": text}


def gaps() -> dict[str, Any]:
    """Whether kernels take a tensor whose first page is not mapped, as a KV cache's mostly is; torch's and Triton's."""
    import torch

    gpu = first_gpu()
    pool = gpu.pool(2)
    try:
        where = pool.reserve("kv", 4)
        pool.map(where, [2])
        words = gpu.page_bytes // 4
        flat = where.tensor(torch.int32, (4 * words,))
        flat[2 * words : 3 * words].fill_(5)
        torch.cuda.synchronize()
        assert int(flat[3 * words - 1]) == 5, "torch lost a value that it wrote behind a gap"
        by_triton = _triton_takes(flat, 2 * words)
    finally:
        pool.close()
    said = "taken" if not by_triton else f"refused: {by_triton}"
    return {
        "figures": {"torch": "taken", "triton": said},
        "summary": f"a tensor that begins unmapped: torch takes it, by Triton {said}",
    }


def _triton_takes(flat: Any, at: int) -> str:
    """ "", or why not."""
    import torch

    from gyges.doctor.checks.gap_kernel import add_one

    try:
        add_one(flat, at)
    except (ValueError, RuntimeError) as error:
        return str(error)
    torch.cuda.synchronize()
    assert int(flat[at]) == 6, "a Triton kernel missed its address behind a gap"
    return ""

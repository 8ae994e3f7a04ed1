"""What CUDA virtual memory management costs on the GPU at hand: call by call, page by page, alone and in runs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from gyges.config import format_bytes
from gyges.doctor.checks.gpu import Gpu, first_gpu
from gyges.memory.cuda_driver import CudaDriver

_REPEATS = 9


def costs(gpu: Gpu | None = None, pages: int = 1024, runs: tuple[int, ...] = (1, 8, 64, 512)) -> dict[str, Any]:
    """``by_run``: seconds of mapping, access and unmapping of that many neighbouring pages.   hardware: fields of "transform" in
    a hardware file.   create_s, release_s: of a page.   pool: of a page through the pool, bookkeeping included."""
    gpu = gpu or first_gpu()
    driver, page = gpu.driver(), gpu.page_bytes
    began = time.perf_counter()
    handles = [driver.create(page) for _ in range(pages)]
    create_s = (time.perf_counter() - began) / pages
    address = driver.reserve(pages * page)
    by_run: dict[int, dict[str, float]] = {}
    for run in runs:
        samples = [_one_run(driver, address, page, handles[:run]) for _ in range(_REPEATS)]
        by_run[run] = {name: statistics.median(sample[name] for sample in samples) for name in samples[0]}
    began = time.perf_counter()
    for handle in handles:
        driver.release(handle)
    release_s = (time.perf_counter() - began) / pages
    driver.free_addresses(address, pages * page)
    driver.close()
    pool = _pool_costs(gpu, max(runs))
    hardware = fields_of(by_run)
    figures = {
        "page_bytes": page, "create_s": create_s, "release_s": release_s, "by_run": {str(r): c for r, c in by_run.items()},
        "hardware": hardware, "pool": pool,
    }  # fmt: skip
    said = ", ".join(f"{name} {value * 1e6:.2f} us" for name, value in hardware.items())
    through = f"through the pool {pool['map_s'] * 1e6:.2f} and {pool['unmap_s'] * 1e6:.2f} us in runs of {max(runs)}"
    return {"figures": figures, "summary": f"pages of {format_bytes(page)}: {said}; {through}"}


def fields_of(by_run: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """Least squares of seconds = n x pages + range: ``map_s`` and ``unmap_s`` of a page, ``range_s`` for each range of either."""
    import numpy as np

    pages = np.array(list(by_run), float)
    maps = np.array([cost["map_s"] + cost["access_s"] for cost in by_run.values()])
    unmaps = np.array([cost["unmap_s"] for cost in by_run.values()])
    design = np.stack([pages, np.ones_like(pages)], axis=1)
    # Long runs weigh as much as short ones: relative errors count, or the range's part would be lost.
    found = [
        np.linalg.lstsq(design / seconds[:, None], np.ones_like(seconds), rcond=None)[0] for seconds in (maps, unmaps)
    ]
    (map_s, map_range), (unmap_s, unmap_range) = (np.maximum(values, 0.0).tolist() for values in found)
    return {"map_s": map_s, "unmap_s": unmap_s, "range_s": (map_range + unmap_range) / 2}


def _one_run(driver: CudaDriver, address: int, page: int, handles: list[Any]) -> dict[str, float]:
    marks = [time.perf_counter()]
    for index, handle in enumerate(handles):
        driver.map(address + index * page, page, handle)
    marks.append(time.perf_counter())
    driver.allow(address, len(handles) * page, write=True)
    marks.append(time.perf_counter())
    driver.unmap(address, len(handles) * page)
    marks.append(time.perf_counter())
    return dict(zip(("map_s", "access_s", "unmap_s"), (b - a for a, b in pairwise(marks)), strict=True))


def _pool_costs(gpu: Gpu, run: int) -> dict[str, float]:
    pool = gpu.pool(run)
    try:
        where = pool.reserve("kv", run)
        samples = []
        for _ in range(_REPEATS):
            began = time.perf_counter()
            pool.map(where, range(run))
            mapped = time.perf_counter()
            pool.unmap(where, range(run))
            samples.append((mapped - began, time.perf_counter() - mapped))
    finally:
        pool.close()
    maps, unmaps = zip(*samples, strict=True)
    return {"pages": run, "map_s": statistics.median(maps) / run, "unmap_s": statistics.median(unmaps) / run}

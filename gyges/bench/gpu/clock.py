"""Seconds of a piece of work on a device, with cold caches."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

_FLUSH_BYTES = 512 << 20  # many times the L2 of today's GPUs, and long enough to hide the launch of what follows


class DeviceClock:
    """``device`` cuda: its own events; cpu: the process's clock. ``flush``: overwrite the caches before every measurement."""

    def __init__(self, device: torch.device, *, flush: bool = True) -> None:
        self.device = device
        self._flush: torch.Tensor | None = None
        if flush and device.type == "cuda":
            self._flush = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device=device)

    def measure(self, work: Callable[[int], Any], *, repeats: int, warm_up: int = 2) -> list[float]:
        """Seconds of each ``work(i)``, i = 0 .. repeats, after ``warm_up`` calls that are not counted."""
        for index in range(warm_up):
            work(index)
        if self.device.type != "cuda":
            return [_wall_s(work, index) for index in range(repeats)]
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
        for index, (began, ended) in enumerate(events):
            if self._flush is not None:
                self._flush.zero_()
            began.record()
            work(index)
            ended.record()
        torch.cuda.synchronize(self.device)
        return [began.elapsed_time(ended) / 1e3 for began, ended in events]

    def copy_bytes_per_s(self, size: int, *, repeats: int = 10) -> float:
        """Bytes read plus bytes written per second of a plain copy of ``size`` bytes on the device; the median."""
        src = torch.ones(size, dtype=torch.uint8, device=self.device)
        dst = torch.empty_like(src)
        return 2 * size / statistics.median(self.measure(lambda _: dst.copy_(src), repeats=repeats))


def _wall_s(work: Callable[[int], Any], index: int) -> float:
    began = time.perf_counter()
    work(index)
    return time.perf_counter() - began

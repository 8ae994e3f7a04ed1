"""The harshest memory that the contract of gyges.transform.memory allows."""

from __future__ import annotations

import ctypes
import random
import time
from collections.abc import Callable
from functools import partial

from gyges.memory.cpu import CpuPagePool
from gyges.transform.memory import CpuMemory

_LONGEST_S = 0.005
_NOT_A_NUMBER = 0xFF  # as every byte of a float


class LateMemory(CpuMemory):
    """Copies are carried out when the host waits for them, or when kernels that come next must find them done. How long it takes
    differs from worker to worker, so others may be ahead by then. What is given up is overwritten."""

    overlaps = True

    def __init__(self) -> None:
        self._queue: list[Callable[[], None]] = []
        self._seconds: list[float] = []
        self._delays = random.Random()

    @property
    def copying(self) -> bool:
        return bool(self._queue or self._seconds)

    def pool(self, capacity: int, page_bytes: int, name: str) -> CpuPagePool:
        return _StrictPool(capacity, page_bytes, name, self)

    def copy(self, *arguments) -> None:
        self._queue.append(partial(super().copy, *arguments))

    def join(self) -> None:
        for copy in self._queue:
            began = time.perf_counter()
            copy()
            self._seconds.append(time.perf_counter() - began)
        self._queue = []

    def wait(self) -> list[float]:
        if self._queue:
            time.sleep(self._delays.random() * _LONGEST_S)
        self.join()
        seconds, self._seconds = self._seconds, []
        return seconds


class _StrictPool(CpuPagePool):
    """Does not wait for copies, as a pool would: it says who should have. What is given up is there no longer, for peers too."""

    def __init__(self, capacity: int, page_bytes: int, name: str, memory: LateMemory) -> None:
        self._memory = memory
        super().__init__(capacity, page_bytes, name)

    def _before_unmap(self) -> None:
        assert not self._memory.copying, "pages are unmapped and copies may be under way"

    def _unmap_run(self, address: int, count: int) -> None:
        ctypes.memset(address, _NOT_A_NUMBER, count * self.page_bytes)
        super()._unmap_run(address, count)

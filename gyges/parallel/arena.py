"""The shared memory behind the CPU collectives of a host. Torch-free: the controller makes it.

One memfd serves the whole host, whatever groups are formed later:

    | sem[src][dst], one per ordered pair of workers | epoch[worker] |  | worker 0: buffer A | buffer B |  | worker 1: ...

A worker's epoch goes up when the controller wants it out of whatever collective it is in (a peer has died).
"""

from __future__ import annotations

import ctypes
import ctypes.util
import mmap
import os
from collections.abc import Iterable

_SEM_BYTES = 64  # sizeof(sem_t) is 32 on Linux; one per cache line

libc = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)


class SharedArena:
    """The memory behind all groups of a host. The controller creates it, every worker attaches to its descriptor."""

    def __init__(self, fd: int, num_workers: int, buffer_bytes: int) -> None:
        self.fd, self.num_workers, self.buffer_bytes = fd, num_workers, buffer_bytes
        self.memory = mmap.mmap(fd, self.total_bytes(num_workers, buffer_bytes))
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))

    @staticmethod
    def _header_bytes(num_workers: int) -> int:
        return -(-((num_workers + 1) * num_workers * _SEM_BYTES) // 4096) * 4096

    @classmethod
    def total_bytes(cls, num_workers: int, buffer_bytes: int) -> int:
        return cls._header_bytes(num_workers) + 2 * num_workers * buffer_bytes

    @classmethod
    def create(cls, num_workers: int, buffer_bytes: int) -> SharedArena:
        """buffer_bytes: the largest message of one worker; pages that no message reaches are never touched."""
        buffer_bytes = -(-buffer_bytes // 4096) * 4096
        fd = os.memfd_create("gyges-collectives", os.MFD_CLOEXEC)
        os.ftruncate(fd, cls.total_bytes(num_workers, buffer_bytes))
        arena = cls(fd, num_workers, buffer_bytes)
        arena.reset()
        return arena

    def reset(self, workers: Iterable[int] | None = None) -> None:
        """The semaphores among ``workers`` (all, if None) to zero. Only while none of them is inside a collective."""
        chosen = range(self.num_workers) if workers is None else list(workers)
        for src in chosen:
            for dst in chosen:
                if libc.sem_init(ctypes.c_void_p(self.semaphore(src, dst)), 1, 0):
                    raise OSError(ctypes.get_errno(), "sem_init failed")

    def semaphore(self, src: int, dst: int) -> int:
        return self._base + (src * self.num_workers + dst) * _SEM_BYTES

    def _epoch(self, worker: int) -> ctypes.c_int64:
        at = self._base + (self.num_workers * self.num_workers + worker) * _SEM_BYTES
        return ctypes.c_int64.from_address(at)

    def epoch(self, worker: int) -> int:
        return self._epoch(worker).value

    def abort(self, worker: int) -> None:
        """Whatever collective this worker waits in ends with CollectiveAborted, within a fraction of a second."""
        self._epoch(worker).value += 1

    def buffer_offset(self, worker: int, parity: int, length: int) -> int:
        """Where in ``memory`` a worker's buffer A (parity 0) or B (1) starts; ``length`` bytes are about to be used."""
        assert length <= self.buffer_bytes, f"message of {length} bytes exceeds the {self.buffer_bytes} byte buffer"
        return self._header_bytes(self.num_workers) + (2 * worker + parity) * self.buffer_bytes

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        # The mapping goes with the process: tensors may still point into it.

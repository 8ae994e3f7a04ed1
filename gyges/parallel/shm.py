"""Collectives over shared memory and process-shared POSIX semaphores, for workers on one machine's CPU.

``sem[src][dst]`` counts messages from src that dst has not yet taken. A collective costs 2 (n - 1) posts: the others
tell rank 0 of the group that their part is written, rank 0 adds the parts up in its own buffer and tells the others.
Adding on one rank is right where cores are scarcer than workers; larger messages are added in slices, one per rank.

Buffers alternate (A, B): a rank may write its next part while a slow peer still reads the last result, and no rank can be
two collectives ahead, since each one waits for all. So a result stays valid until the next-but-one collective.

Measured on 2 cores with 4 workers, 16 KiB: `gyges bench peers` prints it beside gloo.
"""

from __future__ import annotations

import ctypes
import os
import time
from typing import TYPE_CHECKING

from gyges.parallel.arena import SharedArena, libc
from gyges.parallel.comm import CollectiveAborted, CollectiveTimeout

if TYPE_CHECKING:
    import torch

_SLICE_FROM_BYTES = 128 * 1024
_ABORT_CHECK_S = 0.05
_EINTR, _ETIMEDOUT = 4, 110


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


class ShmComm:
    """See :class:`gyges.parallel.comm.Comm`. ``members`` are worker indices, ``members[0]`` adds up."""

    def __init__(self, arena: SharedArena, members: tuple[int, ...], worker: int, timeout: float = 60.0) -> None:
        self.arena, self.members, self.worker, self.timeout = arena, members, worker, timeout
        self.rank, self.size = members.index(worker), len(members)
        self._parity = 0
        self._epoch = arena.epoch(worker)
        root = members[0]
        others = members[1:]
        sem = lambda src, dst: ctypes.c_void_p(arena.semaphore(src, dst))  # noqa: E731
        self._from_others = [(w, sem(w, root)) for w in others] if worker == root else []
        self._to_others = [sem(root, w) for w in others] if worker == root else []
        self._from_root = [(root, sem(root, worker))]
        self._to_root = sem(worker, root)

    def _await(self, src: int, semaphore: ctypes.c_void_p) -> None:
        if libc.sem_trywait(semaphore) == 0:
            return
        end = time.time() + self.timeout
        while True:
            now = time.time()
            until = min(end, now + _ABORT_CHECK_S)
            deadline = _Timespec(int(until), int(until % 1 * 1e9))
            if libc.sem_timedwait(semaphore, ctypes.byref(deadline)) == 0:
                return
            code = ctypes.get_errno()
            if self.arena.epoch(self.worker) != self._epoch:
                raise CollectiveAborted(f"worker {self.worker} was called out of a collective of {self.members}")
            if code == _ETIMEDOUT and until >= end:
                raise CollectiveTimeout(
                    f"worker {self.worker} waited {self.timeout:.0f} s for worker {src} in a collective of {self.members}"
                )
            if code not in (_EINTR, _ETIMEDOUT):
                raise OSError(code, os.strerror(code))

    def _arrive(self) -> None:
        """Everyone's part is written: rank 0 returns once all have come, the others at once."""
        if self.rank == 0:
            for src, semaphore in self._from_others:
                self._await(src, semaphore)
        else:
            libc.sem_post(self._to_root)

    def _leave(self) -> None:
        """Rank 0 lets the others go; they return once it has."""
        if self.rank == 0:
            for semaphore in self._to_others:
                libc.sem_post(semaphore)
        else:
            for src, semaphore in self._from_root:
                self._await(src, semaphore)

    def _buffer(self, worker: int, parity: int, dtype: torch.dtype, count: int) -> torch.Tensor:
        import torch  # seconds, which those that need barriers alone are spared

        offset = self.arena.buffer_offset(worker, parity, count * dtype.itemsize)
        return torch.frombuffer(self.arena.memory, dtype=dtype, count=count, offset=offset)

    def barrier(self) -> None:
        self._arrive()
        self._leave()

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.view(-1)
        parity, self._parity = self._parity, self._parity ^ 1
        parts = [self._buffer(w, parity, x.dtype, flat.numel()) for w in self.members]
        parts[self.rank].copy_(flat)
        self._arrive()
        if flat.numel() * x.dtype.itemsize >= _SLICE_FROM_BYTES:
            self._leave()
            n = flat.numel()
            mine = slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)
            for part in parts[1:]:
                parts[0][mine] += part[mine]
            self._arrive()
        elif self.rank == 0:
            for part in parts[1:]:
                parts[0] += part
        self._leave()
        return parts[0].view(x.shape)

    def gather_columns(self, x: torch.Tensor, widths: list[int]) -> torch.Tensor | None:
        rows = x.shape[0]
        parity, self._parity = self._parity, self._parity ^ 1
        if self.rank:
            self._buffer(self.worker, parity, x.dtype, x.numel()).copy_(x.reshape(-1))
        self._arrive()
        gathered = None
        if self.rank == 0:
            import torch

            parts = [x] + [
                self._buffer(w, parity, x.dtype, rows * width).view(rows, width)
                for w, width in zip(self.members[1:], widths[1:], strict=True)
            ]
            gathered = torch.cat(parts, dim=1)
        self._leave()
        return gathered

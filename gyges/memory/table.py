"""The page table of a device, shared with its peers: which page is at which slot of which range. One memfd, no message.

    int32 [slots of range 0 | slots of range 1 | ...]     -1: nothing mapped;  ranges in the order they were reserved

The owner of the pages writes it, and reads it too; a peer process maps it read only, and finds a slot's page without asking.
"""

from __future__ import annotations

import mmap
import os

import numpy as np

_BYTES = 1 << 28  # addresses only: what no range uses is never touched


class PageTable:
    """Made by the owner with :meth:`create`, opened by a peer from the descriptor, which may be closed once this exists."""

    def __init__(self, fd: int, *, writable: bool = False) -> None:
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self._slots = np.frombuffer(mmap.mmap(fd, _BYTES, mmap.MAP_SHARED, access), np.int32)
        self.fd = fd if writable else -1
        self.used = 0

    @classmethod
    def create(cls, name: str) -> PageTable:
        fd = os.memfd_create(name, os.MFD_CLOEXEC)
        os.ftruncate(fd, _BYTES)
        return cls(fd, writable=True)

    def take(self, num_slots: int) -> tuple[int, np.ndarray]:
        """(start, int32 [num_slots], nothing mapped): the part of the next range."""
        start, self.used = self.used, self.used + num_slots
        assert 4 * self.used <= _BYTES, f"a range of {num_slots} pages exceeds the page table"
        part = self.part(start, num_slots)
        part[:] = -1
        return start, part

    def part(self, start: int, num_slots: int) -> np.ndarray:
        return self._slots[start : start + num_slots]

    def close(self) -> None:
        """Idempotent. The mapping goes when the last array over it does."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        self._slots = np.empty(0, np.int32)

"""Pages under everything, on the CPU: ``memfd_create`` + ``mmap(MAP_FIXED)``, the same thing as CUDA VMM, for real.

    memfd (the device's physical pages)      address range (reserved once, PROT_NONE)

    page 0  page 1  page 2  page 3           slot 0    slot 1    slot 2    slot 3 ...
    [  A ]  [  B ]  [free]  [  C ]           [-> 3 C]  [fault]   [-> 0 A]  [-> 1 B]

The file is populated once: mapping memory that was never touched costs milliseconds a page. Where the kernel can (Linux 6.1 and
newer), its memory is then made of huge pages, as a GPU's is: a 2 MiB page is one entry of the processor's page table instead of
512, and mapping or unmapping it takes 1 us instead of 60. Runs of neighbouring slots that receive neighbouring pages share one
``mmap`` call and one kernel VMA.
"""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING

import numpy as np

from gyges.config import format_bytes
from gyges.errors import UserError
from gyges.memory.base import AddressRange
from gyges.memory.booked import BookedPool, BookedRange
from gyges.memory.table import PageTable

if TYPE_CHECKING:
    import torch

_PROT_NONE, _PROT_READ, _PROT_RW = 0, 1, 3
_MAP_SHARED, _MAP_PRIVATE, _MAP_FIXED, _MAP_ANONYMOUS, _MAP_NORESERVE, _MAP_POPULATE = 1, 2, 0x10, 0x20, 0x4000, 0x8000
_MADV_COLLAPSE = 25
_HUGE = 2 << 20  # what one entry of the upper level of the page table covers (x86-64, arm64 with 4 KiB pages)
_MAP_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def _mmap(address: int | None, length: int, prot: int, flags: int, fd: int = -1, offset: int = 0) -> int:
    got = _libc.mmap(address, length, prot, flags, fd, offset)
    if got is None or got == _MAP_FAILED:
        code = ctypes.get_errno()
        raise OSError(code, f"mmap of {format_bytes(length)} failed: {os.strerror(code)}")
    return int(got)


class _Reserved:
    """Addresses that fault, starting at a multiple of a huge page, so that a huge page can be mapped by one entry."""

    def __init__(self, length: int) -> None:
        self._start, self._length = 0, length + _HUGE
        self._start = _mmap(None, self._length, _PROT_NONE, _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_NORESERVE)
        self.address = -(-self._start // _HUGE) * _HUGE

    def close(self) -> None:
        """Idempotent; whatever is mapped there goes with it."""
        if self._length:
            _libc.munmap(self._start, self._length)
            self._length = 0


def _make_huge(fd: int, length: int) -> int:
    """Bytes of the file that are huge pages now. Takes about 1 ms each; the kernel may refuse, and then nothing changes."""
    length -= length % _HUGE
    if not length:
        return 0
    where = _Reserved(length)
    try:
        _mmap(where.address, length, _PROT_RW, _MAP_SHARED | _MAP_FIXED, fd)
        return length if _libc.madvise(where.address, length, _MADV_COLLAPSE) == 0 else 0
    finally:
        where.close()


def require_memory(bytes_wanted: int) -> None:
    """Raises UserError if the machine has less memory available: asking the kernel for it would end in its OOM killer."""
    import psutil

    available = psutil.virtual_memory().available
    if bytes_wanted > available:
        raise UserError(
            f"the devices need {format_bytes(bytes_wanted)} and this machine has {format_bytes(available)} available; "
            "give a smaller --device-memory or fewer devices"
        )


def _window(dtype: torch.dtype, shape: tuple[int, ...], address: int) -> torch.Tensor:
    import torch

    count = 1
    for size in shape:
        count *= size
    if not count:
        return torch.empty(shape, dtype=dtype)
    memory = (ctypes.c_uint8 * (count * dtype.itemsize)).from_address(address)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


class CpuAddressRange(BookedRange):
    def __init__(self, name: str, num_pages: int, page_bytes: int, table: np.ndarray, table_start: int) -> None:
        super().__init__(name, num_pages, page_bytes, table, table_start)
        self._reserved = _Reserved(self.length)
        self.address = self._reserved.address

    def _view(self, dtype: torch.dtype, shape: tuple[int, ...], address: int) -> torch.Tensor:
        return _window(dtype, shape, address)

    def close(self) -> None:
        self._reserved.close()
        self.mapped = 0


class CpuPeerMemory:
    """See :class:`gyges.memory.base.PeerMemory`. The descriptors may be closed once this exists."""

    def __init__(self, descriptors: tuple[int, ...], capacity: int, page_bytes: int) -> None:
        pages_fd, table_fd = descriptors
        self._length = capacity * page_bytes
        self._reserved = _Reserved(self._length)
        self.address = self._reserved.address
        # Populated once: a page fault per 4 KiB would cost more than the copy.
        _mmap(self.address, self._length, _PROT_READ, _MAP_SHARED | _MAP_FIXED | _MAP_POPULATE, pages_fd)
        self._table = PageTable(table_fd)

    def pages(self, where: AddressRange) -> np.ndarray:
        return self._table.part(where.table_start, where.num_pages)

    def tensor(self) -> torch.Tensor:
        import torch

        return _window(torch.uint8, (self._length,), self.address)

    def close(self) -> None:
        if self._length:
            self._reserved.close()
            self._table.close()
            self._length = 0


class CpuPagePool(BookedPool):
    """See :class:`gyges.memory.base.PagePool`. Raises UserError when the machine cannot back the budget."""

    def __init__(self, capacity: int, page_bytes: int, name: str = "gyges") -> None:
        require_memory(capacity * page_bytes)
        super().__init__(capacity, page_bytes, name)
        self._fd = os.memfd_create(name, os.MFD_CLOEXEC)
        try:
            os.posix_fallocate(self._fd, 0, capacity * page_bytes)
        except OSError as error:
            self.close()
            raise UserError(
                f"this machine cannot back a device of {format_bytes(capacity * page_bytes)} ({error.strerror}); "
                "give a smaller --device-memory or fewer devices"
            ) from error
        self.huge_bytes = _make_huge(self._fd, capacity * page_bytes)

    def reserve(self, name: str, num_pages: int) -> CpuAddressRange:
        where = self._reserve(name, num_pages)
        assert isinstance(where, CpuAddressRange)
        return where

    def _make_range(self, name: str, num_pages: int, table: np.ndarray, table_start: int) -> CpuAddressRange:
        return CpuAddressRange(name, num_pages, self.page_bytes, table, table_start)

    def _map_run(self, address: int, page: int, count: int) -> None:
        flags = _MAP_SHARED | _MAP_FIXED | _MAP_POPULATE
        _mmap(address, count * self.page_bytes, _PROT_RW, flags, self._fd, page * self.page_bytes)

    def _unmap_run(self, address: int, count: int) -> None:
        # An anonymous PROT_NONE mapping on top keeps the addresses reserved.
        flags = _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_NORESERVE | _MAP_FIXED
        _mmap(address, count * self.page_bytes, _PROT_NONE, flags)

    def export(self) -> tuple[int, ...]:
        return self._fd, self._table.fd

    def close(self) -> None:
        self.clear()
        self._table.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

"""Pages under everything, on the CPU: ``memfd_create`` + ``mmap(MAP_FIXED)``, the same thing as CUDA VMM, for real.

    memfd (the device's physical pages)      address range (reserved once, PROT_NONE)

    page 0  page 1  page 2  page 3           slot 0    slot 1    slot 2    slot 3 ...
    [  A ]  [  B ]  [free]  [  C ]           [-> 3 C]  [fault]   [-> 0 A]  [-> 1 B]

The file is populated once: mapping memory that was never touched costs milliseconds a page. Where the kernel can (Linux 6.1 and
newer), its memory is then made of huge pages, as a GPU's is: a 2 MiB page is one entry of the processor's page table instead of
512, and mapping or unmapping it takes 1 us instead of 60. Runs of neighbouring slots that receive neighbouring pages share one
``mmap`` call and one kernel VMA.

A second, small file is the page table, so that a peer process can find a slot's page without asking:

    int32 [slots of range 0 | slots of range 1 | ...]     -1: nothing mapped;  ranges in the order they were reserved
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from gyges.config import format_bytes
from gyges.errors import UserError
from gyges.memory.base import OutOfPages

if TYPE_CHECKING:
    import torch

_PROT_NONE, _PROT_RW = 0, 3
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


_SORT_FROM = 8
_TABLE_BYTES = 1 << 28  # addresses only: what no range uses is never touched
_PROT_READ = 1


def _flat(address: int, length: int) -> np.ndarray:
    return np.frombuffer((ctypes.c_uint8 * length).from_address(address), np.uint8)


class CpuAddressRange:
    """See :class:`gyges.memory.base.AddressRange`. ``table`` [slots] int32: the page at each slot, or -1."""

    def __init__(self, name: str, num_pages: int, page_bytes: int, table: np.ndarray, table_start: int) -> None:
        self.name, self.num_pages, self.page_bytes = name, num_pages, page_bytes
        self.table, self.table_start = table, table_start
        self.mapped = 0
        self.length = max(1, num_pages) * page_bytes
        self._reserved = _Reserved(self.length)
        self.address = self._reserved.address

    def tensor(self, dtype: torch.dtype, shape: Sequence[int], offset_bytes: int = 0) -> torch.Tensor:
        import torch

        count = 1
        for size in shape:
            count *= size
        need = count * dtype.itemsize
        assert offset_bytes + need <= self.length, f"view of {need} bytes at {offset_bytes} leaves range {self.name!r}"
        if count == 0:
            return torch.empty(tuple(shape), dtype=dtype)
        window = (ctypes.c_uint8 * need).from_address(self.address + offset_bytes)
        return torch.frombuffer(window, dtype=dtype).view(tuple(shape))

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
        self._table = _mmap(None, _TABLE_BYTES, _PROT_READ, _MAP_SHARED, table_fd)

    def pages(self, where: CpuAddressRange) -> np.ndarray:
        address = self._table + 4 * where.table_start
        return _flat(address, 4 * where.num_pages).view(np.int32)

    def close(self) -> None:
        if self._length:
            self._reserved.close()
            _libc.munmap(self._table, _TABLE_BYTES)
            self._length = 0


class CpuPagePool:
    """See :class:`gyges.memory.base.PagePool`. ``capacity`` pages of ``page_bytes`` each.

    Raises UserError when the machine cannot back the budget.
    """

    def __init__(self, capacity: int, page_bytes: int, name: str = "gyges") -> None:
        require_memory(capacity * page_bytes)
        self.capacity, self.page_bytes = capacity, page_bytes
        self._ranges: list[CpuAddressRange] = []
        # Lowest page last: fresh pools hand out ascending pages, which the kernel merges into few VMAs.
        self._free = list(range(capacity - 1, -1, -1))
        self._peak = 0
        self._table_used = 0
        self._fd = os.memfd_create(name, os.MFD_CLOEXEC)
        self._table_fd = os.memfd_create(f"{name}-table", os.MFD_CLOEXEC)
        os.ftruncate(self._table_fd, _TABLE_BYTES)
        self._table = _mmap(None, _TABLE_BYTES, _PROT_RW, _MAP_SHARED, self._table_fd)
        try:
            os.posix_fallocate(self._fd, 0, capacity * page_bytes)
        except OSError as error:
            self.close()
            raise UserError(
                f"this machine cannot back a device of {format_bytes(capacity * page_bytes)} ({error.strerror}); "
                "give a smaller --device-memory or fewer devices"
            ) from error
        self.huge_bytes = _make_huge(self._fd, capacity * page_bytes)

    @property
    def free_pages(self) -> int:
        return len(self._free)

    @property
    def peak_mapped(self) -> int:
        return self._peak

    def reset_peak(self) -> None:
        self._peak = self.capacity - len(self._free)

    def reserve(self, name: str, num_pages: int) -> CpuAddressRange:
        start = self._table_used
        assert 4 * (start + num_pages) <= _TABLE_BYTES, f"range {name!r} of {num_pages} pages exceeds the page table"
        table = _flat(self._table + 4 * start, 4 * num_pages).view(np.int32)
        table[:] = -1
        self._table_used += num_pages
        where = CpuAddressRange(name, num_pages, self.page_bytes, table, start)
        self._ranges.append(where)
        return where

    def map(self, where: CpuAddressRange, slots: Sequence[int] | np.ndarray) -> None:
        slots = np.sort(np.asarray(slots, np.int64))
        count = len(slots)
        if not count:
            return
        if count > len(self._free):
            raise OutOfPages(
                f"{where.name}: {count} pages wanted, {len(self._free)} of {self.capacity} free "
                f"({format_bytes(self.page_bytes)} each)"
            )
        assert slots.min() >= 0, f"slot {slots.min()} is outside range {where.name!r}"
        assert slots.max() < where.num_pages, f"slot {slots.max()} is outside range {where.name!r}"
        taken = where.table[slots] >= 0
        assert not taken.any(), f"slot {slots[taken][:1]} of {where.name!r} is already mapped"
        if count > _SORT_FROM:
            # Pages next to each other take one mmap call and one kernel VMA.
            self._free.sort(reverse=True)
        pages = np.sort(np.array(self._free[-count:], np.int64))
        del self._free[-count:]
        where.table[slots] = pages
        where.mapped += count
        self._peak = max(self._peak, self.capacity - len(self._free))
        for slot, page, length in _runs(slots, pages):
            _mmap(
                where.address + slot * self.page_bytes,
                length * self.page_bytes,
                _PROT_RW,
                _MAP_SHARED | _MAP_FIXED | _MAP_POPULATE,
                self._fd,
                page * self.page_bytes,
            )

    def unmap(self, where: CpuAddressRange, slots: Sequence[int] | np.ndarray) -> None:
        slots = np.sort(np.asarray(slots, np.int64))
        if not len(slots):
            return
        pages = where.table[slots].copy()
        assert (pages >= 0).all(), f"slot {slots[pages < 0][:1]} of {where.name!r} is not mapped"
        where.table[slots] = -1
        where.mapped -= len(slots)
        for slot, _, length in _runs(slots, slots):
            # An anonymous PROT_NONE mapping on top keeps the addresses reserved.
            _mmap(
                where.address + slot * self.page_bytes,
                length * self.page_bytes,
                _PROT_NONE,
                _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_NORESERVE | _MAP_FIXED,
            )
        self._free.extend(pages[::-1].tolist())

    def mapped_pages(self, name: str) -> int:
        return sum(r.mapped for r in self._ranges if r.name == name)

    def check(self) -> None:
        mapped = sum(r.mapped for r in self._ranges)
        assert len(self._free) + mapped == self.capacity, (
            f"pages leaked: {len(self._free)} free + {mapped} mapped != {self.capacity}"
        )

    def export(self) -> tuple[int, ...]:
        return self._fd, self._table_fd

    def clear(self) -> None:
        """Gives all ranges back: as a new pool, but for the memory, which stays populated."""
        for where in self._ranges:
            where.close()
        self._ranges.clear()
        self._table_used = 0
        self._free = list(range(self.capacity - 1, -1, -1))

    def close(self) -> None:
        self.clear()
        if self._fd >= 0:
            _libc.munmap(self._table, _TABLE_BYTES)
            os.close(self._fd)
            os.close(self._table_fd)
            self._fd = -1


def _runs(slots: np.ndarray, pages: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """(first slot, first page, count) of maximal runs in which both slot and page go up by one."""
    breaks = np.flatnonzero((np.diff(slots) != 1) | (np.diff(pages) != 1)) + 1
    starts = [0, *breaks.tolist()]
    for start, stop in zip(starts, [*starts[1:], len(slots)], strict=True):
        yield int(slots[start]), int(pages[start]), stop - start

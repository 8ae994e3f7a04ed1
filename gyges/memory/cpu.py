"""Pages under everything, on the CPU: ``memfd_create`` + ``mmap(MAP_FIXED)``, the same thing as CUDA VMM, for real.

    memfd (the device's physical pages)      address range (reserved once, PROT_NONE)

    page 0  page 1  page 2  page 3           slot 0    slot 1    slot 2    slot 3 ...
    [  A ]  [  B ]  [free]  [  C ]           [-> 3 C]  [fault]   [-> 0 A]  [-> 1 B]

The file is populated once: mapping memory that was never touched costs milliseconds a page, remapping recycled pages a
few microseconds. Runs of neighbouring slots that receive neighbouring pages share one ``mmap`` call and one kernel VMA.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from gyges.config import format_bytes
from gyges.errors import UserError
from gyges.memory.base import OutOfPages

if TYPE_CHECKING:
    import torch

_PROT_NONE, _PROT_RW = 0, 3
_MAP_SHARED, _MAP_PRIVATE, _MAP_FIXED, _MAP_ANONYMOUS, _MAP_NORESERVE, _MAP_POPULATE = 1, 2, 0x10, 0x20, 0x4000, 0x8000
_MAP_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def _mmap(address: int | None, length: int, prot: int, flags: int, fd: int = -1, offset: int = 0) -> int:
    got = _libc.mmap(address, length, prot, flags, fd, offset)
    if got is None or got == _MAP_FAILED:
        code = ctypes.get_errno()
        raise OSError(code, f"mmap of {format_bytes(length)} failed: {os.strerror(code)}")
    return int(got)


def require_memory(bytes_wanted: int) -> None:
    """Raises UserError if the machine has less memory available: asking the kernel for it would end in its OOM killer."""
    import psutil

    available = psutil.virtual_memory().available
    if bytes_wanted > available:
        raise UserError(
            f"the devices need {format_bytes(bytes_wanted)} and this machine has {format_bytes(available)} available; "
            "give a smaller --device-memory or fewer devices"
        )


class CpuAddressRange:
    """See :class:`gyges.memory.base.AddressRange`."""

    def __init__(self, name: str, num_pages: int, page_bytes: int) -> None:
        self.name, self.num_pages, self.page_bytes = name, num_pages, page_bytes
        self.slots: dict[int, int] = {}  # slot -> page
        self.length = max(1, num_pages) * page_bytes
        self.address = _mmap(None, self.length, _PROT_NONE, _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_NORESERVE)

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
        self._fd = os.memfd_create(name, os.MFD_CLOEXEC)
        try:
            os.posix_fallocate(self._fd, 0, capacity * page_bytes)
        except OSError as error:
            os.close(self._fd)
            raise UserError(
                f"this machine cannot back a device of {format_bytes(capacity * page_bytes)} ({error.strerror}); "
                "give a smaller --device-memory or fewer devices"
            ) from error

    @property
    def free_pages(self) -> int:
        return len(self._free)

    def reserve(self, name: str, num_pages: int) -> CpuAddressRange:
        where = CpuAddressRange(name, num_pages, self.page_bytes)
        self._ranges.append(where)
        return where

    def map(self, where: CpuAddressRange, slots: Sequence[int]) -> None:
        if len(slots) > len(self._free):
            raise OutOfPages(
                f"{where.name}: {len(slots)} pages wanted, {len(self._free)} of {self.capacity} free "
                f"({format_bytes(self.page_bytes)} each)"
            )
        for slot in slots:
            assert 0 <= slot < where.num_pages, f"slot {slot} is outside range {where.name!r}"
            assert slot not in where.slots, f"slot {slot} of {where.name!r} is already mapped"
        pages = [self._free.pop() for _ in slots]
        where.slots.update(zip(slots, pages, strict=True))
        for slot, page, count in _runs(slots, pages):
            _mmap(
                where.address + slot * self.page_bytes,
                count * self.page_bytes,
                _PROT_RW,
                _MAP_SHARED | _MAP_FIXED | _MAP_POPULATE,
                self._fd,
                page * self.page_bytes,
            )

    def unmap(self, where: CpuAddressRange, slots: Sequence[int]) -> None:
        pages = [where.slots.pop(slot) for slot in slots]
        for slot, _, count in _runs(slots, range(len(slots))):
            # An anonymous PROT_NONE mapping on top keeps the addresses reserved.
            _mmap(
                where.address + slot * self.page_bytes,
                count * self.page_bytes,
                _PROT_NONE,
                _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_NORESERVE | _MAP_FIXED,
            )
        self._free.extend(reversed(pages))

    def mapped_pages(self, name: str) -> int:
        return sum(len(r.slots) for r in self._ranges if r.name == name)

    def check(self) -> None:
        mapped = sum(len(r.slots) for r in self._ranges)
        assert len(self._free) + mapped == self.capacity, (
            f"pages leaked: {len(self._free)} free + {mapped} mapped != {self.capacity}"
        )

    def export_fd(self) -> int:
        return self._fd

    def close(self) -> None:
        for where in self._ranges:
            _libc.munmap(where.address, where.length)
            where.slots.clear()
        self._ranges.clear()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _runs(slots: Sequence[int], pages: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(first slot, first page, count) of maximal runs in which both slot and page go up by one."""
    start = 0
    for i in range(1, len(slots) + 1):
        if i == len(slots) or slots[i] != slots[i - 1] + 1 or pages[i] != pages[i - 1] + 1:
            yield slots[start], pages[start], i - start
            start = i

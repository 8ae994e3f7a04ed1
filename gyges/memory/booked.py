"""The bookkeeping that all backends share: which pages are free, which slot has which, and what may not be done.

A backend says how pages get to addresses: :meth:`BookedPool._map_run` and :meth:`BookedPool._unmap_run`, for runs of neighbouring
slots that have neighbouring pages. What they raise leaves the books as they were.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from gyges.config import format_bytes
from gyges.memory.base import AddressRange, OutOfPages
from gyges.memory.table import PageTable

if TYPE_CHECKING:
    import torch

_SORT_FROM = 8


class BookedRange(ABC):
    """See :class:`gyges.memory.base.AddressRange`. ``table`` [slots] int32: the page at each slot, or -1."""

    address: int

    def __init__(self, name: str, num_pages: int, page_bytes: int, table: np.ndarray, table_start: int) -> None:
        self.name, self.num_pages, self.page_bytes = name, num_pages, page_bytes
        self.table, self.table_start = table, table_start
        self.mapped = 0
        self.length = max(1, num_pages) * page_bytes

    def tensor(self, dtype: torch.dtype, shape: Sequence[int], offset_bytes: int = 0) -> torch.Tensor:
        count = 1
        for size in shape:
            count *= size
        need = count * dtype.itemsize
        assert offset_bytes + need <= self.length, f"view of {need} bytes at {offset_bytes} leaves range {self.name!r}"
        return self._view(dtype, tuple(shape), self.address + offset_bytes)

    @abstractmethod
    def _view(self, dtype: torch.dtype, shape: tuple[int, ...], address: int) -> torch.Tensor: ...

    @abstractmethod
    def close(self) -> None: ...


class BookedPool(ABC):
    """See :class:`gyges.memory.base.PagePool`. ``capacity`` pages of ``page_bytes`` each."""

    def __init__(self, capacity: int, page_bytes: int, name: str) -> None:
        self.capacity, self.page_bytes = capacity, page_bytes
        self._ranges: list[BookedRange] = []
        # Lowest page last: fresh pools hand out ascending pages, and runs of them are mapped by one call.
        self._free = list(range(capacity - 1, -1, -1))
        self._peak = 0
        self._table = PageTable.create(f"{name}-table")

    # -- what a backend adds ------------------------------------------------------------------------------------------

    @abstractmethod
    def _make_range(self, name: str, num_pages: int, table: np.ndarray, table_start: int) -> BookedRange: ...

    @abstractmethod
    def _map_run(self, address: int, page: int, count: int) -> None:
        """``count`` pages from ``page`` on, at neighbouring slots from ``address`` on."""

    @abstractmethod
    def _unmap_run(self, address: int, count: int) -> None: ...

    def _before_unmap(self) -> None:  # noqa: B027 - a backend may have nothing to wait for
        """Waits for whoever may still be reading; nothing on the CPU, where work is done when its call returns."""

    # -- the contract -------------------------------------------------------------------------------------------------

    @property
    def free_pages(self) -> int:
        return len(self._free)

    @property
    def peak_mapped(self) -> int:
        return self._peak

    def reset_peak(self) -> None:
        self._peak = self.capacity - len(self._free)

    def _reserve(self, name: str, num_pages: int) -> BookedRange:
        start, table = self._table.take(num_pages)
        where = self._make_range(name, num_pages, table, start)
        self._ranges.append(where)
        return where

    def map(self, where: AddressRange, slots: Sequence[int] | np.ndarray) -> None:
        slots = np.sort(np.asarray(slots, np.int64))
        count = len(slots)
        if not count:
            return
        if count > len(self._free):
            raise OutOfPages(
                f"{where.name}: {count} pages wanted, {len(self._free)} of {self.capacity} free "
                f"({format_bytes(self.page_bytes)} each)"
            )
        assert slots[0] >= 0, f"slot {slots[0]} is outside range {where.name!r}"
        assert slots[-1] < where.num_pages, f"slot {slots[-1]} is outside range {where.name!r}"
        taken = where.table[slots] >= 0
        assert not taken.any(), f"slot {slots[taken][:1]} of {where.name!r} is already mapped"
        if count > _SORT_FROM:
            # Pages next to each other are mapped by one call (on the CPU: one kernel VMA).
            self._free.sort(reverse=True)
        pages = np.sort(np.array(self._free[-count:], np.int64))
        done: list[tuple[int, int]] = []
        try:
            for slot, page, length in runs(slots, pages):
                self._map_run(where.address + slot * self.page_bytes, page, length)
                done.append((slot, length))
        except BaseException:
            for slot, length in done:
                self._unmap_run(where.address + slot * self.page_bytes, length)
            raise
        del self._free[-count:]
        where.table[slots] = pages
        where.mapped += count
        self._peak = max(self._peak, self.capacity - len(self._free))

    def unmap(self, where: AddressRange, slots: Sequence[int] | np.ndarray) -> None:
        slots = np.sort(np.asarray(slots, np.int64))
        if not len(slots):
            return
        pages = where.table[slots].copy()
        assert (pages >= 0).all(), f"slot {slots[pages < 0][:1]} of {where.name!r} is not mapped"
        self._before_unmap()
        for slot, _, length in runs(slots, slots):
            self._unmap_run(where.address + slot * self.page_bytes, length)
        where.table[slots] = -1
        where.mapped -= len(slots)
        self._free.extend(pages[::-1].tolist())

    def mapped_pages(self, name: str) -> int:
        return sum(r.mapped for r in self._ranges if r.name == name)

    def check(self) -> None:
        mapped = sum(r.mapped for r in self._ranges)
        assert len(self._free) + mapped == self.capacity, (
            f"pages leaked: {len(self._free)} free + {mapped} mapped != {self.capacity}"
        )

    def clear(self) -> None:
        """Gives all ranges back: as a new pool, but for the memory, which stays."""
        if self._ranges:
            self._before_unmap()
        for where in self._ranges:
            where.close()
        self._ranges.clear()
        self._table.used = 0
        self._free = list(range(self.capacity - 1, -1, -1))


def runs(slots: np.ndarray, pages: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """(first slot, first page, count) of maximal runs in which both slot and page go up by one."""
    breaks = np.flatnonzero((np.diff(slots) != 1) | (np.diff(pages) != 1)) + 1
    starts = [0, *breaks.tolist()]
    for start, stop in zip(starts, [*starts[1:], len(slots)], strict=True):
        yield int(slots[start]), int(pages[start]), stop - start

"""The contract of device memory: one pool of physical pages, address ranges, and mapping between them.

Who calls it: a worker, for its own device, from one thread. Weights and KV cache draw on the same pool. An address range
is reserved once and costs nothing; a page is in exactly one place: free, or mapped at one slot of one range. After
``unmap`` the old address faults; after ``map`` the slot holds whatever the page last held (pages are recycled, not
cleared). Both backends (CPU: memfd + mmap; CUDA: VMM) pass tests/memory/test_pool_contract.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from gyges.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import torch


class OutOfPages(UserError):  # noqa: N818 - reads as what happened
    """More pages were asked for than the device's budget has free."""


class AddressRange(Protocol):
    """``num_pages`` slots of contiguous addresses, named after its use ("weights", "kv")."""

    name: str
    num_pages: int
    length: int  # bytes
    address: int
    table: np.ndarray  # int32 [slots]: the page at each slot, -1 where nothing is mapped; the pool writes it
    table_start: int  # of this range's part of the device's page table, which peers read
    mapped: int  # pages

    def tensor(self, dtype: torch.dtype, shape: Sequence[int], offset_bytes: int = 0) -> torch.Tensor:
        """A contiguous view (no copy) that starts ``offset_bytes`` into the range. Touch only what is mapped."""
        ...


class PeerMemory(Protocol):
    """Another device's pages, read only. Who calls it: a worker that gathers weights or KV cache from a peer."""

    def pages(self, where: AddressRange) -> np.ndarray:
        """int32 [slots] of the peer's range of the same name: the page at each slot, -1 where nothing is mapped."""
        ...

    address: int  # of the peer's pages in this process; page i starts at i x page_bytes

    def tensor(self) -> torch.Tensor:
        """uint8 [capacity x page_bytes], no copy: all of the peer's pages, mapped somewhere or not."""
        ...

    def close(self) -> None: ...


class PagePool(Protocol):
    page_bytes: int
    capacity: int

    @property
    def free_pages(self) -> int: ...

    def reserve(self, name: str, num_pages: int) -> AddressRange:
        """Addresses for ``num_pages`` pages; maps nothing."""
        ...

    def map(self, where: AddressRange, slots: Sequence[int] | np.ndarray) -> None:
        """Puts a free page at each slot. Raises OutOfPages (and maps nothing) if there are too few."""
        ...

    def unmap(self, where: AddressRange, slots: Sequence[int] | np.ndarray) -> None:
        """Takes the pages at these slots back into the free list. Work of this process that may still read them is waited for;
        that no peer does is the caller's to know (a collective has said so)."""
        ...

    @property
    def peak_mapped(self) -> int:
        """Most pages that were mapped at one moment since :meth:`reset_peak`."""
        ...

    def reset_peak(self) -> None: ...

    def mapped_pages(self, name: str) -> int:
        """Pages mapped into ranges of this name."""
        ...

    def check(self) -> None:
        """``free + mapped == capacity`` and no page twice. Cheap enough for every step boundary."""
        ...

    def export(self) -> tuple[int, ...]:
        """Descriptors through which a peer process can read the same physical pages and find which page is where.

        They stay the pool's, which closes them when it is closed; a peer that has opened them needs them no longer.
        """
        ...

    def close(self) -> None:
        """Unmaps everything and gives the memory back. Idempotent."""
        ...

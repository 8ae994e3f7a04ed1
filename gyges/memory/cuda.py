"""Pages under everything, on a GPU: CUDA virtual memory management. The CPU backend's twin, call for call.

    memfd                          one handle per page (cuMemCreate): a handle maps whole or not at all
    mmap(PROT_NONE)                cuMemAddressReserve
    mmap(MAP_FIXED) of a run       cuMemMap for each page, then one cuMemSetAccess for the run
    mmap(PROT_NONE) on top         cuMemUnmap of the run, once no kernel or copy of this process can be touching it
    the memfd's descriptor         one descriptor for each page, opened once by every peer at its start
    the page table                 the same memfd: page numbers are looked up by the CPU, which makes up the copies

All memory is created when the pool is made, so the device's budget is taken at once and stays the same (``cuMemGetInfo`` agrees).
Not yet run on hardware (docs/cuda.md); the contract tests run it against a driver made of mmap (tests/memory/fake_driver.py).
"""

from __future__ import annotations

import os
import resource
from typing import TYPE_CHECKING, Any

import numpy as np

from gyges.config import format_bytes
from gyges.errors import UserError
from gyges.memory.base import AddressRange
from gyges.memory.booked import BookedPool, BookedRange
from gyges.memory.cuda_driver import CudaDriver, CudaError
from gyges.memory.dlpack import tensor_at
from gyges.memory.table import PageTable

if TYPE_CHECKING:
    import torch

SPARE_DESCRIPTORS = 256  # for everything else that a process will open


class CudaAddressRange(BookedRange):
    def __init__(
        self, driver: CudaDriver, name: str, num_pages: int, page_bytes: int, table: np.ndarray, table_start: int
    ) -> None:
        super().__init__(name, num_pages, page_bytes, table, table_start)
        self._driver = driver
        self.address = driver.reserve(self.length)
        self._open = True

    def _view(self, dtype: torch.dtype, shape: tuple[int, ...], address: int) -> torch.Tensor:
        return tensor_at(address, dtype, shape, self._driver.dlpack_device)

    def close(self) -> None:
        """Idempotent. What is mapped must have been unmapped: a device's addresses do not take pages with them."""
        if self._open:
            self._open = False
            self._driver.free_addresses(self.address, self.length)


class CudaPeerMemory:
    """See :class:`gyges.memory.base.PeerMemory`. The descriptors may be closed once this exists."""

    def __init__(self, descriptors: tuple[int, ...], capacity: int, page_bytes: int, *, driver: CudaDriver) -> None:
        table_fd, *page_fds = descriptors
        assert len(page_fds) == capacity, f"{capacity} pages and {len(page_fds)} descriptors"
        self.page_bytes, self._driver, self._mapped = page_bytes, driver, 0
        self._length = capacity * page_bytes
        self._table = PageTable(table_fd)
        self.address = driver.reserve(self._length)
        try:
            for index, fd in enumerate(page_fds):
                handle = driver.import_(fd)
                try:
                    driver.map(self.address + index * page_bytes, page_bytes, handle)
                finally:
                    driver.release(handle)  # the mapping keeps the memory
                self._mapped += 1
            self._allow()
        except BaseException:
            self.close()
            raise

    def _allow(self) -> None:
        """Reading is enough; drivers that know no read-only access to device memory give both."""
        try:
            self._driver.allow(self.address, self._length, write=False)
        except CudaError as error:
            if error.name not in ("CUDA_ERROR_NOT_SUPPORTED", "CUDA_ERROR_INVALID_VALUE"):
                raise
            self._driver.allow(self.address, self._length, write=True)

    def pages(self, where: AddressRange) -> np.ndarray:
        return self._table.part(where.table_start, where.num_pages)

    def tensor(self) -> torch.Tensor:
        import torch

        return tensor_at(self.address, torch.uint8, (self._length,), self._driver.dlpack_device)

    def close(self) -> None:
        """Waits for what this process still reads. Idempotent. Of a broken context it says nothing: somebody else has."""
        if self._length:
            length, self._length = self._length, 0
            if self._driver.broken():
                return
            if self._mapped:
                self._driver.unmap(self.address, self._mapped * self.page_bytes)
            self._driver.free_addresses(self.address, length)
            self._table.close()


class CudaPagePool(BookedPool):
    """See :class:`gyges.memory.base.PagePool`. ``driver``: of the device; closed with the pool.

    Raises UserError when the device cannot back the budget, or ``page_bytes`` is no multiple of its granule.
    """

    def __init__(
        self, capacity: int, page_bytes: int, name: str = "gyges", *, driver: CudaDriver | None = None
    ) -> None:
        self.driver = driver or CudaDriver()
        self._handles: list[Any] = []
        self._exported: list[int] = []
        self._streams: list[Any] = []
        try:
            self._require(capacity, page_bytes)
            super().__init__(capacity, page_bytes, name)
        except BaseException:
            self.driver.close()
            raise
        try:
            for _ in range(capacity):
                self._handles.append(self.driver.create(page_bytes))
        except BaseException:
            self.close()
            raise

    def _require(self, capacity: int, page_bytes: int) -> None:
        granule = self.driver.granule
        if page_bytes % granule:
            raise UserError(
                f"a page of {format_bytes(page_bytes)} is no multiple of this GPU's granule, {format_bytes(granule)}: "
                f"give --page-size {granule // 1024}KiB or a multiple of it"
            )
        free, _ = self.driver.memory()
        if capacity * page_bytes > free:
            raise UserError(
                f"a device of {format_bytes(capacity * page_bytes)} was asked for, and GPU {self.driver.index} has "
                f"{format_bytes(free)} free: give a smaller --device-memory, or end what else uses it"
            )

    def watch(self, *streams: Any) -> None:
        """Only these streams run kernels and copies that touch pages; without any, all work of this process is waited for."""
        self._streams.extend(streams)

    def reserve(self, name: str, num_pages: int) -> CudaAddressRange:
        where = self._reserve(name, num_pages)
        assert isinstance(where, CudaAddressRange)
        return where

    def _make_range(self, name: str, num_pages: int, table: np.ndarray, table_start: int) -> CudaAddressRange:
        return CudaAddressRange(self.driver, name, num_pages, self.page_bytes, table, table_start)

    def _map_run(self, address: int, page: int, count: int) -> None:
        size, done = self.page_bytes, 0
        try:
            for index in range(count):
                self.driver.map(address + index * size, size, self._handles[page + index])
                done += 1
            self.driver.allow(address, count * size, write=True)
        except BaseException:
            if done:
                self.driver.unmap(address, done * size)
            raise

    def _before_unmap(self) -> None:
        for stream in self._streams or (None,):
            self.driver.wait(stream)

    def _unmap_run(self, address: int, count: int) -> None:
        self.driver.unmap(address, count * self.page_bytes)

    def export(self) -> tuple[int, ...]:
        """The page table's descriptor, then one of each page. Raises UserError where a process may not have so many."""
        allow_descriptors(self.capacity - len(self._exported))
        for handle in self._handles[len(self._exported) :]:
            self._exported.append(self.driver.export(handle))
        return (self._table.fd, *self._exported)

    def clear(self) -> None:
        for where in self._ranges:
            self.unmap(where, np.flatnonzero(where.table >= 0))
        super().clear()

    def close(self) -> None:
        self._table.close()
        while self._exported:
            os.close(self._exported.pop())
        if self._handles and self.driver.broken():
            # A kernel faulted: every call fails from now on, and would hide why. The memory goes when the process does.
            self._ranges, self._handles = [], []
            return
        self.clear()
        while self._handles:
            self.driver.release(self._handles.pop())
        self.driver.close()


def allow_descriptors(more: int) -> None:
    """Raises this process's limit of open files as far as ``more`` of them need it, and as it may."""
    count = len(os.listdir("/proc/self/fd")) + more + SPARE_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if not more or soft == resource.RLIM_INFINITY or soft >= count:
        return
    if hard != resource.RLIM_INFINITY and hard < count:
        raise UserError(
            f"handing {more} pages to peers needs {count} open files, and this process may have {hard}: raise the limit "
            f"(ulimit -Hn {count}), or give a larger --page-size"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))

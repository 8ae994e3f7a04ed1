"""The memory that a device's transformations work on: its pool, its peers, and how runs of bytes are copied between them."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from gyges.memory.base import AddressRange, PagePool, PeerMemory
from gyges.transform.copies import CopyBatch, Loop

if TYPE_CHECKING:
    from gyges.memory.cuda_driver import CudaDriver


class DeviceMemory(Protocol):
    """Copies are launched in order and carried out in order, some of them after :meth:`copy` has returned (``overlaps``).

    A copy may begin at once: what it reads is there when it is launched, and what it overwrites is needed by nobody any more.
    When it is done is for the caller to order, by :meth:`join` for kernels and :meth:`wait` for everything else.
    """

    overlaps: bool  # False: copies are done when they are launched, and join and wait have nothing to do

    def pool(self, capacity: int, page_bytes: int, name: str) -> PagePool: ...

    def peer(self, descriptors: tuple[int, ...], capacity: int, page_bytes: int) -> PeerMemory: ...

    def copy(self, target: AddressRange, peer: PeerMemory, src_at: np.ndarray, batch: CopyBatch) -> None:
        """Runs of a peer's pages to mapped addresses of ``target``. ``src_at``: where they start, int64 [n] bytes from the peer's
        page 0, instead of ``batch.src``."""
        ...

    def join(self) -> None:
        """What the model launches from now on runs after the copies launched so far; the host does not wait."""
        ...

    def wait(self) -> list[float]:
        """Until all copies are done. Seconds that each took on the device, of those launched since the last call; [] unless they
        overlap."""
        ...


class CpuMemory:
    overlaps = False

    def pool(self, capacity: int, page_bytes: int, name: str) -> PagePool:
        from gyges.memory.cpu import CpuPagePool

        return CpuPagePool(capacity, page_bytes, name)

    def peer(self, descriptors: tuple[int, ...], capacity: int, page_bytes: int) -> PeerMemory:
        from gyges.memory.cpu import CpuPeerMemory

        return CpuPeerMemory(descriptors, capacity, page_bytes)

    def copy(self, target: AddressRange, peer: PeerMemory, src_at: np.ndarray, batch: CopyBatch) -> None:
        from gyges.kernels.copy import copy_runs

        copy_runs(target.address, peer.address, batch.dst, src_at, batch.lengths, batch.loops)

    def join(self) -> None:
        return None

    def wait(self) -> list[float]:
        return []


class CudaMemory:
    """``driver``: of the device; it serves the pool and all peers.   stream: for copies alone, so that they run beside the
    model's kernels; one that does not wait for the default stream by itself, as torch makes them.   model_stream: where those
    kernels are launched; 0: the default one, torch's unless told otherwise.   kernel: all runs of a batch in one launch of the
    page copy kernel (Triton); off: a copy of the driver's for each run."""

    overlaps = True

    def __init__(self, driver: CudaDriver, stream: int, *, model_stream: int = 0, kernel: bool = True) -> None:
        self.driver, self.stream, self.model_stream, self.kernel = driver, stream, model_stream, kernel
        self._timed: list[tuple[Any, Any]] = []  # the events around each copy since the last wait

    def pool(self, capacity: int, page_bytes: int, name: str) -> PagePool:
        from gyges.memory.cuda import CudaPagePool

        return CudaPagePool(capacity, page_bytes, name, driver=self.driver)

    def peer(self, descriptors: tuple[int, ...], capacity: int, page_bytes: int) -> PeerMemory:
        from gyges.memory.cuda import CudaPeerMemory

        return CudaPeerMemory(descriptors, capacity, page_bytes, driver=self.driver)

    def copy(self, target: AddressRange, peer: PeerMemory, src_at: np.ndarray, batch: CopyBatch) -> None:
        began = self.driver.record(self.stream)
        launch = self._by_kernel if self.kernel else self._by_driver
        launch(target, peer, src_at, batch)
        self._timed.append((began, self.driver.record(self.stream)))

    def _by_driver(self, target: AddressRange, peer: PeerMemory, src_at: np.ndarray, batch: CopyBatch) -> None:
        dst_at, lengths = batch.dst, batch.lengths
        for loop in batch.loops:
            dst_at, src_at, lengths = _repeat(loop, dst_at, src_at, lengths)
        for to, start, size in zip(dst_at.tolist(), src_at.tolist(), lengths.tolist(), strict=True):
            self.driver.copy(target.address + to, peer.address + start, size, self.stream)

    def _by_kernel(self, target: AddressRange, peer: PeerMemory, src_at: np.ndarray, batch: CopyBatch) -> None:
        import torch

        from gyges.kernels.triton.copy import copy_runs

        if not len(batch.dst):
            return
        # The tensor begins where something is mapped: a launcher may refuse addresses that the driver knows nothing about.
        first = int(batch.dst.min())
        into = target.tensor(torch.uint8, (target.length - first,), first)
        with self._on_stream(into.device.type):
            copy_runs(into, peer.tensor(), batch.dst - first, src_at, batch.lengths, batch.loops)

    def _on_stream(self, device_type: str) -> Any:
        """What is launched inside goes to this memory's stream; elsewhere than on a GPU there are none."""
        import torch

        if device_type != "cuda":
            return nullcontext()
        stream: Any = torch.cuda.ExternalStream(self.stream)  # type: ignore[no-untyped-call]
        return torch.cuda.stream(stream)

    def join(self) -> None:
        copied = self.driver.record(self.stream)
        self.driver.follow(self.model_stream, copied)
        self.driver.destroy(copied)

    def wait(self) -> list[float]:
        self.driver.wait(self.stream)
        timed, self._timed = self._timed, []
        seconds = [self.driver.elapsed(began, ended) for began, ended in timed]
        for events in timed:
            for event in events:
                self.driver.destroy(event)
        return seconds


def _repeat(loop: Loop, dst_at: np.ndarray, src_at: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, ...]:
    """The runs of one loop, spelled out."""
    count, src_stride, dst_stride = loop
    steps = np.arange(count)
    return (
        np.add.outer(dst_at, steps * dst_stride).ravel(),
        np.add.outer(src_at, steps * src_stride).ravel(),
        np.repeat(lengths, count),
    )

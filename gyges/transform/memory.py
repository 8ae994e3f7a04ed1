"""The memory that a device's transformations work on: its pool, its peers, and how runs of bytes are copied between them."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from gyges.memory.base import AddressRange, PagePool, PeerMemory
from gyges.transform.copies import Loop

if TYPE_CHECKING:
    from gyges.memory.cuda_driver import CudaDriver


class DeviceMemory(Protocol):
    def pool(self, capacity: int, page_bytes: int, name: str) -> PagePool: ...

    def peer(self, descriptors: tuple[int, ...], capacity: int, page_bytes: int) -> PeerMemory: ...

    def copy(
        self,
        target: AddressRange,
        peer: PeerMemory,
        dst_at: np.ndarray,
        src_at: np.ndarray,
        lengths: np.ndarray,
        loops: tuple[Loop, ...],
    ) -> None:
        """Runs of a peer's pages to mapped addresses of ``target``: int64 [n] bytes, ``dst_at`` from the start of the range,
        ``src_at`` from the peer's page 0; ``loops`` as in gyges.kernels.copy. May return before it is done."""
        ...

    def wait(self) -> None:
        """Until all copies are done: before a barrier tells the peers so, and before pages are given up."""
        ...


class CpuMemory:
    def pool(self, capacity: int, page_bytes: int, name: str) -> PagePool:
        from gyges.memory.cpu import CpuPagePool

        return CpuPagePool(capacity, page_bytes, name)

    def peer(self, descriptors: tuple[int, ...], capacity: int, page_bytes: int) -> PeerMemory:
        from gyges.memory.cpu import CpuPeerMemory

        return CpuPeerMemory(descriptors, capacity, page_bytes)

    def copy(
        self,
        target: AddressRange,
        peer: PeerMemory,
        dst_at: np.ndarray,
        src_at: np.ndarray,
        lengths: np.ndarray,
        loops: tuple[Loop, ...],
    ) -> None:
        from gyges.kernels.copy import copy_runs

        copy_runs(target.address, peer.address, dst_at, src_at, lengths, loops)

    def wait(self) -> None:
        return None


class CudaMemory:
    """``driver``: of the device; it serves the pool and all peers.   stream: for copies, apart from the model's kernels.
    kernel: all runs of a batch in one launch of the page copy kernel (Triton); off: a copy of the driver's for each run."""

    def __init__(self, driver: CudaDriver, stream: int, *, kernel: bool = True) -> None:
        self.driver, self.stream, self.kernel = driver, stream, kernel

    def pool(self, capacity: int, page_bytes: int, name: str) -> PagePool:
        from gyges.memory.cuda import CudaPagePool

        return CudaPagePool(capacity, page_bytes, name, driver=self.driver)

    def peer(self, descriptors: tuple[int, ...], capacity: int, page_bytes: int) -> PeerMemory:
        from gyges.memory.cuda import CudaPeerMemory

        return CudaPeerMemory(descriptors, capacity, page_bytes, driver=self.driver)

    def copy(
        self,
        target: AddressRange,
        peer: PeerMemory,
        dst_at: np.ndarray,
        src_at: np.ndarray,
        lengths: np.ndarray,
        loops: tuple[Loop, ...],
    ) -> None:
        if self.kernel:
            self._launch(target, peer, dst_at, src_at, lengths, loops)
            return
        for loop in loops:
            dst_at, src_at, lengths = _repeat(loop, dst_at, src_at, lengths)
        for to, start, size in zip(dst_at.tolist(), src_at.tolist(), lengths.tolist(), strict=True):
            self.driver.copy(target.address + to, peer.address + start, size, self.stream)

    def _launch(
        self,
        target: AddressRange,
        peer: PeerMemory,
        dst_at: np.ndarray,
        src_at: np.ndarray,
        lengths: np.ndarray,
        loops: tuple[Loop, ...],
    ) -> None:
        import torch

        from gyges.kernels.triton.copy import copy_runs

        if not len(dst_at):
            return
        # The tensor begins where something is mapped: a launcher may refuse addresses that the driver knows nothing about.
        first = int(dst_at.min())
        into = target.tensor(torch.uint8, (target.length - first,), first)
        with self._on_stream(into.device.type):
            copy_runs(into, peer.tensor(), dst_at - first, src_at, lengths, loops)

    def _on_stream(self, device_type: str) -> Any:
        """What is launched inside goes to this memory's stream; elsewhere than on a GPU there are none."""
        import torch

        if device_type != "cuda":
            return nullcontext()
        stream: Any = torch.cuda.ExternalStream(self.stream)  # type: ignore[no-untyped-call]
        return torch.cuda.stream(stream)

    def wait(self) -> None:
        self.driver.wait(self.stream)


def _repeat(loop: Loop, dst_at: np.ndarray, src_at: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, ...]:
    """The runs of one loop, spelled out."""
    count, src_stride, dst_stride = loop
    steps = np.arange(count)
    return (
        np.add.outer(dst_at, steps * dst_stride).ravel(),
        np.add.outer(src_at, steps * src_stride).ravel(),
        np.repeat(lengths, count),
    )

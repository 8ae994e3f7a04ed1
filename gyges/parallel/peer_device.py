"""Peer collectives on a GPU: buffers that other processes open, events between processes, and the sum as one kernel.

Beside the page pool, twice the largest message of device memory:

    one allocation of a worker    | buffer A | buffer B |     opened whole by every peer
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gyges.errors import UserError
from gyges.memory.cuda_driver import CudaDriver, CudaError
from gyges.memory.cuda_ipc import BLOCK_BYTES, HANDLE_BYTES
from gyges.memory.dlpack import tensor_at
from gyges.parallel.collectives import Members, Wanted

if TYPE_CHECKING:
    import torch

    from gyges.kernels.triton.allreduce import PeerBuffers


class CudaPeerDevice:
    """See :class:`gyges.parallel.peer.PeerDevice`. Works in torch's current stream.

    Raises UserError where processes cannot open each other's memory.
    """

    def __init__(self, wanted: Wanted) -> None:
        assert wanted.driver is not None, "peer collectives need the GPU's driver"
        self._driver: CudaDriver = wanted.driver
        self._worker, self._device, self._size = wanted.worker, wanted.device, wanted.arena.buffer_bytes
        own = self._driver.allocate(-(-2 * self._size // BLOCK_BYTES) * BLOCK_BYTES)
        self._addresses = {self._worker: own}
        self._events: dict[int, tuple[Any, ...]] = {}
        self._views: dict[tuple[int, int], torch.Tensor] = {}
        self._tables: dict[tuple[Members, int], PeerBuffers] = {}
        try:
            self._events[self._worker] = (self._driver.shared_event(), self._driver.shared_event())
        except CudaError as error:
            raise _cannot(f"worker {self._worker} cannot make events for other processes", error) from error

    def handles(self) -> bytes:
        driver = self._driver
        try:
            memory = driver.memory_handle(self._addresses[self._worker])
            return memory + b"".join(driver.event_handle(event) for event in self._events[self._worker])
        except CudaError as error:
            raise _cannot(f"worker {self._worker} cannot give its GPU memory to other processes", error) from error

    def open(self, worker: int, handles: bytes) -> None:
        memory, *events = (handles[at : at + HANDLE_BYTES] for at in range(0, len(handles), HANDLE_BYTES))
        try:
            self._addresses[worker] = self._driver.open_memory(memory)
            self._events[worker] = tuple(self._driver.open_event(event) for event in events)
        except CudaError as error:
            raise _cannot(f"worker {self._worker} cannot read the GPU memory of worker {worker}", error) from error

    @property
    def _stream(self) -> int:
        if self._device.type != "cuda":
            return 0
        import torch

        return torch.cuda.current_stream(self._device).cuda_stream

    def _address(self, worker: int, parity: int) -> int:
        return self._addresses[worker] + parity * self._size

    def _part(self, worker: int, parity: int, dtype: torch.dtype, count: int) -> torch.Tensor:
        import torch

        used = count * dtype.itemsize
        assert used <= self._size, f"message of {used} bytes exceeds the {self._size} byte buffer"
        if (worker, parity) not in self._views:
            where = self._address(worker, parity)
            self._views[worker, parity] = tensor_at(where, torch.uint8, (self._size,), self._driver.dlpack_device)
        return self._views[worker, parity][:used].view(dtype)

    def put(self, x: torch.Tensor, parity: int) -> None:
        self._part(self._worker, parity, x.dtype, x.numel()).copy_(x.view(-1))

    def record(self, parity: int) -> None:
        self._driver.mark(self._events[self._worker][parity], self._stream)

    def follow(self, worker: int, parity: int) -> None:
        self._driver.follow(self._stream, self._events[worker][parity])

    def reduce(self, members: Members, parity: int, x: torch.Tensor) -> torch.Tensor:
        import torch

        from gyges.kernels.triton.allreduce import PeerBuffers, all_reduce

        if (members, parity) not in self._tables:
            addresses = [self._address(worker, parity) for worker in members]
            no_signals, rank = [0] * len(members), members.index(self._worker)
            self._tables[members, parity] = PeerBuffers(addresses, no_signals, rank, self._device)
        out = torch.empty_like(x)
        all_reduce(out, self._tables[members, parity], synchronize=False)
        return out

    def gather(self, members: Members, parity: int, x: torch.Tensor, widths: list[int]) -> torch.Tensor:
        import torch

        rows = x.shape[0]
        parts = [
            self._part(worker, parity, x.dtype, rows * width).view(rows, width)
            for worker, width in zip(members[1:], widths[1:], strict=True)
        ]
        return torch.cat([x, *parts], dim=1)

    def finish(self) -> None:
        self._driver.wait(self._stream)

    def broken(self) -> bool:
        return self._driver.broken()

    def leave(self) -> None:
        self._views.clear()
        for worker in self._addresses.keys() - {self._worker}:
            for event in self._events.pop(worker, ()):
                self._driver.destroy(event)
            self._driver.close_memory(self._addresses.pop(worker))

    def free(self) -> None:
        for event in self._events.pop(self._worker):
            self._driver.destroy(event)
        self._driver.free(self._addresses.pop(self._worker))


def _cannot(what: str, error: CudaError) -> UserError:
    return UserError(f"{what} ({error}): use --collectives staged, which goes by way of the host; see gyges doctor")

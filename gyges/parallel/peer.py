"""Collectives of workers that share GPUs: each reads the others' buffers in GPU memory, in the order of events.

NCCL refuses two ranks on one GPU, and kernels that wait for one another may never run at the same time there. So a rank puts
its part into its own buffer, records an event behind that, and lets its stream follow the events of its peers before it reads
theirs. Every worker has two buffers and two events, used by turns (A: even collectives of a group, B: odd ones), and opened
by all workers of the host once, at the start. The host never waits for the GPU; hosts meet once in every collective, over
shared memory, which brings deadlines and being called out with it.

    host of rank r      put k, record k      meet k      follow the peers' k, read k      put k+1, record k+1      meet k+1

    stream of rank r    | put A | record A | follow all A | read all A | put B | record B | follow all B | read all B | put A
                            k       k             k            k          k+1      k+1           k+1          k+1        k+2

Why the hosts meet between record and follow: an event stands for what was recorded last when a stream is told to follow it.
After meeting k every k has been recorded, and no k+2, since a host that has not followed k has not come to meeting k+1.

Why a buffer is not overwritten while a peer reads it: r puts k+2 where k was. Before that, its stream has followed each
peer's event of k+1, which that peer recorded behind its own reading of k:

    peer      ... read all A (k) | put B | record B (k+1) ...
                                                  \\
    rank r             ... put B | record B | follow all B (k+1) | read all B | put A (k+2)

So everybody follows everybody in every collective, in a gather too, where only rank 0 reads. With one buffer k+1 would be put
where k is, and nothing orders that behind the peers' reading of k. One event would do: followed later than it was recorded
for, it stands for more than is read. With two, a stream waits for what it reads and no longer.

Another group begins with A again, whatever the group before it used last. So whoever leaves a group for another one meets all
who may still be reading its buffers: a barrier, which waits for the own stream before the hosts meet. A merge and a split do
so among the workers of the wide instance. After a failure the survivors read nothing that still counts.

When the stream of a rank has done a collective, so have the peers' streams all that came before it there: what a step has
written may be read by anybody once one rank has finished it.

Not capturable in CUDA graphs, since hosts meet in between. Not yet run on hardware; there, what becomes of a stream that
follows the event of a process that has been killed is to be seen (docs/cuda.md).
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

from gyges.memory.cuda_ipc import HANDLE_BYTES
from gyges.parallel.collectives import Members, Wanted
from gyges.parallel.comm import SOLO, Comm
from gyges.parallel.shm import ShmComm

if TYPE_CHECKING:
    import torch

HANDLES_BYTES = 3 * HANDLE_BYTES  # both buffers at once, event A, event B
_CLOSE_S, _LOOK_S = 0.5, 0.002
_OPEN, _CLOSED = b"\1", b"\0"


class PeerDevice(Protocol):
    """What collectives do on the device of one worker: work is put in the worker's stream, and the call returns at once.

    parity: 0 for buffer and event A, 1 for B.   x, results: contiguous tensors on the device.
    """

    def handles(self) -> bytes:
        """HANDLES_BYTES by which other processes open this worker's buffers and events."""
        ...

    def open(self, worker: int, handles: bytes) -> None: ...

    def put(self, x: torch.Tensor, parity: int) -> None:
        """Into the own buffer."""
        ...

    def record(self, parity: int) -> None:
        """The own event: it happens when everything before it is done."""
        ...

    def follow(self, worker: int, parity: int) -> None:
        """What comes after this begins when that worker's event, as it was last recorded, has happened."""
        ...

    def reduce(self, members: Members, parity: int, x: torch.Tensor) -> torch.Tensor:
        """The sum of what lies in the members' buffers, in their order; of the shape and dtype of ``x``, a tensor of its own."""
        ...

    def gather(self, members: Members, parity: int, x: torch.Tensor, widths: list[int]) -> torch.Tensor:
        """[rows, sum(widths)]: ``x`` [rows, widths[0]], and the others' parts from their buffers."""
        ...

    def finish(self) -> None:
        """Returns when everything in the stream is done."""
        ...

    def broken(self) -> bool:
        """Whether every call fails from now on, since a kernel faulted."""
        ...

    def leave(self) -> None:
        """Closes what :meth:`open` opened."""
        ...

    def free(self) -> None:
        """The own buffers and events, which no other worker has open any more."""
        ...


class PeerCollectives:
    """See :class:`gyges.parallel.collectives.Collectives`. ``device``: another than the GPU that is wanted, for tests.

    The first HANDLES_BYTES + 1 bytes of a worker's buffer in the arena: its handles, and whether it has its peers' memory open.
    """

    capturable = False

    def __init__(self, wanted: Wanted, device: PeerDevice | None = None) -> None:
        if device is None:
            from gyges.parallel.peer_device import CudaPeerDevice

            device = CudaPeerDevice(wanted)
        self._wanted, self._arena, self._worker = wanted, wanted.arena, wanted.worker
        self._device = device
        self._prepared = self._closed = False

    def prepare(self, groups: Iterable[Members]) -> None:
        """Opens the memory of all workers of the host, whatever the groups. Raises UserError where that cannot be."""
        everyone = tuple(range(self._arena.num_workers))
        at = self._record_at(self._worker)
        self._arena.memory[at : at + HANDLES_BYTES + 1] = self._device.handles() + _OPEN
        ShmComm(self._arena, everyone, self._worker, self._wanted.timeout_s).barrier()
        for peer in everyone:
            if peer != self._worker:
                at = self._record_at(peer)
                self._device.open(peer, self._arena.memory[at : at + HANDLES_BYTES])
        self._prepared = True

    def _record_at(self, worker: int) -> int:
        return self._arena.buffer_offset(worker, 0, HANDLES_BYTES + 1)

    def comm(self, members: Members) -> Comm:
        assert self._prepared, "the workers have not exchanged handles: prepare() comes first"
        if len(members) == 1:
            return SOLO
        return PeerComm(self._device, ShmComm(self._arena, members, self._worker, self._wanted.timeout_s))

    def close(self) -> None:
        """Idempotent. Where a peer does not close, or the GPU is broken, memory goes when the process does."""
        if self._closed:
            return
        self._closed = True
        if self._device.broken():
            return
        self._device.leave()
        at = self._record_at(self._worker) + HANDLES_BYTES
        self._arena.memory[at : at + 1] = _CLOSED
        if self._others_closed():
            self._device.free()

    def _others_closed(self) -> bool:
        """Looks rather than meets: a peer that still waits in a collective must not take this worker for one that has come."""
        end = time.monotonic() + _CLOSE_S
        ats = [self._record_at(worker) + HANDLES_BYTES for worker in range(self._arena.num_workers)]
        while any(self._arena.memory[at : at + 1] == _OPEN for at in ats):
            if time.monotonic() > end:
                return False
            time.sleep(_LOOK_S)
        return True


class PeerComm:
    """See :class:`gyges.parallel.comm.Comm`. ``host``: its barrier is where the hosts of the same members meet."""

    def __init__(self, device: PeerDevice, host: ShmComm) -> None:
        self._device, self._host = device, host
        self.members, self.rank, self.size = host.members, host.rank, host.size
        self._parity = 0

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """A tensor of its own."""
        parity = self._turn(x)
        return self._device.reduce(self.members, parity, x)

    def gather_columns(self, x: torch.Tensor, widths: list[int]) -> torch.Tensor | None:
        parity = self._turn(x if self.rank else None)
        return None if self.rank else self._device.gather(self.members, parity, x, widths)

    def barrier(self) -> None:
        self._device.finish()
        self._host.barrier()

    def _turn(self, x: torch.Tensor | None) -> int:
        """Which buffers may be read from now on in the stream. None: this rank gives nothing, and takes part all the same."""
        parity, self._parity = self._parity, self._parity ^ 1
        if x is not None:
            self._device.put(x, parity)
        self._device.record(parity)
        self._host.barrier()
        for peer in self.members:
            if peer != self._host.worker:
                self._device.follow(peer, parity)
        return parity

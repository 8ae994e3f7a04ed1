"""The ways to sum over the workers of an instance, by name. A worker makes one of them at its start; torch-free to import.

    shm      CPU devices: shared memory and semaphores
    gloo     CPU devices: torch.distributed; what engines without shared memory do, for comparison
    nccl     a GPU for each worker
    peer     workers that share GPUs: they read each other's memory, in the order of events
    staged   workers that share GPUs: by way of host memory

A merge or a split asks for another :class:`gyges.parallel.comm.Comm`. What is slow to make is made at the start for the groups
that are likely (gyges.transform.ahead), for others when they are first wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from gyges.parallel.comm import SOLO, Comm
from gyges.registry import Registry

if TYPE_CHECKING:
    import torch

    from gyges.parallel.arena import SharedArena

Members = tuple[int, ...]  # workers in rank order


class Collectives(Protocol):
    """One worker's part in the collectives of its host. Who calls it: the runner, from the worker's main thread.

    capturable: whether a CUDA graph can record them.
    """

    capturable: bool

    def prepare(self, groups: Iterable[Members]) -> None:
        """Makes these groups now. Every worker of the host calls it at the same time, with the same groups."""
        ...

    def comm(self, members: Members) -> Comm:
        """This worker as one of these, alone too. All of them ask at the same time. Groups share buffers: between collectives of
        one and of the next, all workers of the wider one meet in its barrier. Where :attr:`capturable`, the same object as
        before unless one of them has been called out since: graphs hold it."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a way is made from. store: descriptor of an empty memfd that all workers have.   driver: of the GPU, if there is one
    (gyges.memory.cuda_driver).   timeout_s: of one collective."""

    arena: SharedArena
    worker: int
    device: torch.device
    timeout_s: float
    store: int = -1
    driver: Any = None


@dataclass(frozen=True, slots=True)
class Way:
    """device: the kind that it works on, "cpu" or "cuda"."""

    device: str
    make: Callable[[Wanted], Collectives]


COLLECTIVES: Registry[Way] = Registry("collectives")


class ByHost:
    """Over shared memory, for tensors there or (``wrap``) elsewhere. Making a group exchanges nothing."""

    capturable = False

    def __init__(self, wanted: Wanted, wrap: Callable[[Comm], Comm] | None = None) -> None:
        self._wanted, self._wrap = wanted, wrap

    def prepare(self, groups: Iterable[Members]) -> None:
        return

    def comm(self, members: Members) -> Comm:
        from gyges.parallel.shm import ShmComm

        if len(members) == 1:
            return SOLO
        shm = ShmComm(self._wanted.arena, members, self._wanted.worker, self._wanted.timeout_s)
        return shm if self._wrap is None else self._wrap(shm)

    def close(self) -> None:
        return


def _staged(wanted: Wanted) -> Collectives:
    from gyges.parallel.staged import StagedComm

    return ByHost(wanted, lambda comm: StagedComm(comm, wanted.device))


def _peer(wanted: Wanted) -> Collectives:
    from gyges.parallel.peer import PeerCollectives

    return PeerCollectives(wanted)


def _groups(backend: str) -> Callable[[Wanted], Collectives]:
    def make(wanted: Wanted) -> Collectives:
        from gyges.parallel.process_group import ProcessGroups

        return ProcessGroups(backend, wanted)

    return make


COLLECTIVES.add("shm", Way("cpu", ByHost))
COLLECTIVES.add("gloo", Way("cpu", _groups("gloo")))
COLLECTIVES.add("nccl", Way("cuda", _groups("nccl")))
COLLECTIVES.add("peer", Way("cuda", _peer))
COLLECTIVES.add("staged", Way("cuda", _staged))

"""Hosts and GPU streams of several workers, one step at a time in an order that a seed decides: for what must hold in every
order.

A host is a thread that runs only while it is its turn; a stream is a queue of closures that are run in their order, as late
as the scheduler likes. Who comes next follows from priorities that change now and then, so that some hosts and streams lag
far behind.
"""

from __future__ import annotations

import random
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Sequence

import torch

_STEP_S = 20.0
ELEMENTS = 64  # of a buffer


class Stuck(AssertionError):  # noqa: N818 - reads as what happened
    """Nobody can go on."""


class _Over(BaseException):
    """Ends the threads of a run that has failed."""


class _Host:
    def __init__(self) -> None:
        self.turn, self.ready = threading.Semaphore(0), lambda: True
        self.done = False
        self.error: BaseException | None = None


class Machine:
    def __init__(self, workers: int, seed: int) -> None:
        self.workers = workers
        self.streams: list[deque[tuple[Callable[[], bool], Callable[[], None]]]] = [deque() for _ in range(workers)]
        self.buffers = torch.full((workers, 2, ELEMENTS), torch.nan, dtype=torch.float64)
        self.recorded: dict[tuple[int, int], int] = defaultdict(int)  # (worker, parity) -> by the host
        self.happened: dict[tuple[int, int], int] = defaultdict(int)  # in the stream
        self.arrived: dict[tuple[int, ...], dict[int, int]] = defaultdict(lambda: defaultdict(int))
        self._hosts = [_Host() for _ in range(workers)]
        self._back = threading.Semaphore(0)
        self._random = random.Random(seed)
        self._over = False

    # -- of hosts -----------------------------------------------------------------------------------------------------

    def pause(self, worker: int, until: Callable[[], bool] = lambda: True) -> None:
        """Lets the others go on; returns at some later time at which ``until`` holds."""
        host = self._hosts[worker]
        host.ready = until
        self._back.release()
        assert host.turn.acquire(timeout=_STEP_S), "the scheduler is gone"
        if self._over:
            raise _Over

    def launch(self, worker: int, run: Callable[[], None], ready: Callable[[], bool] = lambda: True) -> None:
        self.streams[worker].append((ready, run))

    # -- the scheduler ------------------------------------------------------------------------------------------------

    def run(self, program: Callable[[int], None]) -> None:
        """``program(worker)`` on every host, until all have ended and all streams are empty. Raises Stuck or a host's error."""
        threads = [threading.Thread(target=self._live, args=(w, program), daemon=True) for w in range(self.workers)]
        for thread in threads:
            thread.start()
        try:
            self._schedule()
        finally:
            self._over = True
            for host in self._hosts:
                host.turn.release()
            for thread in threads:
                thread.join(_STEP_S)

    def _live(self, worker: int, program: Callable[[int], None]) -> None:
        host = self._hosts[worker]
        host.turn.acquire()
        try:
            if not self._over:
                program(worker)
        except _Over:
            pass
        except BaseException as error:
            host.error = error
        host.done = True
        self._back.release()

    def _schedule(self) -> None:
        actors = [("host", w) for w in range(self.workers)] + [("stream", w) for w in range(self.workers)]
        self._random.shuffle(actors)
        while True:
            able = [actor for actor in actors if self._able(*actor)]
            if not able:
                break
            if self._random.random() < 0.04:
                self._random.shuffle(actors)
            self._step(*able[0])
        waiting = [w for w, host in enumerate(self._hosts) if not host.done]
        if waiting or any(self.streams):
            raise Stuck(f"hosts {waiting} wait for ever, streams hold {[len(queue) for queue in self.streams]}")

    def _able(self, kind: str, worker: int) -> bool:
        if kind == "host":
            return not self._hosts[worker].done and self._hosts[worker].ready()
        return bool(self.streams[worker]) and self.streams[worker][0][0]()

    def _step(self, kind: str, worker: int) -> None:
        if kind == "stream":
            self.streams[worker].popleft()[1]()
            return
        host = self._hosts[worker]
        host.turn.release()
        assert self._back.acquire(timeout=_STEP_S), f"host {worker} does not come back"
        if host.error is not None:
            raise host.error


class Meeting:
    """The barrier of a ShmComm, between hosts of a Machine."""

    def __init__(self, machine: Machine, members: tuple[int, ...], worker: int) -> None:
        self.members, self.worker = members, worker
        self.rank, self.size = members.index(worker), len(members)
        self._machine = machine

    def barrier(self) -> None:
        arrived = self._machine.arrived[self.members]
        arrived[self.worker] += 1
        mine = arrived[self.worker]
        self._machine.pause(self.worker, lambda: all(arrived[member] >= mine for member in self.members))


class QueuedDevice:
    """gyges.parallel.peer.PeerDevice on a Machine. Reading a buffer takes a step of its own for each member, as it takes time."""

    def __init__(self, machine: Machine, worker: int) -> None:
        self.machine, self.worker = machine, worker

    def put(self, x: torch.Tensor, parity: int) -> None:
        self.machine.pause(self.worker)
        kept, into = x.clone().view(-1), self.machine.buffers[self.worker, parity]
        self.machine.launch(self.worker, lambda: into[: kept.numel()].copy_(kept))

    def record(self, parity: int) -> None:
        self.machine.pause(self.worker)
        machine, event = self.machine, (self.worker, parity)
        machine.recorded[event] += 1
        count = machine.recorded[event]
        machine.launch(self.worker, lambda: machine.happened.__setitem__(event, count))

    def follow(self, worker: int, parity: int) -> None:
        """As a driver does it: of an event that nobody has recorded, nothing."""
        self.machine.pause(self.worker)
        machine, event = self.machine, (worker, parity)
        count = machine.recorded[event]
        machine.launch(self.worker, lambda: None, lambda: machine.happened[event] >= count)

    def reduce(self, members: Sequence[int], parity: int, x: torch.Tensor) -> torch.Tensor:
        self.machine.pause(self.worker)
        out = torch.zeros_like(x)
        for member in members:
            self._read(member, parity, x.numel(), lambda part: out.view(-1).add_(part))
        return out

    def gather(self, members: Sequence[int], parity: int, x: torch.Tensor, widths: list[int]) -> torch.Tensor:
        self.machine.pause(self.worker)
        out, at, rows = x.new_full((x.shape[0], sum(widths)), torch.nan), widths[0], x.shape[0]
        out[:, :at] = x
        for member, width in zip(members[1:], widths[1:], strict=True):
            into = out[:, at : at + width]
            self._read(member, parity, rows * width, lambda part, into=into: into.copy_(part.view(into.shape)))
            at += width
        return out

    def _read(self, member: int, parity: int, count: int, use: Callable[[torch.Tensor], object]) -> None:
        buffer = self.machine.buffers[member, parity]
        self.machine.launch(self.worker, lambda: use(buffer[:count]))

    def finish(self) -> None:
        queue = self.machine.streams[self.worker]
        self.machine.pause(self.worker, lambda: not queue)

"""Collectives by torch.distributed: NCCL between GPUs, gloo between processes on CPUs.

Making a communicator is slow, so groups for every degree are made when the host starts; a merge or a split then only chooses
another one. Groups that are not neighbours are made when they are first wanted. NCCL refuses two ranks on one GPU.

    group of workers {0, 1, 3}     key in the store: the workers, and how often each has been called out of a collective (arena)

So after a failure, the survivors' next group has another key than any that was broken, on all of them, without a message.
Groups stand alone (no default group of torch.distributed): a worker that is in none of them need not take part. NCCL is not yet
run on hardware; gloo does the same steps in the tests.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from gyges.errors import UserError
from gyges.parallel.collectives import Members, Wanted
from gyges.parallel.comm import SOLO, CollectiveAborted, CollectiveTimeout, Comm

if TYPE_CHECKING:
    import torch

_LOOK_S = 0.1  # how often a collective that waits looks whether the controller has called it out
_CALL_S = 10.0  # a peer is lost: within this time the controller calls the others out


class ProcessGroups:
    """See :class:`gyges.parallel.collectives.Collectives`. ``backend``: "nccl" or "gloo".

    Where NCCL's timeout passes, it ends the process; gloo's collective raises CollectiveTimeout.
    Raises UserError where this torch has no such backend.
    """

    def __init__(self, backend: str, wanted: Wanted) -> None:
        import torch.distributed as dist

        if backend == "nccl" and not dist.is_nccl_available():
            raise UserError(
                "this torch has no NCCL: use --collectives staged, or a CUDA build of torch; see gyges doctor"
            )
        self.backend, self.capturable = backend, backend == "nccl"
        self.arena, self.worker, self.device = wanted.arena, wanted.worker, wanted.device
        self._timeout = timedelta(seconds=wanted.timeout_s)
        self._store = dist.FileStore(f"/proc/self/fd/{wanted.store}", -1)
        self._groups: dict[str, Any] = {}
        self._comms: dict[tuple[str, Members], ProcessGroupComm] = {}
        self._epoch = self.arena.epoch(self.worker)
        self._closed = threading.Event()
        if backend == "nccl":
            threading.Thread(target=self._abort_when_called, daemon=True).start()

    def prepare(self, groups: Iterable[Members]) -> None:
        for members in groups:
            if self.worker in members:
                self.comm(members).barrier()  # NCCL connects at the first collective, which should not be a request's

    def comm(self, members: Members) -> Comm:
        self._epoch = self.arena.epoch(self.worker)
        if len(members) == 1:
            return SOLO
        ranks = tuple(sorted(members))
        key = ",".join(f"{worker}:{self.arena.epoch(worker)}" for worker in ranks)
        if key not in self._groups:
            self._groups[key] = self._make(key, ranks.index(self.worker), len(ranks))
        if (key, members) not in self._comms:
            self._comms[key, members] = ProcessGroupComm(self, self._groups[key], members)
        return self._comms[key, members]

    def _make(self, key: str, rank: int, size: int) -> Any:
        import torch.distributed as dist

        store = dist.PrefixStore(key, self._store)
        if self.backend == "nccl":
            nccl: Any = dist.ProcessGroupNCCL
            options = nccl.Options()
            options._timeout = self._timeout
            group = nccl(store, rank, size, options)
            group.eager_connect_single_device(self.device)
            return group
        gloo: Any = dist.ProcessGroupGloo
        options = gloo._Options()
        options._timeout = self._timeout
        options._devices = [gloo.create_device(hostname="127.0.0.1")]  # the host's name may resolve to nothing
        return gloo(store, rank, size, options)

    @property
    def called_out(self) -> bool:
        return self.arena.epoch(self.worker) != self._epoch

    def check(self) -> None:
        if self.called_out:
            raise CollectiveAborted(f"worker {self.worker} was called out of its instance")

    def finish(self, work: Any) -> None:
        """Until a collective is done (NCCL: is in the stream). Raises CollectiveAborted, CollectiveTimeout."""
        if self.backend == "nccl":
            work.wait()
            return
        end = time.monotonic() + self._timeout.total_seconds()
        while True:
            try:
                work.wait(timedelta(seconds=_LOOK_S))
                return
            except RuntimeError as error:
                self.check()
                if not work.is_completed() and time.monotonic() < end:
                    continue
                self.left_alone(error)

    def left_alone(self, error: RuntimeError) -> None:
        """A peer's connection broke, which this worker may know before the controller has noticed. Raises either."""
        end = time.monotonic() + _CALL_S
        while time.monotonic() < end:
            self.check()
            self._closed.wait(_LOOK_S)
        raise CollectiveTimeout(
            f"worker {self.worker} was left alone in a collective: {str(error).splitlines()[0]}"
        ) from error

    def _abort_when_called(self) -> None:
        """NCCL's kernels wait on the GPU, for ever, and the main thread for them: who aborts the groups has to be another one."""
        while not self._closed.wait(_LOOK_S):
            if self.called_out:  # then no group of this worker is used again: its epoch is in all their keys
                for key in list(self._groups):
                    self._groups.pop(key).abort()

    def close(self) -> None:
        self._closed.set()


class ProcessGroupComm:
    """See :class:`gyges.parallel.comm.Comm`. Sums are the same on every rank, but not added in rank order.

    ``members`` in rank order; the group has them sorted.
    """

    def __init__(self, groups: ProcessGroups, group: Any, members: Members) -> None:
        self._groups, self._group, self.members = groups, group, members
        self.rank, self.size = members.index(groups.worker), len(members)
        self._places = [sorted(members).index(worker) for worker in members]  # rank -> place in the group

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """In place: ``x`` itself is the result."""
        self._run(lambda: self._group.allreduce([x]))
        return x

    def gather_columns(self, x: torch.Tensor, widths: list[int]) -> torch.Tensor | None:
        import torch
        import torch.distributed as dist

        # Parts of a gather are equally large: padded to the widest.
        rows, widest = x.shape[0], max(widths)
        mine = torch.nn.functional.pad(x, (0, widest - x.shape[1]))
        parts = [x.new_empty((rows, widest)) for _ in widths] if self.rank == 0 else []
        options = dist.GatherOptions()
        options.rootRank = self._places[0]
        self._run(lambda: self._group.gather([parts] if parts else [], [mine], options))
        if not parts:
            return None
        return torch.cat([parts[place][:, :width] for place, width in zip(self._places, widths, strict=True)], dim=1)

    def barrier(self) -> None:
        import torch

        self.all_reduce(torch.zeros(1, device=self._groups.device)).item()
        self._groups.check()

    def _run(self, collective: Any) -> None:
        try:
            work = collective()
        except RuntimeError as error:
            self._groups.check()
            self._groups.left_alone(error)
            return
        self._groups.finish(work)

"""Collectives by torch.distributed: NCCL between GPUs, gloo between processes on CPUs.

Making a communicator is slow and needs all its ranks at once, so groups for every degree are made when the host starts; a merge
or a split then only chooses another one. NCCL refuses two ranks on one GPU: workers that share one use peer memory instead
(gyges.kernels.triton.allreduce). NCCL is not yet run on hardware; gloo is what ``gyges bench peers`` prints beside shared memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from gyges.parallel.comm import CollectiveTimeout

if TYPE_CHECKING:
    import torch

Members = tuple[int, ...]


def groups_of_degrees(workers: int, degrees: Iterable[int]) -> list[Members]:
    """Neighbouring workers, as instances of these degrees take them; those of one worker need no group."""
    return [
        tuple(range(first, first + degree))
        for degree in sorted(set(degrees))
        if degree > 1
        for first in range(0, workers - degree + 1, degree)
    ]


class ProcessGroups:
    """One worker's part in every group of a host. Every worker makes it at the same time, with the same groups in the same order.

    backend: "nccl" or "gloo".   store: path of a file that does not exist yet, where the workers find each other.
    timeout_s: of every collective. NCCL ends the process when it passes; gloo's raises :class:`CollectiveTimeout`.
    """

    def __init__(
        self,
        backend: str,
        store: str,
        worker: int,
        workers: int,
        groups: Iterable[Members],
        device: torch.device,
        timeout_s: float = 60.0,
    ) -> None:
        import torch.distributed as dist

        self.worker, self.device = worker, device
        timeout = timedelta(seconds=timeout_s)
        only_nccl: dict[str, Any] = {"device_id": device} if backend == "nccl" else {}
        dist.init_process_group(
            backend, init_method=f"file://{store}", rank=worker, world_size=workers, timeout=timeout, **only_nccl
        )
        everyone = tuple(range(workers))
        self._groups: dict[Members, Any] = {everyone: dist.group.WORLD}
        for members in groups:
            if members not in self._groups:
                self._groups[members] = dist.new_group(list(members), timeout=timeout)
        for members in self._groups:  # NCCL connects at the first collective, which should not be a request's
            if worker in members:
                self.comm(members).barrier()

    def comm(self, members: Members) -> ProcessGroupComm:
        """This worker as a rank of a group that was made at the start."""
        assert members in self._groups, f"no group of workers {members} was made at the start"
        return ProcessGroupComm(self._groups[members], members, self.worker, self.device)

    def close(self) -> None:
        import torch.distributed as dist

        self._groups.clear()
        dist.destroy_process_group()


class ProcessGroupComm:
    """See :class:`gyges.parallel.comm.Comm`. Sums are the same on every rank, but not added in rank order."""

    def __init__(self, group: Any, members: Members, worker: int, device: torch.device) -> None:
        self._group, self.members, self._device = group, members, device
        self.rank, self.size = members.index(worker), len(members)

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """In place: ``x`` itself is the result."""
        import torch.distributed as dist

        self._run(lambda: dist.all_reduce(x, group=self._group))
        return x

    def gather_columns(self, x: torch.Tensor, widths: list[int]) -> torch.Tensor | None:
        import torch
        import torch.distributed as dist

        if self.rank:
            self._send([dist.P2POp(dist.isend, x, self.members[0], self._group)])
            return None
        parts = [x, *(x.new_empty((x.shape[0], width)) for width in widths[1:])]
        peers = zip(parts[1:], self.members[1:], strict=True)
        self._send([dist.P2POp(dist.irecv, part, peer, self._group) for part, peer in peers])
        return torch.cat(parts, dim=1)

    def barrier(self) -> None:
        import torch

        self.all_reduce(torch.zeros(1, device=self._device)).item()

    def _send(self, operations: list[Any]) -> None:
        import torch.distributed as dist

        def exchange() -> None:
            for request in dist.batch_isend_irecv(operations) if operations else []:
                request.wait()

        self._run(exchange)

    def _run(self, collective: Any) -> None:
        try:
            collective()
        except RuntimeError as error:
            raise CollectiveTimeout(
                f"rank {self.rank} of workers {self.members} was left alone in a collective: {str(error).splitlines()[0]}"
            ) from error

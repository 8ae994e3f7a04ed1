"""Collectives of GPU tensors by way of the host: what workers that share a GPU can always do, whatever else is there.

NCCL refuses two ranks on one GPU, and kernels that wait for one another may never run at the same time there. So a tensor is
copied to the host, summed over shared memory as CPU devices do it, and copied back: two copies and a wait for each collective. It
keeps what that contract has: rank order, deadlines, being called out of a collective. Not yet run on hardware.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from gyges.parallel.comm import Comm


class StagedComm:
    """See :class:`gyges.parallel.comm.Comm`. ``host``: between the same ranks, of tensors in host memory."""

    def __init__(self, host: Comm, device: torch.device) -> None:
        self._host, self._device = host, device
        self.rank, self.size = host.rank, host.size

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """A tensor of its own, unlike the host's, which lives in shared memory."""
        return self._host.all_reduce(x.cpu()).to(self._device, copy=True)

    def gather_columns(self, x: torch.Tensor, widths: list[int]) -> torch.Tensor | None:
        gathered = self._host.gather_columns(x.cpu(), widths)
        return None if gathered is None else gathered.to(self._device)

    def barrier(self) -> None:
        """What peers may look at afterwards is there: this worker's kernels are done."""
        if self._device.type == "cuda":
            import torch

            torch.cuda.current_stream(self._device).synchronize()
        self._host.barrier()

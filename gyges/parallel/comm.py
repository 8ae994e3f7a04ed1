"""The contract of collectives inside an instance, and the trivial group of one.

Who calls it: the model, from the worker's main thread, in the same order on every rank of the group. A group is any tuple of
worker indices, and another one between two steps (gyges.parallel.collectives gives them). Every wait has a deadline: a peer that
does not come raises :class:`CollectiveTimeout`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from gyges.errors import EngineError

if TYPE_CHECKING:
    import torch


class CollectiveTimeout(EngineError):  # noqa: N818 - reads as what happened
    """A peer did not take part in a collective before the deadline."""


class CollectiveAborted(EngineError):  # noqa: N818 - reads as what happened
    """The controller called this worker out of a collective that will never be complete."""


class Comm(Protocol):
    rank: int
    size: int

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """The sum over ranks, added in rank order, so every rank gets the same bits. ``x`` is contiguous.

        The result may live in shared memory: use it before the next collective, do not keep it.
        """
        ...

    def gather_columns(self, x: torch.Tensor, widths: list[int]) -> torch.Tensor | None:
        """Rank 0 gets [rows, sum(widths)] from each rank's contiguous [rows, widths[rank]]; the others get None."""
        ...

    def barrier(self) -> None:
        """No rank leaves before all have come."""
        ...


class SoloComm:
    """A group of one: every collective is the identity."""

    rank, size = 0, 1

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def gather_columns(self, x: torch.Tensor, widths: list[int]) -> torch.Tensor | None:
        return x

    def barrier(self) -> None:
        return


SOLO = SoloComm()  # it has no state: one is enough

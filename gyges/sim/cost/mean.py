"""The mean of several measured tables: what a step cost on average while the device's speed drifted from one to the next."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import reduce

import numpy as np

from gyges.errors import UserError
from gyges.sim.cost.base import StepShape
from gyges.sim.cost.tables import TableCost


class MeanCost:
    """Implements :class:`gyges.sim.cost.base.CostModel`: each step takes the mean of what ``members`` say it takes.

    One member gives its own times, to the last bit. Raises UserError for members of different TP degrees, or none.
    """

    def __init__(self, members: Sequence[TableCost]) -> None:
        degrees = sorted({member.degree for member in members})
        if len(degrees) != 1:
            raise UserError(f"a mean needs profiles of one TP degree, got {degrees or 'none'}")
        self.degree = degrees[0]
        self._members = tuple(members)

    # Both add from left to right: ``sum`` of floats does not, and numpy's does not for many, so that bits would differ.
    def step_s(self, shape: StepShape) -> float:
        return reduce(operator.add, (member.step_s(shape) for member in self._members)) / len(self._members)

    def decode_steps_s(self, decodes: int, context: int, longest: int, steps: int) -> np.ndarray:
        times = (member.decode_steps_s(decodes, context, longest, steps) for member in self._members)
        return reduce(operator.add, times) / len(self._members)

    def coverage(self) -> dict[str, float | dict[str, int]]:
        """Of the member with the largest share of steps beyond its measured range."""
        return max((member.coverage() for member in self._members), key=operator.itemgetter("extrapolated_share"))

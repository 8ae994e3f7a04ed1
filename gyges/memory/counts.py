"""How many users each page of an address range has: what says when a page must be mapped and when it may be unmapped.

Torch-free bookkeeping. The worker that owns the pages and whoever plans for it (the controller, the simulator) run the same
lines, so a plan's page counts are the worker's.
"""

from __future__ import annotations

import numpy as np
import numpy.ma  # np.unique imports it at its first call, 20 ms that would fall into a transformation


class PageCounts:
    """Users per slot of a range of ``num_pages`` slots."""

    def __init__(self, num_pages: int) -> None:
        self._users = np.zeros(num_pages, np.int32)
        self.mapped = 0

    def copy(self) -> PageCounts:
        twin = PageCounts(0)
        twin._users, twin.mapped = self._users.copy(), self.mapped
        return twin

    def hold(self, slots: np.ndarray, users: np.ndarray | int = 1) -> np.ndarray:
        """Adds ``users`` to each slot (no slot twice). Returns the slots that had none: map them."""
        new: np.ndarray = slots[self._users[slots] == 0]
        self._users[slots] += users
        self.mapped += new.size
        return new.ravel()

    def would_map(self, slots: np.ndarray) -> int:
        """Pages that :meth:`hold` would map."""
        return int((self._users[slots] == 0).sum())

    def drop(self, slots: np.ndarray, users: np.ndarray | int = 1) -> np.ndarray:
        """Takes ``users`` from each slot. Returns the slots that have none left: unmap them."""
        self._users[slots] -= users
        left = self._users[slots]
        assert (left >= 0).all(), "a page is given up by somebody who did not hold it"
        gone: np.ndarray = slots[left == 0]
        self.mapped -= gone.size
        return gone.ravel()

    def is_mapped(self, slots: np.ndarray) -> np.ndarray:
        mapped: np.ndarray = self._users[slots] > 0
        return mapped

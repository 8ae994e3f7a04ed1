"""Block allocation of one instance: which block ids are free. Torch-free; the controller and the simulator own these.

A block keeps its id for life, unique across the host, so a merge or a split never rewrites a block table.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class BlockAllocator:
    """A free list over a set of block ids."""

    def __init__(self, block_ids: Iterable[int]) -> None:
        self._free = list(block_ids)[::-1]
        self._held: set[int] = set()

    @property
    def total(self) -> int:
        return len(self._free) + len(self._held)

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_held(self) -> int:
        return len(self._held)

    def allocate(self, count: int) -> list[int] | None:
        """``count`` block ids, or None (and nothing taken) if there are too few."""
        if count > len(self._free):
            return None
        taken = [self._free.pop() for _ in range(count)]
        self._held.update(taken)
        return taken

    def release(self, block_ids: Sequence[int]) -> None:
        for block in block_ids:
            assert block in self._held, f"block {block} is released twice or was never allocated"
            self._held.remove(block)
        self._free.extend(reversed(block_ids))

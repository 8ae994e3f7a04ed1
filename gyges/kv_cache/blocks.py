"""Block allocation of one instance: which block ids are free. Torch-free; the controller and the simulator own these.

A *group* is the blocks that share pages (``shard-pages``: one block). Pages are held for groups that have a block in use, so
blocks are taken from groups that are open already, and a group whose last block is given back closes.

    group 3 (open)  [ 24 used | 25 free | 26 used ]        group 4 (closed, its id with GroupIds)

Where addresses do not depend on the TP degree, group ids are drawn from one :class:`GroupIds` of the host: a block keeps its id
for life and a merge or a split rewrites no block table.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence


class GroupIds:
    """Group ids that nobody holds; lowest first at the start, most recently returned first later."""

    def __init__(self, count: int) -> None:
        self._free = list(range(count - 1, -1, -1))

    def __len__(self) -> int:
        return len(self._free)

    def take(self) -> int:
        assert self._free, "group ids ran out: the address range is as large as all pages, so somebody kept some"
        return self._free.pop()

    def give(self, group: int) -> None:
        self._free.append(group)


class BlockAllocator:
    """Blocks of at most ``max_groups`` groups, ``blocks_per_group`` each."""

    def __init__(self, ids: GroupIds, max_groups: int, blocks_per_group: int = 1) -> None:
        self._ids, self.max_groups, self.blocks_per_group = ids, max_groups, blocks_per_group
        self._open: dict[int, list[int]] = {}  # open group -> its free block ids, lowest last
        self._partial: dict[int, None] = {}  # open groups that have free ids, oldest first
        self._held: set[int] = set()

    @classmethod
    def of_blocks(cls, count: int) -> BlockAllocator:
        """Ids 0 .. count, each a group of its own."""
        return cls(GroupIds(count), count)

    @property
    def total(self) -> int:
        return self.max_groups * self.blocks_per_group

    @property
    def num_free(self) -> int:
        return self.total - len(self._held)

    @property
    def num_held(self) -> int:
        return len(self._held)

    @property
    def open_groups(self) -> int:
        return len(self._open)

    def allocate(self, count: int, owner: object = None) -> list[int] | None:
        """``count`` block ids, or None (and nothing taken) if there are too few."""
        if count > self.num_free:
            return None
        taken: list[int] = []
        while len(taken) < count:
            if not self._partial:
                self._open_group(self._ids.take())
            group = next(iter(self._partial))
            free = self._open[group]
            want = min(count - len(taken), len(free))
            taken += free[-want:][::-1]
            del free[-want:]
            if not free:
                del self._partial[group]
        self._held.update(taken)
        return taken

    def release(self, block_ids: Sequence[int], owner: object = None) -> None:
        for block in block_ids:
            assert block in self._held, f"block {block} is released twice or was never allocated"
            self._held.remove(block)
            group = block // self.blocks_per_group
            free = self._open[group]
            free.append(block)
            self._partial[group] = None
            if len(free) == self.blocks_per_group:
                del self._open[group], self._partial[group]
                self._ids.give(group)

    def is_free(self, block: int) -> bool:
        """Whether the block lies in an open group of this allocator and nobody has it."""
        return block in self._open.get(block // self.blocks_per_group, ())

    def groups_needed(self, count: int) -> int:
        """Groups that an :meth:`allocate` of ``count`` blocks would open."""
        spare = sum(len(self._open[g]) for g in self._partial)
        return max(0, -(-(count - spare) // self.blocks_per_group))

    def adopt(self, block_ids: Iterable[int]) -> None:
        """Takes over blocks in use, and with them their whole groups, from an allocator that is given up."""
        by_group: dict[int, set[int]] = defaultdict(set)
        for block in block_ids:
            assert block not in self._held, f"block {block} is adopted twice"
            by_group[block // self.blocks_per_group].add(block)
        for group, blocks in by_group.items():
            if group not in self._open:
                self._open_group(group)
            free = [block for block in self._open[group] if block not in blocks]
            assert len(free) == len(self._open[group]) - len(blocks), f"group {group} gave a block away already"
            self._open[group] = free
            if not free:
                self._partial.pop(group, None)
            self._held |= blocks

    def _open_group(self, group: int) -> None:
        first = group * self.blocks_per_group
        self._open[group] = list(range(first + self.blocks_per_group - 1, first - 1, -1))
        self._partial[group] = None

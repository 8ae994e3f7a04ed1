"""Which workers change from what to what. Torch-free, immutable.

Every transformation is between one *wide* instance and the *narrow* instances that its workers form before a merge, or after
a split. Ranks of the wide instance are dealt so that what a worker keeps is part of what it had:

    narrow: TP2 of workers (0, 1) and TP2 of (2, 3)          FFN rows   0    1/4   1/2   3/4    1
      worker 0 and 2 hold the first half, 1 and 3 the second            | w 0 | w 2 | w 1 | w 3 |
    wide: ranks (0, 2, 1, 3), so that each keeps half of its own        '- of 0, 2 -'- of 1, 3 -'
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

from gyges.parallel.sharding import ParallelLayout, ShardCount

Kind = Literal["merge", "split"]
Part = Literal["kv", "ffn"]


@dataclass(frozen=True)
class Transformation:
    """``wide``: workers in rank order.   ``narrow``: the same workers, partitioned, each in rank order."""

    kind: Kind
    wide: tuple[int, ...]
    narrow: tuple[tuple[int, ...], ...]
    shards: ShardCount

    def __post_init__(self) -> None:
        flat = sorted(worker for members in self.narrow for worker in members)
        assert flat == sorted(self.wide), f"{self.narrow} is not a partition of {self.wide}"
        assert len(self.narrow) > 1, "a transformation is between one instance and several"
        assert all(self.narrow), "an instance has workers"

    def wide_layout(self, worker: int) -> ParallelLayout:
        return ParallelLayout(len(self.wide), self.wide.index(worker), self.shards)

    @cached_property
    def _narrow_index(self) -> dict[int, int]:
        return {worker: index for index, members in enumerate(self.narrow) for worker in members}

    def narrow_index(self, worker: int) -> int:
        return self._narrow_index[worker]

    def narrow_layout(self, worker: int) -> ParallelLayout:
        members = self.narrow[self.narrow_index(worker)]
        return ParallelLayout(len(members), members.index(worker), self.shards)

    def front_layout(self, worker: int) -> ParallelLayout:
        """Before the transformation."""
        return self.narrow_layout(worker) if self.kind == "merge" else self.wide_layout(worker)

    def back_layout(self, worker: int) -> ParallelLayout:
        """After it."""
        return self.wide_layout(worker) if self.kind == "merge" else self.narrow_layout(worker)

    def front_members(self, narrow: int) -> tuple[int, ...]:
        """Who holds, before, the KV cache of a request that belongs to narrow instance ``narrow``."""
        return self.narrow[narrow] if self.kind == "merge" else self.wide

    def back_members(self, narrow: int) -> tuple[int, ...]:
        return self.wide if self.kind == "merge" else self.narrow[narrow]

    def kv_sources(self, narrow: int, worker: int) -> tuple[tuple[int, int], ...]:
        """(shard, worker to take it from) for every KV shard that ``worker`` needs of that instance's requests."""
        return self._sources("kv", self.front_members(narrow), worker)

    def ffn_sources(self, worker: int) -> tuple[tuple[int, int], ...]:
        """(shard, worker to take it from) for every FFN shard that ``worker`` holds afterwards."""
        return self._sources("ffn", self.wide, worker)

    def _sources(self, part: Part, holders: tuple[int, ...], worker: int) -> tuple[tuple[int, int], ...]:
        rank = self.wide.index(worker)
        pairs = []
        for shard in _shards(self.back_layout(worker), part):
            having = [h for h in holders if shard in _shards(self.front_layout(h), part)]
            own = worker in having
            # Replicated shards are taken from different holders, so that no peer is read by all.
            pairs.append((shard, worker if own else having[rank % len(having)]))
        return tuple(pairs)

    @cached_property
    def nested(self) -> bool:
        """Whether every worker's part of the wide instance is part of its part of the narrow one."""
        return all(_nests(self.wide_layout(w), self.narrow_layout(w)) for w in self.wide)


def _shards(layout: ParallelLayout, part: Part) -> range:
    return layout.kv_shards if part == "kv" else layout.ffn_shards


def _nests(inner: ParallelLayout, outer: ParallelLayout) -> bool:
    return all(set(_shards(inner, part)) <= set(_shards(outer, part)) for part in ("kv", "ffn"))


@lru_cache(maxsize=4096)
def wide_order(narrow: tuple[tuple[int, ...], ...], shards: ShardCount) -> tuple[int, ...]:
    """Workers in the first of the rank orders that nest, lowest workers first; in the order given where there is none.

    So whatever the narrow instances are, few different orders come about, and what is made for one serves many.
    """
    given = [worker for members in narrow for worker in members]
    outer = {w: ParallelLayout(len(m), m.index(w), shards) for m in narrow for w in m}
    inner = [ParallelLayout(len(given), rank, shards) for rank in range(len(given))]
    fitting = {w: {rank for rank in range(len(given)) if _nests(inner[rank], outer[w])} for w in given}
    left = sorted(given)
    order: list[int] = []
    for rank in range(len(given)):
        for worker in left:
            rest = [w for w in left if w != worker]
            if rank in fitting[worker] and _seats(rest, fitting, range(rank + 1, len(given))):
                order.append(worker)
                left = rest
                break
        else:
            return tuple(given)
    return tuple(order)


def _seats(workers: list[int], fitting: dict[int, set[int]], ranks: range) -> bool:
    """Whether every worker can have a rank of its own (bipartite matching)."""
    owner: dict[int, int] = {}

    def seat(worker: int, tried: set[int]) -> bool:
        for rank in fitting[worker].intersection(ranks) - tried:
            tried.add(rank)
            if rank not in owner or seat(owner[rank], tried):
                owner[rank] = worker
                return True
        return False

    return all(seat(worker, set()) for worker in workers)


def merge(narrow: tuple[tuple[int, ...], ...], shards: ShardCount) -> Transformation:
    return Transformation("merge", wide_order(narrow, shards), narrow, shards)


def split(wide: tuple[int, ...], degrees: tuple[int, ...], shards: ShardCount) -> Transformation:
    """``degrees`` of the narrow instances; the largest choose first, each taking ranks that nest where there are such."""
    assert sum(degrees) == len(wide), f"{degrees} does not use all of {wide}"
    free = list(range(len(wide)))
    narrow: dict[int, tuple[int, ...]] = {}
    for index in sorted(range(len(degrees)), key=lambda i: (-degrees[i], i)):
        members = []
        for position in range(degrees[index]):
            outer = ParallelLayout(degrees[index], position, shards)
            fits = (rank for rank in free if _nests(ParallelLayout(len(wide), rank, shards), outer))
            rank = next(fits, free[0])
            free.remove(rank)
            members.append(wide[rank])
        narrow[index] = tuple(members)
    return Transformation("split", wide, tuple(narrow[i] for i in range(len(degrees))), shards)

"""Which instances a host is likely to form, so that what is slow to make for one is made at the start. Torch-free, pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from gyges.parallel.collectives import Members
from gyges.parallel.sharding import ShardCount
from gyges.transform.shape import merge, split


def likely_instances(
    start: Iterable[Members], workers: int, degrees: Sequence[int], shards: ShardCount, most: int = 8
) -> list[Members]:
    """Instances at the ``start``, every worker alone (if TP1 is among the ``degrees``), then what merges of neighbours and splits
    make of those, one transformation after the other, until a worker would be in more than ``most``. The same on every worker.

        4 workers, TP1, TP2, TP4:   0 1 2 3 | 01 23 0123 | 02 13 0213     a level is taken whole or not at all
    """
    known = dict.fromkeys(sorted({*start, *(((w,) for w in range(workers)) if 1 in degrees else ())}))
    counts = Counter(worker for members in known for worker in members)
    while True:
        found: set[Members] = set()
        for members in chain(_merged(list(known), workers, degrees, shards), _split(known, degrees, shards)):
            if members in known or members in found:
                continue
            counts.update(members)
            if max(counts[worker] for worker in members) > most:
                return list(known)  # a large host has far too many to look at all of them
            found.add(members)
        if not found:
            return list(known)
        known |= dict.fromkeys(sorted(found, key=lambda members: (len(members), members)))


def _merged(known: Sequence[Members], workers: int, degrees: Sequence[int], shards: ShardCount) -> Iterator[Members]:
    for degree in degrees:
        for first in range(0, workers - degree + 1, degree):
            for parts in _partitions(frozenset(range(first, first + degree)), known):
                if len(parts) > 1:
                    yield merge(parts, shards).wide


def _partitions(left: frozenset[int], known: Sequence[Members]) -> Iterator[tuple[Members, ...]]:
    """Ways to make up these workers of known instances."""
    if not left:
        yield ()
        return
    first = min(left)
    for members in known:
        if first in members and left.issuperset(members):
            for rest in _partitions(left.difference(members), known):
                yield (members, *rest)


def _split(known: Iterable[Members], degrees: Sequence[int], shards: ShardCount) -> Iterator[Members]:
    for members in known:
        for parts in _sums(len(members), sorted(degrees, reverse=True)):
            if len(parts) > 1:
                yield from split(members, parts, shards).narrow


def _sums(total: int, degrees: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Degrees that add up to ``total``, falling."""
    if not total:
        yield ()
    for index, degree in enumerate(degrees):
        if degree <= total:
            for rest in _sums(total - degree, degrees[index:]):
                yield (degree, *rest)

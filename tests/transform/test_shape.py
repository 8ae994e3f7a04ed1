"""Ranks are dealt so that a worker keeps part of what it had, and whoever is named as a source has what is taken."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gyges.core import ModelGeometry
from gyges.parallel.sharding import ShardCount
from gyges.transform.shape import Transformation, merge, split

Span = tuple[Fraction, Fraction]
# degrees of the host, query heads, KV heads
HOSTS = [
    ((1, 2, 4), 4, 4),
    ((1, 2, 4), 4, 2),
    ((1, 2, 3), 12, 6),
    ((1, 2, 3, 4), 12, 12),
    ((1, 2, 3, 6), 6, 6),
    ((1, 3, 6), 6, 3),
    ((1, 5), 5, 1),
]


def shards_of(host) -> ShardCount:
    degrees, heads, kv_heads = host
    return ShardCount.for_degrees(ModelGeometry(1, 8, heads, kv_heads, 2, 60, 10, 4, False), degrees)


def span(rank: int, degree: int) -> Span:
    """Of the query heads, and of the FFN rows, that a rank has."""
    return Fraction(rank, degree), Fraction(rank + 1, degree)


def inside(a: Span, b: Span) -> bool:
    return b[0] <= a[0] and a[1] <= b[1]


def parts(of: Span, count: int) -> set[int]:
    """Which of ``count`` equal parts of the whole a span touches."""
    return {i for i in range(count) if of[0] * count < i + 1 and i < of[1] * count}


def partitions(total: int, degrees, most: int | None = None) -> list[tuple[int, ...]]:
    if not total:
        return [()]
    return [
        (part, *rest)
        for part in degrees
        if part <= min(total, most or total)
        for rest in partitions(total - part, degrees, part)
    ]


def cases():
    """(host, degrees of the narrow instances, in every order that makes a difference)"""
    for host in HOSTS:
        for wide in host[0]:
            for narrow in partitions(wide, host[0]):
                if len(narrow) > 1:
                    for order in sorted(set(permutations(narrow))):
                        yield host, order


CASES = list(cases())
any_case = st.sampled_from(CASES)


def dealt(degrees, workers) -> tuple[tuple[int, ...], ...]:
    workers = list(workers)
    return tuple(tuple(workers.pop(0) for _ in range(degree)) for degree in degrees)


def narrow_span(shape: Transformation, worker: int) -> Span:
    (members,) = (m for m in shape.narrow if worker in m)
    return span(members.index(worker), len(members))


def wide_span(shape: Transformation, worker: int) -> Span:
    return span(shape.wide.index(worker), len(shape.wide))


def nests(shape: Transformation) -> bool:
    return all(inside(wide_span(shape, w), narrow_span(shape, w)) for w in shape.wide)


def some_order_nests(degrees) -> bool:
    count = sum(degrees)
    outer = [span(position, degree) for degree in degrees for position in range(degree)]
    return any(
        all(inside(span(rank, count), outer[seat]) for rank, seat in enumerate(order))
        for order in permutations(range(count))
    )


NESTING = {degrees: some_order_nests(degrees) for degrees in {order for _, order in CASES}}


@pytest.mark.parametrize(("host", "degrees"), CASES)
def test_a_merge_and_a_split_nest_wherever_some_order_does(host, degrees):
    shards, workers = shards_of(host), range(10, 10 + sum(degrees))
    united = merge(dealt(degrees, workers), shards)
    assert sorted(united.wide) == list(workers)
    assert united.nested == nests(united) == NESTING[degrees]
    if not NESTING[degrees]:
        assert united.wide == tuple(workers), "in the order given"
    divided = split(tuple(workers), degrees, shards)
    assert tuple(len(members) for members in divided.narrow) == degrees
    assert divided.nested == nests(divided) == NESTING[degrees]


def test_there_are_cases_of_both_kinds():
    assert Counter(NESTING.values()).keys() == {True, False}
    assert NESTING[2, 2]
    assert not NESTING[3, 1]


@settings(max_examples=100, deadline=None)
@given(any_case, st.booleans(), st.randoms(use_true_random=False))
def test_sources_name_a_holder_for_every_shard_that_is_needed(case, merging, rng):
    host, degrees = case
    shards, workers = shards_of(host), list(range(sum(degrees)))
    rng.shuffle(workers)
    shape = merge(dealt(degrees, workers), shards) if merging else split(tuple(workers), degrees, shards)
    assert [shape.narrow_index(w) for members in shape.narrow for w in members] == [
        index for index, members in enumerate(shape.narrow) for _ in members
    ]
    front, back = (narrow_span, wide_span) if merging else (wide_span, narrow_span)
    for worker in workers:
        found = dict(shape.ffn_sources(worker))
        assert len(found) == len(shape.ffn_sources(worker))
        assert found.keys() == parts(back(shape, worker), shards.ffn)
        mine = parts(front(shape, worker), shards.ffn)
        for shard, peer in found.items():
            assert shard in parts(front(shape, peer), shards.ffn)
            assert (peer == worker) == (shard in mine), "what a worker has it takes from nobody else"
        for narrow, members in enumerate(shape.narrow):
            holders = members if merging else shape.wide
            if worker not in (shape.wide if merging else members):
                continue
            found = dict(shape.kv_sources(narrow, worker))
            assert len(found) == len(shape.kv_sources(narrow, worker))
            assert found.keys() == parts(back(shape, worker), shards.kv)
            for shard, peer in found.items():
                assert peer in holders, "others do not have this instance's requests"
                assert shard in parts(front(shape, peer), shards.kv)
                mine = worker in holders and shard in parts(front(shape, worker), shards.kv)
                assert (peer == worker) == mine


def test_replicated_shards_are_taken_from_different_holders():
    shards = shards_of(((1, 2, 4), 4, 2))  # each KV shard is on two of four workers
    shape = split((0, 1, 2, 3), (1, 1, 1, 1), shards)
    readers = Counter(peer for worker in range(4) for _, peer in shape.kv_sources(worker, worker) if peer != worker)
    assert set(readers) == {0, 1, 2, 3}
    assert max(readers.values()) == 1


@pytest.mark.parametrize("narrow", [((0,), (1,)), ((0, 1), (1, 2)), ((0, 1), (2, 3)), ((0, 1, 2),), ((0, 1, 2), ())])
def test_a_transformation_is_a_partition_into_several(narrow):
    with pytest.raises(AssertionError):
        Transformation("merge", (0, 1, 2), narrow, ShardCount(2, 2))


def test_a_split_uses_all_workers():
    with pytest.raises(AssertionError, match="does not use all"):
        split((0, 1, 2, 3), (2, 1), ShardCount(4, 4))

"""Blocks are conserved, never handed out twice, and stay in few groups."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gyges.kv_cache.blocks import BlockAllocator, GroupIds


@given(st.lists(st.integers(0, 6), max_size=30), st.sampled_from([1, 3, 4]))
def test_blocks_are_conserved(requests, per_group):
    ids = GroupIds(30)
    allocator = BlockAllocator(ids, 24 // per_group, per_group)
    held: list[list[int]] = []
    for count in requests:
        taken = allocator.allocate(count)
        if taken is None:
            assert count > allocator.num_free
            if held:
                allocator.release(held.pop(0))
        else:
            assert len(set(taken)) == count
            held.append(taken)
        flat = [block for blocks in held for block in blocks]
        assert len(flat) == len(set(flat)) == allocator.num_held
        assert allocator.num_free + allocator.num_held == allocator.total == 24
        groups = {block // per_group for block in flat}
        assert allocator.open_groups == len(groups) <= allocator.max_groups
        assert len(ids) == 30 - len(groups)


def test_open_groups_are_filled_first():
    allocator = BlockAllocator(GroupIds(8), 8, 4)
    first = allocator.allocate(6)
    allocator.release(first[:2])
    assert allocator.groups_needed(4) == 0
    assert allocator.groups_needed(5) == 1
    assert {b // 4 for b in allocator.allocate(4)} == {0, 1}
    assert allocator.open_groups == 2


def test_releasing_a_block_twice_is_noticed():
    allocator = BlockAllocator.of_blocks(4)
    blocks = allocator.allocate(2)
    allocator.release(blocks)
    with pytest.raises(AssertionError, match="released twice"):
        allocator.release(blocks)


@given(st.sets(st.integers(0, 19), min_size=1), st.sampled_from([1, 4]))
def test_adopted_blocks_behave_as_if_allocated_here(blocks, per_group):
    ids = GroupIds(20 // per_group)
    old = BlockAllocator(ids, len(ids), per_group)
    everything = old.allocate(20)
    old.release([b for b in everything if b not in blocks])
    new = BlockAllocator(ids, 20 // per_group, per_group)
    new.adopt(blocks)
    rest = new.allocate(new.num_free)
    assert set(rest) | blocks == set(range(20))
    assert not set(rest) & blocks
    new.release([*rest, *blocks])
    assert len(ids) == 20 // per_group

"""The contract of gyges.memory.base, for every backend at hand."""

import ctypes
import faulthandler
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gyges.errors import UserError
from gyges.memory.base import OutOfPages
from gyges.memory.cpu import CpuPagePool, CpuPeerMemory

PAGE = 4096


@pytest.fixture(params=[CpuPagePool], ids=["cpu"])
def make_pool(request):
    pools = []

    def make(capacity: int):
        pools.append(request.param(capacity, PAGE))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def test_tensor_over_mapped_pages_reads_back_what_was_written(make_pool):
    pool = make_pool(4)
    where = pool.reserve("kv", 10)
    pool.map(where, [2, 3, 7])
    view = where.tensor(torch.int32, (2 * PAGE // 4,), offset_bytes=2 * PAGE)
    view.copy_(torch.arange(view.numel(), dtype=torch.int32))
    again = where.tensor(torch.int32, (PAGE // 4,), offset_bytes=3 * PAGE)
    assert again[0] == PAGE // 4
    assert again[-1] == 2 * PAGE // 4 - 1


def test_a_page_is_never_in_two_places(make_pool):
    pool = make_pool(8)
    a, b = pool.reserve("weights", 8), pool.reserve("kv", 8)
    pool.map(a, [0, 1, 2, 3])
    pool.map(b, [4, 5, 6, 7])
    for slot in range(4):
        a.tensor(torch.uint8, (PAGE,), slot * PAGE).fill_(slot + 1)
        b.tensor(torch.uint8, (PAGE,), (slot + 4) * PAGE).fill_(100 + slot)
    for slot in range(4):
        assert (a.tensor(torch.uint8, (PAGE,), slot * PAGE) == slot + 1).all()
        assert (b.tensor(torch.uint8, (PAGE,), (slot + 4) * PAGE) == 100 + slot).all()


def test_asking_beyond_the_budget_maps_nothing(make_pool):
    pool = make_pool(3)
    where = pool.reserve("kv", 8)
    pool.map(where, [0])
    with pytest.raises(OutOfPages, match="3 pages wanted, 2 of 3 free"):
        pool.map(where, [1, 2, 3])
    assert pool.free_pages == 2
    assert pool.mapped_pages("kv") == 1
    pool.map(where, [1, 2])


def test_mapping_a_slot_twice_is_refused(make_pool):
    pool = make_pool(3)
    where = pool.reserve("kv", 4)
    pool.map(where, [1])
    with pytest.raises(AssertionError, match="already mapped"):
        pool.map(where, [1])


def test_unmapped_addresses_fault(make_pool):
    pool = make_pool(1)
    where = pool.reserve("kv", 2)
    pool.map(where, [0])
    pool.unmap(where, [0])
    pid = os.fork()
    if pid == 0:
        faulthandler.disable()
        where.tensor(torch.uint8, (1,))[0] = 1  # must die here
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status), "writing to an unmapped page must not succeed"


def test_peers_find_and_see_the_same_page_through_the_exported_descriptors(make_pool):
    pool = make_pool(3)
    pool.reserve("weights", 5)
    where = pool.reserve("kv", 2)
    pool.map(where, [1])
    where.tensor(torch.uint8, (PAGE,), PAGE).fill_(42)
    peer = CpuPeerMemory(pool.export(), pool.capacity, PAGE)
    try:
        absent, page = peer.pages(where)
        assert absent == -1
        assert ctypes.string_at(peer.address + int(page) * PAGE, PAGE) == bytes([42]) * PAGE
        pool.unmap(where, [1])
        assert peer.pages(where)[1] == -1, "the table is shared, not copied"
    finally:
        peer.close()


def test_the_peak_is_of_one_moment(make_pool):
    pool = make_pool(8)
    where = pool.reserve("kv", 8)
    pool.map(where, [0, 1, 2])
    pool.unmap(where, [0, 1])
    pool.map(where, [5])
    assert pool.peak_mapped == 3
    pool.reset_peak()
    assert pool.peak_mapped == 2


def test_close_gives_the_descriptors_back_and_may_be_repeated(make_pool):
    pool = make_pool(2)
    descriptors = pool.export()
    pool.close()
    pool.close()
    for fd in descriptors:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_a_budget_beyond_the_machine_names_the_remedy():
    with pytest.raises(UserError, match="--device-memory"):
        CpuPagePool(1 << 34, 1 << 20)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.sets(st.integers(0, 15), min_size=1, max_size=6)), max_size=12))
def test_pages_are_conserved_under_any_order_of_maps_and_unmaps(steps):
    pool = CpuPagePool(10, PAGE)
    where = pool.reserve("kv", 16)
    held: dict[int, int] = {}
    stamp = 0
    for grow, slots in steps:
        if grow:
            new = sorted(slots - held.keys())
            if len(new) > pool.free_pages:
                with pytest.raises(OutOfPages):
                    pool.map(where, new)
                continue
            pool.map(where, new)
            for slot in new:
                stamp = (stamp + 1) % 251
                where.tensor(torch.uint8, (PAGE,), slot * PAGE).fill_(stamp)
                held[slot] = stamp
        else:
            gone = sorted(slots & held.keys())
            pool.unmap(where, gone)
            for slot in gone:
                del held[slot]
        pool.check()
        assert pool.free_pages + len(held) == 10
        for slot, value in held.items():
            assert (where.tensor(torch.uint8, (PAGE,), slot * PAGE) == value).all()
    pool.close()

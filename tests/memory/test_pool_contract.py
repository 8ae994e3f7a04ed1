"""The contract of gyges.memory.base, for every backend at hand."""

import faulthandler
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memory.backends import BACKENDS

from gyges.errors import UserError
from gyges.memory.base import OutOfPages
from gyges.memory.cpu import CpuPagePool


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


@pytest.fixture
def make_pool(backend):
    pools = []

    def make(capacity: int):
        pools.append(backend.make(capacity, backend.page))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def page_of(where, slot: int) -> torch.Tensor:
    return where.tensor(torch.uint8, (where.page_bytes,), slot * where.page_bytes)


def test_tensor_over_mapped_pages_reads_back_what_was_written(make_pool):
    pool = make_pool(4)
    page = pool.page_bytes
    where = pool.reserve("kv", 10)
    pool.map(where, [2, 3, 7])
    view = where.tensor(torch.int32, (2 * page // 4,), offset_bytes=2 * page)
    view.copy_(torch.arange(view.numel(), dtype=torch.int32))
    again = where.tensor(torch.int32, (page // 4,), offset_bytes=3 * page)
    assert again[0] == page // 4
    assert again[-1] == 2 * page // 4 - 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8])
def test_a_view_may_be_made_before_its_pages_are_there(make_pool, dtype):
    pool = make_pool(1)
    where = pool.reserve("kv", 3)
    view = where.tensor(dtype, (3, pool.page_bytes // dtype.itemsize))
    assert (view.dtype, view.is_contiguous()) == (dtype, True)
    assert view.data_ptr() == where.address
    pool.map(where, [1])
    view[1].fill_(3)
    assert (view[1] == 3).all()
    assert (page_of(where, 1).view(dtype) == 3).all()


def test_a_page_is_never_in_two_places(make_pool):
    pool = make_pool(8)
    a, b = pool.reserve("weights", 8), pool.reserve("kv", 8)
    pool.map(a, [0, 1, 2, 3])
    pool.map(b, [4, 5, 6, 7])
    for slot in range(4):
        page_of(a, slot).fill_(slot + 1)
        page_of(b, slot + 4).fill_(100 + slot)
    for slot in range(4):
        assert (page_of(a, slot) == slot + 1).all()
        assert (page_of(b, slot + 4) == 100 + slot).all()


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


def test_unmapped_addresses_fault(make_pool, backend):
    if not backend.on_host:
        pytest.skip("a kernel that faults takes the process's context with it")
    pool = make_pool(1)
    where = pool.reserve("kv", 2)
    pool.map(where, [0])
    pool.unmap(where, [0])
    pid = os.fork()
    if pid == 0:
        faulthandler.disable()
        page_of(where, 0)[0] = 1  # must die here
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status), "writing to an unmapped page must not succeed"


def test_peers_find_and_see_the_same_page_through_the_exported_descriptors(make_pool, backend):
    pool = make_pool(3)
    pool.reserve("weights", 5)
    where = pool.reserve("kv", 2)
    pool.map(where, [1])
    page_of(where, 1).fill_(42)
    peer = backend.peer(pool)
    try:
        absent, page = peer.pages(where)
        assert absent == -1
        seen = peer.tensor().view(pool.capacity, pool.page_bytes)
        assert (seen[page] == 42).all()
        page_of(where, 1).fill_(43)
        assert (seen[page] == 43).all(), "it is the page, not a copy of it"
        assert seen.data_ptr() == peer.address
        pool.unmap(where, [1])
        assert peer.pages(where)[1] == -1, "the table is shared, not copied"
    finally:
        peer.close()


def test_a_peer_cannot_write(make_pool, backend):
    if not backend.on_host:
        pytest.skip("a kernel that faults takes the process's context with it")
    pool = make_pool(1)
    pool.map(pool.reserve("kv", 1), [0])
    peer = backend.peer(pool)
    pid = os.fork()
    if pid == 0:
        faulthandler.disable()
        peer.tensor()[0] = 1  # must die here
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    peer.close()
    assert os.WIFSIGNALED(status), "a peer's page must not be writable"


def test_the_peak_is_of_one_moment(make_pool):
    pool = make_pool(8)
    where = pool.reserve("kv", 8)
    pool.map(where, [0, 1, 2])
    pool.unmap(where, [0, 1])
    pool.map(where, [5])
    assert pool.peak_mapped == 3
    pool.reset_peak()
    assert pool.peak_mapped == 2


def test_clearing_starts_anew_with_the_same_memory(make_pool):
    pool = make_pool(4)
    where = pool.reserve("kv", 4)
    pool.map(where, [0, 3])
    pool.clear()
    pool.check()
    assert pool.free_pages == 4
    again = pool.reserve("weights", 4)
    assert again.table_start == 0
    pool.map(again, range(4))
    assert pool.mapped_pages("weights") == 4


def test_close_gives_the_descriptors_back_and_may_be_repeated(make_pool):
    pool = make_pool(2)
    pool.map(pool.reserve("kv", 2), [1])
    descriptors = pool.export()
    assert descriptors == pool.export(), "the same ones, however often they are asked for"
    pool.close()
    pool.close()
    for fd in descriptors:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_a_budget_beyond_the_machine_names_the_remedy(backend):
    with pytest.raises(UserError, match="--device-memory"):
        backend.make(1 << 34, 1 << 21)


def test_the_books_stay_as_they_were_when_a_page_cannot_be_mapped(monkeypatch):
    pool = CpuPagePool(6, 4096)
    where = pool.reserve("kv", 8)
    map_run, calls = pool._map_run, []

    def second_fails(address, page, count):
        calls.append(address)
        if len(calls) == 2:
            raise OSError("out of mappings")
        map_run(address, page, count)

    monkeypatch.setattr(pool, "_map_run", second_fails)
    with pytest.raises(OSError, match="out of mappings"):
        pool.map(where, [0, 2, 4])
    assert (pool.free_pages, pool.mapped_pages("kv")) == (6, 0)
    assert (where.table == -1).all()
    pool.map(where, [0, 2, 4])
    pool.check()
    pool.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_pages_are_conserved_under_any_order_of_maps_and_unmaps(backend):
    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.tuples(st.booleans(), st.sets(st.integers(0, 15), min_size=1, max_size=6)), max_size=12))
    def conserved(steps):
        pool = backend.make(10, backend.page)
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
                    page_of(where, slot).fill_(stamp)
                    held[slot] = stamp
            else:
                gone = sorted(slots & held.keys())
                pool.unmap(where, gone)
                for slot in gone:
                    del held[slot]
            pool.check()
            assert pool.free_pages + len(held) == 10
            for slot, value in held.items():
                assert (page_of(where, slot) == value).all()
        pool.close()

    conserved()

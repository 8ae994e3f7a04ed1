"""The micro-benchmark's workers: real pages, real copies, and wrong ones noticed."""

import numpy as np
import psutil
import pytest

from gyges.bench.child import ChildError
from gyges.bench.transform.cell import make_cell
from gyges.bench.transform.content import Content
from gyges.bench.transform.crew import Crew
from gyges.bench.transform.micro import find_cell, paired_ratio
from gyges.bench.transform.shapes import sizing
from gyges.bench.transform.tasks import Case, Check, Prepare, Run
from gyges.kv_cache.layouts import LAYOUTS
from gyges.transform.books import WorkerBook
from gyges.transform.device import Device
from gyges.transform.interpreter import Effect
from gyges.transform.ops import Transfer, pack_ids, unpack_ids
from gyges.transform.plan import totals_of
from gyges.transform.shape import merge

MEMORY = 12 << 20
SIZE = sizing("tiny", 2, device_memory=MEMORY)


def case(layout: str, *, padding: bool = True) -> Case:
    return Case(SIZE.model, SIZE.page_bytes, SIZE.device_pages, 2, layout, padding)


@pytest.mark.parametrize("layout", LAYOUTS.names())
def test_a_cell_fills_the_cache_and_its_programs_fit_the_workers_books(layout):
    cell = make_cell(case(layout), 0.5)
    host = cell.case.host()
    total = host.allocator(1, host.host_ids()).total
    assert [len(ids) for ids in cell.blocks] == [round(0.5 * total)] * 2
    assert cell.kv_bytes == 2 * round(0.5 * total) * host.block_size * host.model.kv_bytes_per_token
    shape = merge(((0,), (1,)), host.shards)
    books = {w: WorkerBook(host, w, shape.front_layout(w)) for w in (0, 1)}
    for worker, book in books.items():
        book.kv.hold(cell.blocks[worker])
    totals = totals_of(cell.merge.ops, books)
    assert sum(t.kv_peer_bytes for t in totals.values()) == cell.kv_bytes // 2, "half of everything moves"
    assert sum(t.weights_peer_bytes + t.weights_local_bytes for t in totals.values()) == 0
    assert cell.merge.moved_pairs == 2 * len(cell.blocks[0])
    assert cell.merge.holders == [shape.wide, shape.wide]
    assert sorted(cell.split.holders) == [(0,), (1,)]
    # What is split again lies as densely as before.
    assert [len(ids) for ids in cell.split.blocks] == [len(ids) for ids in cell.blocks]


@pytest.fixture
def filled(request):
    """A device and what was written to it."""
    host = case(request.param).host()
    layout = merge(((0,), (1,)), host.shards).front_layout(0)
    device = Device(host, 0, layout)
    content = Content(host, seed=3)
    blocks = np.array(host.allocator(1, host.host_ids()).allocate(7))
    device.carry_out(Effect(map=[device.book.kv.hold(blocks)]))
    content.write_kv(device, 0, blocks)
    content.write_ffn(device)
    yield device, content, blocks
    device.close()


@pytest.mark.parametrize("filled", LAYOUTS.names(), indirect=True)
def test_content_is_found_again_and_anything_else_is_not(filled):
    device, content, blocks = filled
    assert content.wrong_kv(device, 0, blocks, sample=7) == 0
    assert content.wrong_kv(device, 1, blocks, sample=0) == 7, "another instance's blocks have other content"
    assert content.wrong_kv(device, 0, blocks[::-1], sample=0) == 6, "all but the middle one are in a wrong place"
    assert content.wrong_ffn(device) == 0

    side = device.book.kv
    at = side.geometry.address(layer=1, block=int(blocks[2]), shard=1, head=0, kv=1, token=3, dim=5)
    element = device.ranges[side.range].address + at * side.geometry.item_size
    byte = np.ctypeslib.as_array((np.ctypeslib.ctypes.c_uint8 * 1).from_address(element))
    byte[0] ^= 1
    assert content.wrong_kv(device, 0, blocks, sample=7) == 1, "a single bit"

    where, offset = device.ffn_unit(2, 1)
    unit = np.ctypeslib.as_array((np.ctypeslib.ctypes.c_uint8 * 8192).from_address(where.address + offset))
    unit[4096] ^= 1
    assert content.wrong_ffn(device) == 1


@pytest.fixture(scope="module")
def crew():
    with Crew(2) as made:
        yield made
    assert not psutil.wait_procs([psutil.Process(pid) for pid in made.pids if psutil.pid_exists(pid)], timeout=5)[1]


def prepare(crew, cell):
    crew.ask([Prepare(cell.case, pack_ids(ids), 5) for ids in cell.blocks])


def check(crew, program):
    """Wrong blocks and units, over all workers."""
    tasks = [
        Check([(n, pack_ids(ids)) for n, ids in enumerate(program.blocks) if worker in program.holders[n]], 4)
        for worker in (0, 1)
    ]
    answers = crew.ask(tasks)
    return sum(a["wrong_blocks"] for a in answers), sum(a["wrong_units"] for a in answers)


@pytest.mark.engine
@pytest.mark.parametrize(("layout", "padding"), [("token-first", False), ("shard-pages", True)])
def test_workers_do_what_the_plan_says_and_everything_is_there(crew, layout, padding):
    crew.open(SIZE.page_bytes, SIZE.device_pages)
    cell = make_cell(case(layout, padding=padding), 0.9)
    prepare(crew, cell)
    for program in (cell.merge, cell.split):
        results = crew.ask(Run(program.ops))
        assert check(crew, program) == (0, 0)
        assert sum(r["kv_peer_bytes"] for r in results) == cell.kv_bytes // 2
        for result in results:
            parts = ("map_s", "unmap_s", "peer_copy_s", "local_copy_s", "weights_s", "wait_s", "communicator_s")
            assert 0 < sum(result[part] for part in parts) <= result["total_s"]
            assert result["kv_stage_s"] + result["weights_stage_s"] <= result["total_s"]
            assert result["peak_pages"] <= SIZE.device_pages
    if layout == "shard-pages":
        assert sum(r["kv_descriptors"] for r in results) == cell.split.moved_pairs


@pytest.mark.engine
def test_a_program_that_copies_to_the_wrong_place_is_noticed(crew):
    crew.open(SIZE.page_bytes, SIZE.device_pages)
    cell = make_cell(case("token-first", padding=False), 0.5)
    prepare(crew, cell)

    def swapped(op):
        """Two blocks change places."""
        if not isinstance(op, Transfer) or len(op.src) < 8:
            return op
        src = unpack_ids(op.src)
        src[[0, 1]] = src[[1, 0]]
        return Transfer(op.narrow, pack_ids(src), op.dst)

    crew.ask(Run([swapped(op) for op in cell.merge.ops]))
    wrong_blocks, wrong_units = check(crew, cell.merge)
    assert wrong_blocks >= 2 * 2, "both workers have half of each"
    assert wrong_units == 0


@pytest.mark.engine
def test_a_worker_that_fails_or_dies_ends_all_and_says_why():
    crew = Crew(2)
    with pytest.raises(ChildError, match=r"Run: worker \d: AssertionError: Prepare comes first"):
        crew.ask(Run([]))
    assert not any(psutil.pid_exists(pid) for pid in crew.pids)
    crew = Crew(2)
    psutil.Process(crew.pids[1]).kill()
    with pytest.raises(ChildError, match="ended"):
        crew.open(SIZE.page_bytes, SIZE.device_pages)
    assert not any(psutil.pid_exists(pid) for pid in crew.pids)
    crew.close()


def test_ratios_pair_repeats_and_kv_times_count_per_byte_in_use():
    slow = {"kv_bytes": 100, "kv_s": {"values": [4.0, 9.0]}, "weights_s": {"values": [4.0, 9.0]}}
    fast = {"kv_bytes": 50, "kv_s": {"values": [1.0, 3.0]}, "weights_s": {"values": [1.0, 3.0]}}
    assert paired_ratio(slow, fast, "kv_s")["values"] == [2.0, 1.5]
    assert paired_ratio(slow, fast, "weights_s")["values"] == [4.0, 3.0]
    assert paired_ratio(None, fast, "kv_s") is None
    model = {"cells": [{"layout": "a", "fill": 0.5}, {"layout": "b", "fill": 0.5}]}
    assert find_cell(model, layout="b", fill=0.5) == {"layout": "b", "fill": 0.5}
    assert find_cell(model, layout="c") is None

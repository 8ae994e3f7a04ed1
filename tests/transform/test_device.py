"""Plans on real pages: the same promises, kept by mmap and memcpy."""

from __future__ import annotations

import random

import numpy as np
import pytest
from memory.backends import fake_driver, needs_interpreter
from memory.fake_driver import FakeCuda
from transform.content import make_host
from transform.late_memory import LateMemory
from transform.rigs import DeviceRig
from transform.world import World

from gyges.kv_cache.layouts import LAYOUTS
from gyges.parallel.sharding import ParallelLayout
from gyges.transform.memory import CpuMemory, CudaMemory
from gyges.transform.ops import FFN, Transfer, pack_ids
from gyges.transform.plan import join_of
from gyges.transform.shape import split

CASES = [
    # devices, degrees, query heads, KV heads, at first, later, whether the workers run freely
    (2, (1, 2), 4, 4, (1, 1), [(2,), (1, 1)], False),
    (4, (1, 2, 4), 4, 4, (2, 1, 1), [(4,), (2, 2)], True),
    (4, (1, 4), 4, 2, (1, 1, 1, 1), [(4,), (1, 1, 1, 1)], True),
]


@pytest.fixture
def world():
    made = []

    def make(*args, **options) -> World:
        made.append(World(*args, rig=DeviceRig, **options))
        return made[-1]

    yield make
    for each in made:
        each.rig.close()


@pytest.mark.parametrize("memory", [CpuMemory, LateMemory])
@pytest.mark.parametrize("padding", [True, False], ids=["padded", "packed"])
@pytest.mark.parametrize("layout", LAYOUTS.names())
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[4]}->{case[5]}")
def test_what_was_written_is_read_back_after_a_merge_and_a_split(world, layout, padding, case, memory):
    devices, degrees, heads, kv_heads, start, later, threads = case
    # 4 KiB pages: a cell of one page, of several, or with room for several blocks, as the layout has it.
    host = make_host(
        layout, padding, devices=devices, degrees=degrees, heads=heads, kv_heads=kv_heads, page_bytes=4096,
        block_size=12, head_dim=12, hidden=40, rows_per_shard=9, spare_pages=30,
    )  # fmt: skip
    w = world(host, start, random.Random(3), threads=threads, memory=memory)
    for group in w.groups:
        w.fill(group, 1.0)
    w.check()
    for degrees in later:
        plan = w.merge(w.groups) if len(degrees) == 1 else w.split(w.groups[0], degrees, "scattered")
        assert plan.bytes_moved > 0
        assert not any(device.copying for device in w.rig.devices.values())
        w.check()
        for group in w.groups:
            w.fill(group, 0.7)
    w.empty()


@pytest.mark.parametrize(
    ("layout", "kernel"),
    [*((name, False) for name in LAYOUTS.names()), pytest.param("shard-pages", True, marks=needs_interpreter)],
)
def test_the_same_programs_run_on_cuda_devices(world, layout, kernel):
    """On a driver that refuses what a GPU may let pass (no access rights, unmapping what is read), and whose copies take as long
    as they may; each worker has its own."""
    drivers: list[FakeCuda] = []

    def cuda_memory() -> CudaMemory:
        drivers.append(FakeCuda(late=True))
        return CudaMemory(fake_driver(drivers[-1]), stream=len(drivers), kernel=kernel)

    host = make_host(
        layout, layout == "shard-pages", devices=2, degrees=(1, 2), heads=4, kv_heads=4, page_bytes=4096, block_size=12,
        head_dim=12, hidden=40, rows_per_shard=9, spare_pages=20,
    )  # fmt: skip
    # Triton's interpreter takes one launch at a time.
    w = world(host, (1, 1), random.Random(11), threads=not kernel, memory=cuda_memory)
    for group in w.groups:
        w.fill(group, 0.9)
    plan = w.merge(w.groups)
    assert plan.bytes_moved > 0
    w.check()
    w.split(w.groups[0], (1, 1), "scattered")
    w.check()
    w.empty()
    assert all(("cuMemcpyDtoDAsync" in driver.calls) != kernel for driver in drivers)
    w.rig.close()
    assert [driver.leaks() for driver in drivers] == [{}, {}]


@pytest.mark.parametrize("memory", [CpuMemory, LateMemory])
@pytest.mark.parametrize("layout", LAYOUTS.names())
def test_a_device_starts_anew_from_the_middle_of_a_transformation(world, layout, memory):
    host = make_host(
        layout, False, devices=2, degrees=(1, 2), heads=4, kv_heads=4, page_bytes=4096, block_size=4, spare_pages=20
    )
    w = world(host, (1, 1), random.Random(5), threads=False, memory=memory)
    for group in w.groups:
        w.fill(group, 0.5)
    w.merge(w.groups)
    (group,) = w.groups
    shape = split(group.members, (1, 1), host.shards)
    ids = np.array(list(group.blocks.values())[:1])
    join = join_of(shape, w.rig.books)
    for op in (join, Transfer(0, pack_ids(ids), pack_ids([0])), FFN(0, 1)):
        for device in w.rig.devices.values():
            device.apply(op, wait=lambda: None)
    assert any(device.copying for device in w.rig.devices.values()) == memory.overlaps
    for worker, device in w.rig.devices.items():
        layout = ParallelLayout(1, 0, host.shards)
        device.reset(layout, 0)
        units = host.ffn_layout(layout)
        expected = {"resident": host.resident_layout.pages, "ffn0": units.pages}
        for name in device.ranges:
            assert len(w.rig.mapped(worker, name)) == expected.get(name, 0)
        w.rig.check(worker)

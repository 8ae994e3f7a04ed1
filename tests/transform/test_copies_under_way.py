"""Copies that go on after they were launched: who finds them done, who waits for them, what they cost."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
from memory.backends import fake_driver
from memory.fake_driver import FakeCuda
from transform.content import ffn_span, kv_elements, kv_stamps, make_host
from transform.late_memory import LateMemory
from transform.rigs import DeviceRig
from transform.world import World

from gyges.transform import device as device_module
from gyges.transform.interpreter import Effect
from gyges.transform.memory import CpuMemory, CudaMemory
from gyges.transform.ops import FFN, Barrier, Settle, Switch, Transfer, pack_ids
from gyges.transform.plan import join_of
from gyges.transform.shape import split

COPIES, KERNELS = 7, 3  # streams


def late_cuda() -> CudaMemory:
    return CudaMemory(fake_driver(FakeCuda(late=True)), COPIES, model_stream=KERNELS, kernel=False)


class Splitting:
    """Two workers that have joined for a split, nothing copied yet; everything is to move, into address ranges of its own.

    ``device``: worker 0, which gets ``uids``, six blocks whose ids are ``src`` and will be ``dst``.
    """

    def __init__(self, memory) -> None:
        self.host = make_host(
            "token-first", False, devices=2, degrees=(1, 2), heads=4, kv_heads=4, page_bytes=4096, block_size=4, spare_pages=60
        )  # fmt: skip
        self.world = World(self.host, (2,), random.Random(5), rig=DeviceRig, threads=False, memory=memory)
        self.world.allocate(self.world.groups[0], 6)
        (group,) = self.world.groups
        self.shape = split(group.members, (1, 1), self.host.shards)
        self.worker = self.shape.narrow[0][0]
        self.rig, self.device = self.world.rig, self.world.rig.devices[self.worker]
        self.uids, self.src = list(group.blocks), list(group.blocks.values())
        self.dst = self.host.allocator(1, self.world.ids).allocate(len(self.src))
        join = join_of(self.shape, self.rig.books)
        for device in self.rig.devices.values():
            device.apply(join, wait=lambda: None)

    def transfer(self, part: slice) -> None:
        self.apply(Transfer(0, pack_ids(self.src[part]), pack_ids(self.dst[part])))

    def apply(self, op, wait=lambda: None) -> None:
        self.device.apply(op, wait)

    def arrived(self) -> list[bool]:
        """Of each block, whether it is where a kernel of the narrow instance looks for it."""
        layout = self.shape.back_layout(self.worker)
        found = self.rig.read(self.worker, "kv1", kv_elements(self.host, layout, self.dst))
        return (found == kv_stamps(self.host, layout, self.uids)).all(axis=(1, 2, 3, 4, 5, 6)).tolist()


@pytest.fixture(params=[LateMemory, late_cuda])
def splitting(request):
    made = Splitting(request.param)
    yield made
    made.world.rig.close()
    for device in made.rig.devices.values():
        if isinstance(device.memory, CudaMemory):
            assert device.memory.driver.api.leaks() == {}


def hold(splitting: Splitting) -> None:
    """Pages for all blocks at the back, so that what has not come can be looked at."""
    splitting.device.carry_out(Effect(map=[splitting.device.book.kv_back.hold(np.array(splitting.dst))]))


def test_kernels_after_a_switch_find_what_was_copied_before_it_and_the_rest_goes_on(splitting):
    hold(splitting)
    splitting.transfer(slice(0, 2))
    assert not any(splitting.arrived()), "or this would show nothing"
    splitting.apply(Switch(0, 0, pack_ids(splitting.dst[:2])))
    splitting.transfer(slice(2, 4))
    assert splitting.arrived() == [True] * 2 + [False] * 4
    assert splitting.device.copying, "the host has not waited"
    splitting.device.finish_copies()
    assert splitting.arrived() == [True] * 4 + [False] * 2
    assert not splitting.device.copying
    splitting.transfer(slice(4, 6))
    splitting.apply(Switch(1, 0, pack_ids(splitting.dst[2:])))
    assert all(splitting.arrived())


def test_kernels_that_are_told_where_an_ffn_unit_has_moved_to_find_it_whole(splitting):
    splitting.apply(FFN(0, 2))
    layout = splitting.shape.back_layout(splitting.worker)
    front = splitting.shape.front_layout(splitting.worker)
    (moved,) = set(layout.ffn_shards) - set(front.ffn_shards)
    elements, stamps = ffn_span(splitting.host, layout, 1, moved)
    assert (splitting.rig.read(splitting.worker, "ffn1", elements) != stamps).all(), "or this would show nothing"
    where, offset = splitting.device.ffn_unit(1, moved)
    assert (where.name, offset // 4) == ("ffn1", elements[0])
    assert (splitting.rig.read(splitting.worker, "ffn1", elements) == stamps).all()
    assert splitting.device.copying


def test_peers_are_met_and_a_transformation_ends_when_copies_are_done(splitting):
    seen = []
    splitting.transfer(slice(0, 3))
    splitting.apply(Barrier(), wait=lambda: seen.append(splitting.device.copying))
    assert seen == [False]
    splitting.transfer(slice(3, 6))
    splitting.apply(Settle())
    assert not splitting.device.copying
    assert all(splitting.arrived())


def test_a_device_that_is_closed_while_it_copies_leaves_nothing(splitting):
    splitting.transfer(slice(0, 6))
    assert splitting.device.copying


def test_pages_are_unmapped_when_copies_are_done(splitting):
    """The pools refuse it before: the driver and tests/transform/late_memory.py say so by themselves."""
    splitting.transfer(slice(0, 6))
    front = splitting.device.book.kv.drop(np.array(splitting.src))
    assert len(front.slots)
    splitting.device.carry_out(Effect(unmap=[front]))
    assert all(splitting.arrived())


def test_the_driver_refuses_to_unmap_what_a_running_copy_writes():
    """What it reads is mapped a second time, as a peer's; to give that up too early is no error of the driver's."""
    splitting = Splitting(late_cuda)
    device = splitting.device
    splitting.transfer(slice(0, 6))
    where = device.ranges["kv1"]
    # A pool that was told the streams of kernels alone, and a caller that has not waited.
    device.pool.watch(KERNELS)
    with pytest.raises(AssertionError, match=rf"unmapped while kernels of stream \[{COPIES}\]"):
        device.pool.unmap(where, np.flatnonzero(where.table >= 0)[:1])
    device.pool.watch(COPIES)
    device.pool.unmap(where, np.flatnonzero(where.table >= 0)[:1])
    splitting.rig.close()


def test_a_copy_counts_as_long_as_it_took_and_the_host_for_what_it_waited(monkeypatch):
    splitting = Splitting(late_cuda)
    driver = splitting.device.memory.driver
    lasted = iter([0.25, 0.5, 1.0, 2.0])
    monkeypatch.setattr(driver, "elapsed", lambda first, last: next(lasted))
    clock, wait = [0.0], driver.wait
    monkeypatch.setattr(device_module, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def waits(stream=None):
        clock[0] += 0.125
        wait(stream)

    monkeypatch.setattr(driver, "wait", waits)
    splitting.transfer(slice(0, 6))
    splitting.device.finish_copies()
    spent = splitting.device.spent
    assert sorted([spent.local_copy_s, spent.peer_copy_s]) == [0.25, 0.5]
    assert (spent.kv_host_s, spent.weights_s) == (0.125, 0.0)
    splitting.apply(FFN(0, 2))
    splitting.device.finish_copies()
    assert (spent.kv_host_s, spent.weights_s) == (0.125, 0.125)
    assert spent.local_copy_s + spent.peer_copy_s == 0.75, "what weights took is no part of it"
    splitting.rig.close()


def test_where_copies_do_not_overlap_the_host_is_what_copies():
    splitting = Splitting(CpuMemory)
    splitting.transfer(slice(0, 6))
    assert all(splitting.arrived())
    assert not splitting.device.copying
    spent = splitting.device.spent
    assert min(spent.local_copy_s, spent.peer_copy_s) > 0 == spent.kv_host_s
    splitting.rig.close()

"""A world of workers whose memory holds stamps instead of tensors, for following every value through transformations.

What belongs where is computed from the model and from addresses (KVGeometry.address, FFNLayout.units), never from copies:

    KV     value of (block, layer, head, kv, token, dim)  ->  a number of its own, > 0
    FFN    element i of (layer, shard)                    ->  a number of its own, < 0
    pages  just mapped or just given up                   ->  poison

Two rigs carry programs out: ``ModelRig`` on numpy arrays, strict about every effect, and ``DeviceRig`` on real pages.
"""

from __future__ import annotations

import ctypes
import random
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np

from gyges.core import ModelGeometry
from gyges.kv_cache.blocks import BlockAllocator
from gyges.kv_cache.layouts import LAYOUTS
from gyges.parallel.sharding import ParallelLayout
from gyges.transform.books import Move, WorkerBook, ranges_of
from gyges.transform.copies import CopyBatch
from gyges.transform.device import Device
from gyges.transform.host import HostShape
from gyges.transform.interpreter import Interpreter
from gyges.transform.memory import CpuMemory, DeviceMemory
from gyges.transform.ops import AnyOp, Barrier, Op
from gyges.transform.plan import Moves, Plan, Planner, WorkerTotals, back_ids, join_of, make_plan, totals_of
from gyges.transform.shape import Transformation, merge, split

RESIDENT = (("embed", (7, 5)), ("norm", (9,)))
NEVER_MAPPED, UNMAPPED, FRESH = -1, -2, -3


def make_host(
    layout: str,
    padding: bool,
    *,
    devices: int,
    degrees: tuple[int, ...],
    heads: int,
    kv_heads: int,
    page_bytes: int,
    block_size: int,
    layers: int = 2,
    head_dim: int = 4,
    hidden: int = 8,
    rows_per_shard: int = 3,
    spare_pages: int = 0,
) -> HostShape:
    """The smallest devices on which every degree can run, and ``spare_pages`` more."""
    rows = int(np.lcm.reduce(degrees)) * rows_per_shard
    model = ModelGeometry(layers, hidden, heads, kv_heads, head_dim, rows, 64, 4, False)

    def of(pages: int) -> HostShape:
        return HostShape(
            model, RESIDENT, degrees, LAYOUTS.get(layout), padding, page_bytes, pages, devices, block_size
        )  # fmt: skip

    return of(max(of(0).needed_pages(degree) for degree in degrees) + spare_pages)


# -- stamps -----------------------------------------------------------------------------------------------------------


def kv_elements(host: HostShape, layout: ParallelLayout, blocks: Sequence[int]) -> np.ndarray:
    """Addresses (elements) [blocks, shards held, heads, layers, kv, tokens, dim] on a worker of that layout."""
    g, m = host.kv_geometry(layout.degree), host.model
    held = np.array(layout.kv_shards)
    index = np.ix_(
        np.asarray(blocks, np.int64),
        held if g.layout.shards_leave_whole else held - held[0],
        range(m.num_kv_heads // host.shards.kv),
        range(m.num_layers),
        range(2),
        range(host.block_size),
        range(m.head_dim),
    )
    block, shard, head, layer, kv, token, dim = index
    return g.address(layer=layer, block=block, shard=shard, head=head, kv=kv, token=token, dim=dim)


def kv_stamps(host: HostShape, layout: ParallelLayout, uids: Sequence[int]) -> np.ndarray:
    """What is at :func:`kv_elements`. ``uids``: of the blocks, for life, whatever their ids are."""
    m = host.model
    per_shard = m.num_kv_heads // host.shards.kv
    block, shard, head, layer, kv, token, dim = np.ix_(
        np.asarray(uids, np.int64),
        np.array(layout.kv_shards),
        range(per_shard),
        range(m.num_layers),
        range(2),
        range(host.block_size),
        range(m.head_dim),
    )
    stamp = block
    for size, index in (
        (m.num_kv_heads, shard * per_shard + head),
        (m.num_layers, layer),
        (2, kv),
        (host.block_size, token),
        (m.head_dim, dim),
    ):
        stamp = stamp * size + index
    return stamp + 1


def ffn_span(host: HostShape, layout: ParallelLayout, layer: int, shard: int) -> tuple[np.ndarray, np.ndarray]:
    """(elements, stamps) of a unit."""
    units, item = host.ffn_layout(layout), host.model.item_size
    rows = host.model.intermediate_size // host.shards.ffn  # the degrees divide them
    count = 3 * rows * host.model.hidden_size
    assert units.units[layer, shard] % item == 0
    inside = np.arange(count)
    return units.units[layer, shard] // item + inside, -100 - ((layer * host.shards.ffn + shard) * count + inside)


# -- rigs -------------------------------------------------------------------------------------------------------------


@dataclass
class Runs:
    """A batch of copies, spelled out."""

    src: np.ndarray
    dst: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, batch: CopyBatch) -> Runs:
        src, dst = batch.src, batch.dst
        for count, a, b in batch.loops:
            steps = np.arange(count)
            src, dst = np.add.outer(src, steps * a), np.add.outer(dst, steps * b)
        lengths = np.broadcast_to(batch.lengths.reshape(-1, *[1] * len(batch.loops)), src.shape)
        return cls(src.ravel(), dst.ravel(), lengths.ravel())

    def elements(self, item: int) -> tuple[np.ndarray, np.ndarray]:
        for each in (self.src, self.dst, self.lengths):
            assert not (each % item).any(), "a copy cuts an element"
        counts = self.lengths // item
        inside = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.repeat(self.src // item, counts) + inside, np.repeat(self.dst // item, counts) + inside


class ModelRig:
    """Memory as int64 arrays, one number per element; checks what hardware would let pass.

    Between two barriers workers run as they like: so nothing that a peer reads may be written, mapped or given up by its owner.
    """

    def __init__(self, host: HostShape, layouts: dict[int, ParallelLayout]) -> None:
        self.host = host
        self.per_page = host.page_bytes // host.model.item_size
        self.books = {w: WorkerBook(host, w, layout) for w, layout in layouts.items()}
        self.content: dict[int, dict[str, np.ndarray]] = {}
        self.held: dict[int, dict[str, np.ndarray]] = {}
        for worker in layouts:
            sizes = ranges_of(host)
            self.content[worker] = {n: np.full(s * self.per_page, NEVER_MAPPED) for n, s in sizes.items()}
            self.held[worker] = {n: np.zeros(s, bool) for n, s in sizes.items()}
            self.map(worker, Move("resident", np.arange(sizes["resident"])))
            units = self.books[worker].ffn.units
            self.map(worker, Move("ffn0", units.slots(units.units)[0]))

    def mapped(self, worker: int, name: str) -> np.ndarray:
        return np.flatnonzero(self.held[worker][name])

    def mapped_pages(self, worker: int) -> int:
        return sum(int(each.sum()) for each in self.held[worker].values())

    def map(self, worker: int, move: Move) -> None:
        held = self.held[worker][move.range]
        assert len(np.unique(move.slots)) == len(move.slots), f"a slot of {move.range} is mapped twice in one go"
        assert not held[move.slots].any(), f"a slot of {move.range} is mapped twice"
        held[move.slots] = True
        self._fill(worker, move, FRESH)
        assert self.mapped_pages(worker) <= self.host.device_pages, f"worker {worker} exceeds its device"

    def unmap(self, worker: int, move: Move) -> None:
        held = self.held[worker][move.range]
        assert len(np.unique(move.slots)) == len(move.slots), f"a slot of {move.range} is unmapped twice in one go"
        assert held[move.slots].all(), f"a slot of {move.range} is unmapped and was not mapped"
        held[move.slots] = False
        self._fill(worker, move, UNMAPPED)

    def _fill(self, worker: int, move: Move, value: int) -> None:
        self.content[worker][move.range].reshape(-1, self.per_page)[move.slots] = value

    def write(self, worker: int, name: str, elements: np.ndarray, values: np.ndarray | int) -> None:
        assert self.held[worker][name][elements // self.per_page].all(), f"writes to an unmapped page of {name}"
        self.content[worker][name][elements] = values

    def read(self, worker: int, name: str, elements: np.ndarray) -> np.ndarray:
        assert self.held[worker][name][elements // self.per_page].all(), f"reads an unmapped page of {name}"
        return self.content[worker][name][elements]

    def check(self, worker: int) -> None:
        book = self.books[worker]
        assert book.mapped_pages == self.mapped_pages(worker)
        assert book.free_pages + self.mapped_pages(worker) == self.host.device_pages

    def run(self, shape: Transformation, ops: Sequence[Op]) -> dict[int, WorkerTotals]:
        """Op by op: all maps, then all copies, then all unmaps. What was done, counted here."""
        interpreters = {w: Interpreter(self.books[w]) for w in shape.wide}
        counted = {w: WorkerTotals() for w in shape.wide}
        for worker, total in counted.items():
            total.start_pages = total.peak_pages = self.mapped_pages(worker)
        self._new_segment()
        for op in ops:
            effects = {w: interpreters[w].apply(op) for w in shape.wide}
            if isinstance(op, Barrier):
                self._end_segment()
            for worker, effect in effects.items():
                for move in effect.map:
                    self.map(worker, move)
                    self._changed[worker, move.range].append(move.slots)
                    counted[worker].mapped_pages += len(move.slots)
                counted[worker].peak_pages = max(counted[worker].peak_pages, self.mapped_pages(worker))
            for worker, effect in effects.items():
                for batch in effect.copies:
                    self._copy(worker, batch, effect.part, counted[worker])
            for worker, effect in effects.items():
                for move in effect.unmap:
                    self.unmap(worker, move)
                    self._changed[worker, move.range].append(move.slots)
                    counted[worker].unmapped_pages += len(move.slots)
                self.check(worker)
        self._end_segment()
        for worker, total in counted.items():
            total.end_pages = self.mapped_pages(worker)
        return counted

    def _copy(self, worker: int, batch: CopyBatch, part: str, counted: WorkerTotals) -> None:
        runs, page = Runs.of(batch), self.host.page_bytes
        for starts in (runs.src, runs.dst):
            assert (starts // page == (starts + runs.lengths - 1) // page).all(), "a copy crosses a page"
        src, dst = runs.elements(self.host.model.item_size)
        assert len(np.unique(dst)) == len(dst), "a copy writes a value twice"
        own = batch.worker == worker
        if own and batch.src_range == batch.dst_range:
            assert not np.intersect1d(src, dst).size, "a copy overwrites what it reads"
        if not own:
            self._read[batch.worker, batch.src_range].append(src)
        self._written[worker, batch.dst_range].append(dst)
        self.write(worker, batch.dst_range, dst, self.read(batch.worker, batch.src_range, src))
        size = len(src) * self.host.model.item_size
        name = f"{part}_{'local' if own else 'peer'}_bytes"
        setattr(counted, name, getattr(counted, name) + size)
        name = f"{part}_descriptors"
        setattr(counted, name, getattr(counted, name) + len(runs.src))

    def _new_segment(self) -> None:
        self._read: dict[tuple[int, str], list[np.ndarray]] = defaultdict(list)  # elements, by owner
        self._written: dict[tuple[int, str], list[np.ndarray]] = defaultdict(list)
        self._changed: dict[tuple[int, str], list[np.ndarray]] = defaultdict(list)  # slots

    def _end_segment(self) -> None:
        for place, reads in self._read.items():
            read = np.unique(np.concatenate(reads))
            for written in self._written.get(place, ()):
                assert not np.isin(written, read).any(), f"{place} is written while a peer reads it"
            for slots in self._changed.get(place, ()):
                assert not np.isin(slots, read // self.per_page).any(), f"{place} is remapped while a peer reads it"
        self._new_segment()

    def close(self) -> None:
        pass


class DeviceRig:
    """Real pages in one process; the workers take turns, or run freely between barriers."""

    POISON = -2

    def __init__(
        self,
        host: HostShape,
        layouts: dict[int, ParallelLayout],
        *,
        threads: bool,
        memory: Callable[[], DeviceMemory] = CpuMemory,
    ) -> None:
        self.host, self.threads = host, threads
        self.per_page = host.page_bytes // 4
        assert host.model.item_size == 4
        self.devices = {w: Device(host, w, layout, memory=memory()) for w, layout in layouts.items()}
        for device in self.devices.values():
            self._poison_what_is_mapped(device)
            for worker, other in self.devices.items():
                device.connect(worker, other.pool.export())

    def _poison_what_is_mapped(self, device: Device) -> None:
        """Pages are recycled: without this, a copy that is not made could go unnoticed."""
        pool_map = device.pool.map

        def poisoned(where, slots):
            pool_map(where, slots)
            self._array(device, where.name).reshape(-1, self.per_page)[np.asarray(slots)] = self.POISON

        device.pool.map = poisoned  # type: ignore[method-assign]

    @staticmethod
    def _array(device: Device, name: str) -> np.ndarray:
        where = device.ranges[name]
        return np.frombuffer((ctypes.c_int32 * (where.length // 4)).from_address(where.address), np.int32)

    @property
    def books(self) -> dict[int, WorkerBook]:
        return {w: device.book for w, device in self.devices.items()}

    def mapped(self, worker: int, name: str) -> np.ndarray:
        return np.flatnonzero(self.devices[worker].ranges[name].table >= 0)

    def map(self, worker: int, move: Move) -> None:
        device = self.devices[worker]
        device.pool.map(device.ranges[move.range], move.slots)

    def unmap(self, worker: int, move: Move) -> None:
        device = self.devices[worker]
        device.pool.unmap(device.ranges[move.range], move.slots)

    def write(self, worker: int, name: str, elements: np.ndarray, values: np.ndarray | int) -> None:
        self._array(self.devices[worker], name)[elements] = values

    def read(self, worker: int, name: str, elements: np.ndarray) -> np.ndarray:
        assert np.isin(elements // self.per_page, self.mapped(worker, name)).all(), f"an unmapped page of {name}"
        return self._array(self.devices[worker], name)[elements]

    def check(self, worker: int) -> None:
        device = self.devices[worker]
        device.pool.check()
        assert device.pool.free_pages == device.book.free_pages
        assert device.pool.peak_mapped <= self.host.device_pages
        pages = np.concatenate([where.table[where.table >= 0] for where in device.ranges.values()])
        assert len(np.unique(pages)) == len(pages), "a page is in two places"

    def run(self, shape: Transformation, ops: Sequence[Op]) -> dict[int, WorkerTotals]:
        if self.threads:
            self._run_freely(shape, ops)
        else:
            for op in ops:
                for worker in shape.wide:
                    self.devices[worker].apply(op, wait=lambda: None)
        done = {}
        for worker in shape.wide:
            spent = self.devices[worker].spent.to_dict()
            done[worker] = WorkerTotals(**{name: spent[name] for name in WorkerTotals.__slots__})
        return done

    def _run_freely(self, shape: Transformation, ops: Sequence[Op]) -> None:
        barrier, failures = threading.Barrier(len(shape.wide)), []

        def work(worker: int) -> None:
            try:
                for op in ops:
                    self.devices[worker].apply(op, wait=lambda: barrier.wait(60) and None)
            except BaseException as error:
                failures.append(error)
                barrier.abort()

        threads = [threading.Thread(target=work, args=(worker,)) for worker in shape.wide]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for failure in failures:
            raise failure

    def close(self) -> None:
        for device in self.devices.values():
            device.close()


# -- the world --------------------------------------------------------------------------------------------------------


@dataclass
class Group:
    """An instance: ``members`` in rank order, ``blocks``: uid -> id."""

    members: tuple[int, ...]
    allocator: BlockAllocator
    blocks: dict[int, int] = field(default_factory=dict)

    @property
    def degree(self) -> int:
        return len(self.members)

    def layout(self, worker: int, host: HostShape) -> ParallelLayout:
        return ParallelLayout(self.degree, self.members.index(worker), host.shards)


Compose = Callable[[Planner, list[Moves]], list[tuple[int, int]]]


def over_the_wire(ops: list[AnyOp]) -> list[AnyOp]:
    """As the workers get them."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(ops), type=list[AnyOp])


class World:
    """``start``: degrees of the instances at the beginning; their workers are dealt at random."""

    def __init__(self, host: HostShape, start: Sequence[int], rng: random.Random, rig=ModelRig, **options) -> None:
        self.host, self.rng = host, rng
        self.ids = host.host_ids()
        self.all_ids = len(self.ids)
        self.parity = dict.fromkeys(range(host.num_devices), 0)
        workers = list(self.parity)
        rng.shuffle(workers)
        self.groups: list[Group] = []
        for degree in start:
            members, workers = tuple(workers[:degree]), workers[degree:]
            self.groups.append(Group(members, host.allocator(degree, self.ids)))
        assert not workers, "instances for all workers"
        layouts = {w: g.layout(w, host) for g in self.groups for w in g.members}
        self.rig = rig(host, dict(sorted(layouts.items())), **options)
        self.uids = 0
        for worker, layout in layouts.items():
            self.rig.write(worker, "resident", self._resident(), 1 + worker)
            for layer, shard in self._units(layout):
                elements, stamps = ffn_span(host, layout, layer, shard)
                self.rig.write(worker, "ffn0", elements, stamps)

    def _units(self, layout: ParallelLayout) -> Iterable[tuple[int, int]]:
        return ((layer, shard) for layer in range(self.host.model.num_layers) for shard in layout.ffn_shards)

    def _resident(self) -> np.ndarray:
        return np.arange(self.host.resident_layout.pages * self.host.page_bytes // self.host.model.item_size)

    # -- filling ------------------------------------------------------------------------------------------------------

    def allocate(self, group: Group, count: int) -> None:
        """New blocks, held and written by every member."""
        if not count:
            return
        ids = group.allocator.allocate(count)
        assert ids is not None
        uids = range(self.uids, self.uids + count)
        self.uids += count
        group.blocks |= zip(uids, ids, strict=True)
        for worker in group.members:
            layout = group.layout(worker, self.host)
            self.rig.map(worker, self.rig.books[worker].kv.hold(np.array(ids)))
            elements, stamps = kv_elements(self.host, layout, ids), kv_stamps(self.host, layout, uids)
            self.rig.write(worker, self.range("kv", worker), elements, stamps)

    def release(self, group: Group, uids: Sequence[int]) -> None:
        if not len(uids):
            return
        ids = [group.blocks.pop(uid) for uid in uids]
        group.allocator.release(ids)
        for worker in group.members:
            self.rig.unmap(worker, self.rig.books[worker].kv.drop(np.array(ids)))

    def fill(self, group: Group, share: float) -> None:
        """Until ``share`` of all blocks is in use, with a past: requests came and went in random order."""
        want = round(share * group.allocator.total)
        while len(group.blocks) < want:
            self.allocate(group, self.rng.randint(1, want - len(group.blocks)))
        for _ in range(2):
            gone = self.rng.sample(sorted(group.blocks), self.rng.randint(0, len(group.blocks)))
            self.release(group, gone)
            back = len(gone) if share == 1 else self.rng.randint(0, len(gone))
            for part in (back // 2, back - back // 2):
                self.allocate(group, part)

    def keep_at_most(self, groups: Sequence[Group], count: int) -> None:
        while sum(len(g.blocks) for g in groups) > count:
            group = max(groups, key=lambda g: len(g.blocks))
            self.release(group, [self.rng.choice(sorted(group.blocks))])

    # -- transforming -------------------------------------------------------------------------------------------------

    def merge(self, groups: Sequence[Group], compose: Compose | None = None) -> Plan:
        self.keep_at_most(groups, self.host.allocator(sum(g.degree for g in groups), self.ids).total)
        shape = merge(tuple(g.members for g in groups), self.host.shards)
        return self._transform(shape, list(groups), [list(g.blocks) for g in groups], compose)

    def split(self, group: Group, degrees: Sequence[int], homes: str, compose: Compose | None = None) -> Plan:
        """``homes``: how blocks find theirs: "scattered", "runs" of neighbouring ids, or "packed" (one home full first)."""
        room = [self.host.allocator(degree, self.ids).total for degree in degrees]
        self.keep_at_most([group], sum(room))
        shape = split(group.members, tuple(degrees), self.host.shards)
        return self._transform(shape, [group], self._homes(group, room, homes), compose)

    def _homes(self, group: Group, room: Sequence[int], how: str) -> list[list[int]]:
        rng, rest = self.rng, len(group.blocks)
        shares = [0] * len(room)
        if how == "packed":
            for home in rng.sample(range(len(room)), len(room)):
                shares[home] = min(room[home], rest)
                rest -= shares[home]
        else:
            while rest:
                home = rng.choice([h for h in range(len(room)) if shares[h] < room[h]])
                shares[home] += 1
                rest -= 1
        uids = sorted(group.blocks, key=lambda uid: group.blocks[uid])
        if how == "scattered":
            rng.shuffle(uids)
        homes, at = [], 0
        for share in shares:
            homes.append(uids[at : at + share])
            at += share
        return homes

    def _transform(
        self, shape: Transformation, before: list[Group], homes: list[list[int]], compose: Compose | None = None
    ) -> Plan:
        """``homes``: uids by narrow instance. ``compose``: in place of one stop; returns (narrow instance, index) of blocks
        that were given up on the way."""
        host, rig = self.host, self.rig
        ids = {uid: block for g in before for uid, block in g.blocks.items()}
        live = [[ids[uid] for uid in home] for home in homes]
        after_members = [shape.wide] if shape.kind == "merge" else shape.narrow
        allocators = [host.allocator(len(members), self.ids) for members in after_members]
        back = back_ids(shape, host, live, allocators)
        moves = [Moves(n, np.array(a, np.int64), b) for n, (a, b) in enumerate(zip(live, back.ids, strict=True))]
        after = [Group(m, a) for m, a in zip(after_members, allocators, strict=True)]
        for narrow, (home, dst) in enumerate(zip(homes, back.ids, strict=True)):
            after[0 if shape.kind == "merge" else narrow].blocks |= zip(home, dst.tolist(), strict=True)

        pages = {w: rig.books[w].mapped_pages for w in shape.wide}
        books = {w: rig.books[w] for w in shape.wide}
        if compose is None:
            plan = make_plan(host, shape, books, moves)
        else:
            uids_of = dict(enumerate(homes))
            planner = Planner(host, shape, {w: b.copy() for w, b in books.items()}, join_of(shape, books))
            gone = compose(planner, moves)
            plan = Plan(shape, planner.take())
            plan.totals = totals_of(plan.ops, {w: b.copy() for w, b in books.items()})
            for narrow, at in gone:
                group = after[0 if shape.kind == "merge" else narrow]
                group.allocator.release([group.blocks.pop(uids_of[narrow][at])])
        for worker in shape.wide:
            assert rig.books[worker].mapped_pages == pages[worker], "a plan changed the books it was made from"
            rig.check(worker)
        counted = rig.run(shape, over_the_wire(plan.ops))
        assert counted == plan.totals
        if compose is None:
            self._check_what_came_from_peers(before, after, counted)

        back.forget(ids.values())
        for group in back.abandoned:
            self.ids.give(group)
        for worker in shape.wide:
            self.parity[worker] ^= 1
        self.groups = [g for g in self.groups if g not in before] + after
        return plan

    def _check_what_came_from_peers(
        self, before: list[Group], after: list[Group], counted: dict[int, WorkerTotals]
    ) -> None:
        """Exactly what a worker needs and does not have: no value twice, none that it has already."""
        host, m = self.host, self.host.model
        per_shard = m.num_layers * (m.num_kv_heads // host.shards.kv) * 2 * host.block_size * m.head_dim
        per_unit = 3 * m.intermediate_size // host.shards.ffn * m.hidden_size

        def held(groups: list[Group], worker: int) -> tuple[set, set]:
            (group,) = (g for g in groups if worker in g.members)
            layout = group.layout(worker, host)
            return {(uid, shard) for uid in group.blocks for shard in layout.kv_shards}, set(self._units(layout))

        for worker, total in counted.items():
            (kv_had, ffn_had), (kv, ffn) = held(before, worker), held(after, worker)
            assert total.kv_peer_bytes == len(kv - kv_had) * per_shard * m.item_size
            assert total.weights_peer_bytes == len(ffn - ffn_had) * per_unit * m.item_size

    # -- checking -----------------------------------------------------------------------------------------------------

    def range(self, part: str, worker: int) -> str:
        """Of the front: where addresses depend on the degree, it alternates."""
        moves = not (self.host.padding if part == "ffn" else self.host.layout.shards_leave_whole)
        return f"{part}{self.parity[worker] if moves else 0}"

    def check(self) -> None:
        """All that is needed is where it belongs, on every worker that must hold it; and nothing else takes a page."""
        for group in self.groups:
            for worker in group.members:
                self._check_worker(group, worker)
        per_group = self.groups[0].allocator.blocks_per_group
        open_groups = 0
        for group in self.groups:
            ids = list(group.blocks.values())
            assert len(set(ids)) == len(ids) == group.allocator.num_held
            assert group.allocator.open_groups == len({b // group.allocator.blocks_per_group for b in ids})
            assert group.allocator.open_groups <= group.allocator.max_groups
            open_groups += group.allocator.open_groups
        if self.host.same_addresses:
            assert len(self.ids) + open_groups == self.all_ids, "a group id was lost, or is held twice"
            owners = {(b // per_group, id(g)) for g in self.groups for b in g.blocks.values()}
            assert len({group for group, _ in owners}) == len(owners), "two instances share a group"

    def _check_worker(self, group: Group, worker: int) -> None:
        host, rig = self.host, self.rig
        layout = group.layout(worker, host)
        uids, ids = list(group.blocks), list(group.blocks.values())
        elements, stamps = kv_elements(host, layout, ids), kv_stamps(host, layout, uids)
        assert len(np.unique(elements)) == elements.size
        wrong = rig.read(worker, self.range("kv", worker), elements) != stamps
        assert not wrong.any(), f"KV is wrong on worker {worker}: {np.argwhere(wrong)[:3]} of {wrong.shape}"
        per_page = host.page_bytes // host.model.item_size
        units = set()
        for layer, shard in self._units(layout):
            elements, stamps = ffn_span(host, layout, layer, shard)
            found = rig.read(worker, self.range("ffn", worker), elements)
            assert (found == stamps).all(), f"unit {layer, shard} is wrong on worker {worker}"
            units |= set((elements // per_page).tolist())
        assert (rig.read(worker, "resident", self._resident()) == 1 + worker).all()

        g = host.kv_geometry(group.degree)
        groups = sorted({block // g.blocks_per_group for block in ids})
        expected = {
            "resident": set(range(host.resident_layout.pages)),
            self.range("ffn", worker): units,
            self.range("kv", worker): set(g.group_pages(groups, layout.kv_shards).ravel().tolist()),
        }
        fresh = WorkerBook(host, worker, layout, self.parity[worker])
        fresh.kv.hold(np.array(ids, np.int64))
        book = rig.books[worker]
        assert (book.parity, book.kv.range, book.ffn.range) == (fresh.parity, fresh.kv.range, fresh.ffn.range)
        for name in ranges_of(host):
            mapped = set(rig.mapped(worker, name).tolist())
            assert mapped == expected.get(name, set()), f"pages of {name} on worker {worker}"
            if name != "resident":
                everything = np.arange(ranges_of(host)[name])
                assert mapped == set(np.flatnonzero(fresh.counts[name].is_mapped(everything)).tolist())
        rig.check(worker)

    def empty(self) -> None:
        """Releases everything in random order: the counts of a worker must come out even."""
        kept = {}
        for group in self.groups:
            uids = self.rng.sample(sorted(group.blocks), len(group.blocks))
            kept[id(group)] = uids[len(uids) // 2 :]
            self.release(group, uids[: len(uids) // 2])
        self.check()
        for group in self.groups:
            self.release(group, kept[id(group)])
            for worker in group.members:
                assert self.rig.books[worker].kv_pages == 0

"""A world of workers whose memory holds stamps (transform.content): instances that merge and split, and what must be where."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
from transform.content import ffn_span, kv_elements, kv_stamps
from transform.rigs import ModelRig

from gyges.kv_cache.blocks import BlockAllocator
from gyges.parallel.sharding import ParallelLayout
from gyges.transform.books import WorkerBook, ranges_of
from gyges.transform.host import HostShape
from gyges.transform.ops import AnyOp
from gyges.transform.plan import Moves, Plan, Planner, WorkerTotals, back_ids, join_of, make_plan, totals_of
from gyges.transform.shape import Transformation, merge, split


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

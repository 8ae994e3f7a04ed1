"""From what is held to a program that transforms it: pure, torch-free. The engine runs it, the simulator prices it.

A plan never holds more pages than a device has. In one stop (the overlap off) KV blocks move in *rounds*: as many source
groups as the free pages of every worker allow are copied, all workers wait for each other, the sources are given up:

    free pages   | round 1: Transfer |  Barrier  | Release |  more free pages  | round 2: Transfer | Barrier | Release | ...

Merges release FFN weights first, which makes room for KV; splits gather FFN weights last, when the KV cache has shrunk.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from gyges.errors import EngineError
from gyges.kv_cache.blocks import BlockAllocator
from gyges.transform.books import WorkerBook
from gyges.transform.host import HostShape
from gyges.transform.interpreter import Interpreter
from gyges.transform.ops import FFN, AnyOp, Barrier, FFNRelease, Join, Release, Settle, Transfer, pack_ids
from gyges.transform.shape import Transformation


class PlanImpossible(EngineError):  # noqa: N818 - reads as what happened
    """The blocks in use do not fit what is asked for; nothing was changed."""


@dataclass(frozen=True)
class Moves:
    """The blocks of one narrow instance's requests: ``src`` front ids and ``dst`` back ids, int64 [n], n-th to n-th."""

    narrow: int
    src: np.ndarray
    dst: np.ndarray


@dataclass(slots=True)
class WorkerTotals:
    """What a program does on one worker. Bytes copied from peers and from own pages; descriptors: contiguous copies."""

    kv_peer_bytes: int = 0
    kv_local_bytes: int = 0
    weights_peer_bytes: int = 0
    weights_local_bytes: int = 0
    kv_descriptors: int = 0
    weights_descriptors: int = 0
    mapped_pages: int = 0
    unmapped_pages: int = 0
    start_pages: int = 0
    peak_pages: int = 0
    end_pages: int = 0


@dataclass
class Plan:
    """``ops``: the program, the same for all workers.   ``totals``: by worker."""

    shape: Transformation
    ops: list[AnyOp]
    totals: dict[int, WorkerTotals] = field(default_factory=dict)

    @property
    def rounds(self) -> int:
        return sum(isinstance(a, Transfer) and isinstance(b, Barrier) for a, b in pairwise(self.ops))

    @property
    def bytes_moved(self) -> int:
        """Between devices."""
        return sum(t.kv_peer_bytes + t.weights_peer_bytes for t in self.totals.values())

    @property
    def descriptors(self) -> int:
        return sum(t.kv_descriptors + t.weights_descriptors for t in self.totals.values())

    @property
    def peak_extra_pages(self) -> int:
        """Pages beyond the larger of before and after, on the worker that needs most."""
        return max(t.peak_pages - max(t.start_pages, t.end_pages) for t in self.totals.values())


@dataclass
class BackIds:
    """``ids``: by narrow instance, int64 [n].   ghosts: front ids that were not kept but lie in a group that a back allocator
    took over; it counts them as held until :meth:`forget` says that nobody reads them any more.   abandoned: front groups
    that nobody took over; their ids are free again once the transformation is over."""

    ids: list[np.ndarray]
    ghosts: dict[int, BlockAllocator] = field(default_factory=dict)
    abandoned: list[int] = field(default_factory=list)

    def lock(self, front: Sequence[np.ndarray], kept: Sequence[np.ndarray], target: Sequence[BlockAllocator]) -> None:
        """``front`` ids, whether they were ``kept``, and the back allocator, by narrow instance."""
        per_group = target[0].blocks_per_group
        owner = {
            int(group): allocator
            for ids, keep, allocator in zip(front, kept, target, strict=True)
            for group in np.unique(ids[keep] // per_group)
        }
        abandoned = set()
        for ids, keep in zip(front, kept, strict=True):
            for block in ids[~keep].tolist():
                allocator = owner.get(block // per_group)
                if allocator is None:
                    abandoned.add(block // per_group)
                else:
                    allocator.adopt([block])
                    self.ghosts[block] = allocator
        self.abandoned = sorted(abandoned)

    def forget(self, blocks: Iterable[int]) -> None:
        """Front blocks that have been given up."""
        for block in blocks:
            allocator = self.ghosts.pop(block, None)
            if allocator is not None:
                allocator.release([block])


def back_ids(
    shape: Transformation,
    host: HostShape,
    live: Sequence[Sequence[int]],
    allocators: Sequence[BlockAllocator],
    *,
    as_a_stop_moves: bool = True,
) -> BackIds:
    """Back ids for the live blocks (front ids) of each narrow instance, taken from ``allocators`` (one for a merge, one per
    narrow instance for a split).

    Where addresses do not depend on the degree, ids are kept; but a group that two instances of a split would share stays with
    the one that has most of it, and the blocks of the other are renamed, as are those of the emptiest groups where there are
    more groups than the instance may hold. Elsewhere all are new: that is compaction. New ids are dense, in groups of their
    own, and dealt in the order in which a stop moves the blocks, so that these groups fill one after the other; or else in the
    order given. Raises PlanImpossible (and takes nothing) if an instance cannot hold its blocks.
    """
    narrow, src = _flat(live)
    home = np.array(_homes(shape))[narrow]
    for index, allocator in enumerate(allocators):
        count = int((home == index).sum())
        if count > allocator.total:
            raise PlanImpossible(f"{count} blocks in use do not fit {allocator.total}")
    keep = _kept(home, src, allocators) if host.same_addresses else np.zeros(len(src), bool)
    order = _moving_order(shape, host, narrow, src, keep)[0] if as_a_stop_moves else np.arange(len(src))
    dst = src.copy()
    for index, allocator in enumerate(allocators):
        renamed = order[(~keep & (home == index))[order]]
        fresh = allocator.allocate(len(renamed))
        assert fresh is not None, "what does not fit was refused"
        dst[renamed] = fresh
        allocator.adopt(src[keep & (home == index)].tolist())
    result = BackIds(_by_narrow(dst, live))
    if host.same_addresses:
        result.lock(_by_narrow(src, live), _by_narrow(keep, live), [allocators[h] for h in _homes(shape)])
    return result


def _homes(shape: Transformation) -> list[int]:
    """Which back instance, of which there is one after a merge, has the blocks of each narrow one."""
    return [0 if shape.kind == "merge" else index for index in range(len(shape.narrow))]


def _flat(live: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """(narrow instance, id) of every block."""
    narrow = np.repeat(np.arange(len(live)), [len(blocks) for blocks in live])
    return narrow, np.concatenate([np.asarray(blocks, np.int64) for blocks in live])


def _by_narrow(values: np.ndarray, live: Sequence[Sequence[int]]) -> list[np.ndarray]:
    return np.split(values, np.cumsum([len(blocks) for blocks in live])[:-1])


def _kept(home: np.ndarray, src: np.ndarray, allocators: Sequence[BlockAllocator]) -> np.ndarray:
    """bool [blocks]: which keep their ids. A group goes to the home that has most of it. A home keeps its fullest groups, as
    many as leave room for the rest in groups of their own: to fill the holes would map the pages of many groups too early."""
    per_group = allocators[0].blocks_per_group
    groups, where = np.unique(src // per_group, return_inverse=True)
    counts = np.zeros((len(allocators), len(groups)), np.int64)
    np.add.at(counts, (home, where), 1)
    owner = counts.argmax(axis=0)
    kept = np.zeros(len(groups), bool)
    for index, allocator in enumerate(allocators):
        own = np.flatnonzero(owner == index)
        own = own[np.argsort(-counts[index, own], kind="stable")]
        renamed = counts[index].sum() - np.cumsum(counts[index, own])
        fits = np.arange(1, len(own) + 1) + -(-renamed // per_group) <= allocator.max_groups
        kept[own[fits]] = True
    keep: np.ndarray = kept[where] & (owner[where] == home)
    return keep


class Planner:
    """Composes a program operation by operation, keeping the books of every worker so that each one fits."""

    def __init__(self, host: HostShape, shape: Transformation, books: dict[int, WorkerBook], join: Join) -> None:
        self.host, self.shape = host, shape
        self.ops: list[AnyOp] = []
        self.interpreters = {w: Interpreter(books[w], copies=False) for w in shape.wide}
        # What a stop may take beyond the pages it began with; more at once would be hardly faster.
        self.extra_pages = max(host.reserve_pages, host.device_pages // 32)
        self.headroom: dict[int, int] = {}  # by worker, pages that must stay free
        # What a split's FFN weights will take at the end, its KV cache may take before.
        self.start_pages = {
            w: books[w].mapped_pages
            + max(0, host.weight_pages(shape.back_layout(w).degree) - host.weight_pages(shape.front_layout(w).degree))
            for w in shape.wide
        }
        self.emit(join)

    def emit(self, op: AnyOp) -> None:
        self.ops.append(op)
        for interpreter in self.interpreters.values():
            effect = interpreter.apply(op)
            assert effect.unmap or interpreter.book.free_pages >= 0, f"{type(op).__name__} exceeds the device"

    def save(self) -> tuple[list[AnyOp], dict[int, Interpreter]]:
        """What :meth:`restore` goes back to."""
        return list(self.ops), {w: interpreter.copy() for w, interpreter in self.interpreters.items()}

    def restore(self, saved: tuple[list[AnyOp], dict[int, Interpreter]]) -> None:
        self.ops, self.interpreters = saved

    def take(self) -> list[AnyOp]:
        """The operations since the last call."""
        ops, self.ops = self.ops, []
        return ops

    # -- FFN ----------------------------------------------------------------------------------------------------------

    @property
    def reads_peers_for_ffn(self) -> bool:
        return any(peer != worker for worker in self.shape.wide for _, peer in self.shape.ffn_sources(worker))

    def ffn_layers_that_fit(self, first: int, most: int) -> int:
        """How many layers from ``first`` on, at most ``most``, can be brought to the back now."""
        for count in range(most, 0, -1):
            layers = range(first, first + count)
            if all(
                i.book.ffn_back is not None and i.book.ffn_back.would_map(layers) <= i.book.free_pages
                for i in self.interpreters.values()
            ):
                return count
        return 0

    def ffn_stage(self, first: int = 0) -> None:
        """All layers from ``first`` on, at once or as many at a time as fit."""
        layers = self.host.model.num_layers
        while first < layers:
            count = self.ffn_layers_that_fit(first, layers - first)
            if not count:
                raise PlanImpossible(f"no room for the FFN weights of layer {first}")
            self.emit(FFN(first, first + count))
            if self.reads_peers_for_ffn:
                self.emit(Barrier())
            self.emit(FFNRelease(first, first + count))
            first += count

    # -- KV -----------------------------------------------------------------------------------------------------------

    def room(self, worker: int) -> int:
        """Pages that this worker may map now without taking more than its share beyond what it began with."""
        book = self.interpreters[worker].book
        return min(book.free_pages, max(0, self.start_pages[worker] + self.extra_pages - book.mapped_pages))

    def fits(self, moves: Sequence[Moves], *, sparing: bool = False) -> bool:
        """Whether the pages that these moves map are free on every worker; ``sparing``: within :meth:`room`."""
        for interpreter in self.interpreters.values():
            wanted = [m.dst for m in moves if interpreter.side(m.narrow, back=True) is not None]
            side = interpreter.book.kv_back
            room = interpreter.book.free_pages - self.headroom.get(interpreter.book.worker, 0)
            if sparing:
                room = min(room, self.room(interpreter.book.worker))
            if wanted and side is not None and side.would_map(np.concatenate(wanted)) > room:
                return False
        return True

    def transfer(self, moves: Moves) -> None:
        self.emit(Transfer(moves.narrow, pack_ids(moves.src), pack_ids(moves.dst)))

    def release(self, narrow: int, ids: np.ndarray, *, back: bool = False) -> None:
        self.emit(Release(narrow, pack_ids(ids), back))

    def kv_stage(self, moves: Sequence[Moves]) -> None:
        """Everything, in rounds of whole source groups."""
        moves = [each for each in moves if len(each.src)]
        if not moves:
            return
        units = _Units.of(self.shape, self.host, moves)
        at = 0
        while at < len(units):
            if not self.fits(units.moves(at, at + 1)):
                units = self._another_first(units, at)
            count = self._round(units, at)
            batch = units.moves(at, at + count)
            for each in batch:
                self.transfer(each)
            self.emit(Barrier())
            for each in batch:
                self.release(each.narrow, each.src)
            at += count

    def _round(self, units: _Units, at: int) -> int:
        """How many units from ``at`` on fit at once: guessed from the average, then made smaller until it is true."""
        rest = units.moves(at, len(units))
        share = 1.0
        for interpreter in self.interpreters.values():
            side = interpreter.book.kv_back
            wanted = [m.dst for m in rest if interpreter.side(m.narrow, back=True) is not None]
            need = side.would_map(np.concatenate(wanted)) if wanted and side is not None else 0
            if need:
                share = min(share, self.room(interpreter.book.worker) / need)
        count = max(1, int((len(units) - at) * share))
        while count > 1 and not self.fits(units.moves(at, at + count), sparing=True):
            count = max(1, count * 3 // 4)
        return count

    def _another_first(self, units: _Units, at: int) -> _Units:
        """The unit at ``at`` does not fit: the next that does goes before it, and makes room."""
        for index in range(at + 1, len(units)):
            if self.fits(units.moves(index, index + 1)):
                return units.with_first(at, index)
        raise PlanImpossible("no room to move a single group of KV blocks")


def _moving_order(
    shape: Transformation, host: HostShape, narrow: np.ndarray, src: np.ndarray, kept: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """In which order a stop moves blocks ([n] indices), and where each unit begins in it ([units + 1]).

    A unit is the blocks of one front group: its pages are free only when all have gone. Narrow instances take turns, so that
    no worker's back grows while its front does not shrink. So do ``kept`` blocks (bool) and others, which fill the holes that
    the kept ones leave in their groups. Emptier groups go first: they free most for what they take.
    """
    per_group = [host.kv_geometry(len(shape.front_members(n))).blocks_per_group for n in range(len(shape.narrow))]
    group = src // np.array(per_group)[narrow]
    owner = narrow if shape.kind == "merge" else np.zeros_like(narrow)
    which = owner * (group.max(initial=0) + 1) + group
    _, unit, size = np.unique(which, return_inverse=True, return_counts=True)
    progress = np.zeros(len(src))
    stream = 2 * narrow + kept
    for each in np.unique(stream):
        own = np.flatnonzero(stream == each)
        own = own[np.lexsort((unit[own], size[unit[own]]))]
        turn = np.cumsum(np.diff(unit[own], prepend=-1) != 0) - 1
        progress[own] = turn / (turn[-1] + 1)
    turns = np.bincount(unit, progress, len(size)) / np.maximum(1, size)
    order = np.lexsort((src, narrow, unit, turns[unit]))
    new = np.diff(unit[order], prepend=-1) != 0
    return order, np.append(np.flatnonzero(new), len(src))


@dataclass(frozen=True)
class _Units:
    """What must move together, in the order in which it moves.

    narrow, src, dst: int64 [n].   starts: int64 [units + 1], where each unit begins in them.
    """

    narrow: np.ndarray
    src: np.ndarray
    dst: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, shape: Transformation, host: HostShape, moves: Sequence[Moves]) -> _Units:
        narrow = np.concatenate([np.full(len(m.src), m.narrow) for m in moves])
        src, dst = (np.concatenate([getattr(m, name) for m in moves]) for name in ("src", "dst"))
        order, starts = _moving_order(shape, host, narrow, src, (src == dst) & host.same_addresses)
        return cls(narrow[order], src[order], dst[order], starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def with_first(self, at: int, index: int) -> _Units:
        """The unit ``index`` taken out and put in at ``at``."""
        a, b, c = self.starts[[at, index, index + 1]]
        order = np.r_[:a, b:c, a:b, c : len(self.src)]
        lengths = np.insert(np.delete(np.diff(self.starts), index), at, c - b)
        starts = np.append(0, np.cumsum(lengths))
        return _Units(self.narrow[order], self.src[order], self.dst[order], starts)

    def moves(self, first: int, stop: int) -> list[Moves]:
        part = slice(self.starts[first], self.starts[stop])
        narrow, src, dst = self.narrow[part], self.src[part], self.dst[part]
        return [Moves(int(n), src[narrow == n], dst[narrow == n]) for n in np.unique(narrow)]


def stop_program(
    host: HostShape,
    shape: Transformation,
    books: dict[int, WorkerBook],
    moves: Sequence[Moves],
    join: Join,
    switches: Sequence[AnyOp] = (),
) -> list[AnyOp]:
    """Everything at once (the overlap off). ``books`` follow along and are those of afterwards when it returns."""
    planner = Planner(host, shape, books, join)
    if shape.kind == "merge":
        planner.ffn_stage()
    planner.kv_stage(moves)
    if shape.kind == "split":
        planner.ffn_stage()
    planner.ops += switches
    planner.emit(Settle())
    return planner.take()


def join_of(shape: Transformation, books: dict[int, WorkerBook], homes: Iterable[tuple[int, int]] = ()) -> Join:
    return Join(
        shape.kind,
        shape.wide,
        shape.narrow,
        (shape.shards.kv, shape.shards.ffn),
        tuple(books[w].parity for w in shape.wide),
        list(homes),
    )


def make_plan(host: HostShape, shape: Transformation, books: dict[int, WorkerBook], moves: Sequence[Moves]) -> Plan:
    """The one-stop program with its totals; ``books`` stay as they are. Raises PlanImpossible."""
    ops = stop_program(host, shape, {w: books[w].copy() for w in shape.wide}, moves, join_of(shape, books))
    return Plan(shape, ops, totals_of(ops, {w: books[w].copy() for w in shape.wide}))


def totals_of(ops: Sequence[AnyOp], books: dict[int, WorkerBook]) -> dict[int, WorkerTotals]:
    """Adds up a program's effects on every worker; ``books`` follow along."""
    totals = {}
    for worker, book in books.items():
        total = WorkerTotals(start_pages=book.mapped_pages, peak_pages=book.mapped_pages)
        interpreter = Interpreter(book)
        for op in ops:
            before = book.mapped_pages
            effect = interpreter.apply(op)
            mapped = sum(len(move.slots) for move in effect.map)
            total.mapped_pages += mapped
            total.unmapped_pages += sum(len(move.slots) for move in effect.unmap)
            total.peak_pages = max(total.peak_pages, before + mapped)
            for batch in effect.copies:
                origin = "local" if batch.worker == worker else "peer"
                name = f"{effect.part}_{origin}_bytes"
                setattr(total, name, getattr(total, name) + batch.bytes)
                name = f"{effect.part}_descriptors"
                setattr(total, name, getattr(total, name) + batch.descriptors)
        total.end_pages = book.mapped_pages
        totals[worker] = total
    return totals

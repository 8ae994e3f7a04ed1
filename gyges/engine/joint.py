"""An instance in the middle of an overlapped transformation, as the controller holds it: who lies where, and what moves next.

A sequence has front blocks and back blocks, n-th to n-th, until it is *switched*; from then on back blocks alone. Full blocks
never change again, so they are copied ahead of the switch, a bounded number per step; the switch copies what is left. Where
addresses are the same at every degree, front and back ids are mostly equal, and only what a worker lacks is copied.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from gyges.kv_cache.blocks import BlockAllocator, GroupIds
from gyges.scheduling.batching import Sequence as Seq
from gyges.transform.books import KVSide
from gyges.transform.host import HostShape
from gyges.transform.ops import FFN, AnyOp, FFNRelease, Settle, Switch, pack_ids
from gyges.transform.plan import Moves, PlanImpossible, Planner, back_ids
from gyges.transform.shape import Transformation


@dataclass(slots=True)
class Spot:
    """Where a sequence lies. ``copied``: leading blocks that the back has already."""

    narrow: int
    front: list[int] = field(default_factory=list)
    back: list[int] = field(default_factory=list)
    copied: int = 0
    switched: bool = False


class JointBlocks:
    """A batcher's block source during a transformation (gyges.scheduling.batching.BlockSource).

    ``front``: allocators that are given up, one for a split, one per narrow instance for a merge.   ``homes``: the running
    sequences with their narrow instance; their blocks get back ids here, ``in_rounds`` for one stop.
    Raises PlanImpossible if these do not fit.
    """

    def __init__(
        self,
        host: HostShape,
        shape: Transformation,
        host_ids: GroupIds,
        front: Sequence[BlockAllocator],
        homes: dict[Seq, int],
        *,
        in_rounds: bool = False,
    ) -> None:
        self.host, self.shape, self.front = host, shape, list(front)
        self._host_ids = host_ids
        self.planner: Planner | None = None
        degrees = [len(shape.wide)] if shape.kind == "merge" else [len(members) for members in shape.narrow]
        self.back = [host.allocator(degree, host_ids) for degree in degrees]
        live: list[list[int]] = [[] for _ in shape.narrow]
        for sequence, narrow in homes.items():
            live[narrow] += sequence.blocks
        self._ids = back_ids(shape, host, live, self.back, as_a_stop_moves=in_rounds)
        ids = [each.tolist() for each in self._ids.ids]
        self.spots: dict[Seq, Spot] = {}
        for sequence, narrow in homes.items():
            count = len(sequence.blocks)
            self.spots[sequence] = Spot(narrow, list(sequence.blocks), ids[narrow][:count])
            del ids[narrow][:count]

    def _back(self, narrow: int) -> BlockAllocator:
        return self.back[0 if self.shape.kind == "merge" else narrow]

    # -- BlockSource --------------------------------------------------------------------------------------------------

    @property
    def total(self) -> int:
        return max(allocator.total for allocator in self.back)

    @property
    def num_free(self) -> int:
        return sum(allocator.num_free for allocator in self.back)

    @property
    def num_held(self) -> int:
        return sum(allocator.num_held for allocator in self.back)

    def allocate(self, count: int, owner: Seq | None = None) -> list[int] | None:
        assert owner is not None, "blocks belong to a sequence"
        spot = self.spots.get(owner)
        if spot is None:
            narrow = self._home_for(owner)
            if narrow is None:
                return None
            spot = Spot(narrow, switched=True)
        back = self._back(spot.narrow).allocate(count)
        if back is None:
            return None
        front: list[int] | None = back
        if not spot.switched and not self.host.same_addresses:
            front = self._front(spot.narrow).allocate(count)
        if front is None or not self._hold(spot, back if spot.switched else front):
            if front is not None and front is not back:
                self._front(spot.narrow).release(front)
            self._back(spot.narrow).release(back)
            return None
        self.spots[owner] = spot
        spot.back += back
        if spot.switched:
            return back
        spot.front += front
        return front

    def release(self, block_ids: list[int], owner: Seq | None = None) -> None:
        assert owner is not None, "blocks belong to a sequence"
        spot = self.spots.pop(owner)
        if spot.switched:
            self._drop(spot.narrow, spot.back, back=True)
        else:
            self._drop(spot.narrow, spot.front, back=False)
            if spot.copied:
                self._planner.release(spot.narrow, np.asarray(spot.back[: spot.copied]), back=True)
            self.forget_front(spot, spot.front)
        self._back(spot.narrow).release(spot.back)

    def _front(self, narrow: int) -> BlockAllocator:
        return self.front[narrow if self.shape.kind == "merge" else 0]

    def forget_front(self, spot: Spot, ids: Iterable[int]) -> None:
        """Front ids that nothing refers to any more."""
        if self.host.same_addresses:
            self._ids.forget(ids)
        else:
            self._front(spot.narrow).release(list(ids))

    def _home_for(self, sequence: Seq) -> int | None:
        """A sequence that is admitted now starts where it will be in the end."""
        if self.shape.kind == "merge":
            return 0
        need = -(-sequence.max_length // self.host.block_size)
        fitting = [n for n, allocator in enumerate(self.back) if allocator.total >= need]
        return max(fitting, key=lambda n: (self.back[n].num_free, -n), default=None)

    # -- pages --------------------------------------------------------------------------------------------------------

    @property
    def _planner(self) -> Planner:
        assert self.planner is not None, "the join comes first"
        return self.planner

    def _sides(self, narrow: int, *, back: bool) -> list[tuple[KVSide, int]]:
        """(side, free pages) of every worker that holds such blocks."""
        found = []
        for interpreter in self._planner.interpreters.values():
            side = interpreter.side(narrow, back=back)
            if side is not None:
                found.append((side, interpreter.book.free_pages))
        return found

    def _hold(self, spot: Spot, ids: list[int]) -> bool:
        sides, blocks = self._sides(spot.narrow, back=spot.switched), np.asarray(ids, np.int64)
        if any(side.would_map(blocks) > free for side, free in sides):
            return False
        for side, _ in sides:
            side.hold(blocks)
        return True

    def _drop(self, narrow: int, ids: list[int], *, back: bool) -> None:
        if ids:
            for side, _ in self._sides(narrow, back=back):
                side.drop(np.asarray(ids, np.int64))

    def settle(self) -> None:
        """The back allocators are the instances' own from now on."""
        for group in self._ids.abandoned:
            self._host_ids.give(group)


class Joint:
    """Composes the operations of each step. ``slots``: of every running sequence. ``pages``: that a worker may move per step."""

    def __init__(self, blocks: JointBlocks, planner: Planner, slots: dict[Seq, int], pages: int) -> None:
        self.blocks, self.planner, self.slots, self.pages = blocks, planner, slots, pages
        blocks.planner = planner
        host, shape = blocks.host, blocks.shape
        self.host, self.shape = host, shape
        self._joined = False
        self._ffn_done = 0  # layers
        self.stuck = ""  # why nothing can move while others run
        self._gone: list[tuple[Spot, list[int]]] = []  # front blocks to give up once every worker has copied them
        self._ffn_read: tuple[int, int] | None = None  # layers whose front units are being read by peers
        local = len(shape.back_layout(shape.wide[0]).kv_shards)
        per_block = host.block_size * host.model.kv_bytes_per_token * local / host.shards.kv / host.page_bytes
        self.blocks_per_step = max(1, int(pages / per_block))

    @property
    def unswitched(self) -> list[Seq]:
        return [sequence for sequence, spot in self.blocks.spots.items() if not spot.switched]

    @property
    def finished(self) -> bool:
        """Whether only Settle (and giving up what was copied last) is left."""
        ffn = self._ffn_done == self.host.model.num_layers or self._ffn_at_settle
        return ffn and not self.unswitched

    @property
    def over(self) -> bool:
        """Whether the rest has to be done between two steps: it is only the end, or nothing can move while others run."""
        return self.finished or bool(self.stuck)

    @property
    def _ffn_at_settle(self) -> bool:
        """Where ranks do not nest, a split cannot go on computing while its FFN weights move."""
        return self.shape.kind == "split" and not self.shape.nested

    def begin(self) -> None:
        """What comes right after the Join, before the first common step."""
        if self.shape.kind != "merge":
            return
        if self.host.padding or not self.shape.nested:
            self.planner.ffn_stage()
            self._ffn_done = self.host.model.num_layers

    def advance(self, slots: dict[Seq, int], growing: Sequence[Seq]) -> None:
        """Gives up what the last step's copies have made superfluous, then moves up to a step's worth.

        ``growing``: sequences that need another block in this step. Where nothing can move while others run, :attr:`stuck` says
        why.
        """
        self.slots = slots
        if not self._joined:
            self._joined = True  # the first common step has enough to do with the Join
            return
        self._give_up()
        try:
            self._some(growing)
        except PlanImpossible as error:
            self.stuck = str(error)

    def _give_up(self) -> None:
        for spot, ids in self._gone:
            self.planner.release(spot.narrow, np.asarray(ids, np.int64))
            self.blocks.forget_front(spot, ids)
        self._gone = []
        if self._ffn_read:
            self.planner.emit(FFNRelease(*self._ffn_read))
            self._ffn_read = None

    def _some(self, growing: Sequence[Seq]) -> None:
        merging = self.shape.kind == "merge"
        if merging and self._ffn_done < self.host.model.num_layers:
            self._some_ffn()
        elif self.unswitched:
            self._some_kv(growing)
        elif not merging and not self._ffn_at_settle and self._ffn_done < self.host.model.num_layers:
            self._some_ffn()

    def _some_ffn(self) -> None:
        layers = self.host.model.num_layers
        total = self.host.weight_pages(min(len(m) for m in self.shape.narrow)) - self.host.resident_layout.pages
        most = max(1, self.pages * layers // max(1, total))
        first = self._ffn_done
        count = self.planner.ffn_layers_that_fit(first, min(most, layers - first))
        if not count:
            raise PlanImpossible("no room for FFN weights while requests run")
        self.planner.emit(FFN(first, first + count))
        self._ffn_done += count
        self._ffn_read = (first, first + count)

    def _some_kv(self, growing: Sequence[Seq]) -> None:
        # A merge gives every worker a part of every block; a split gives each narrow instance blocks of its own.
        shares = 1 if self.shape.kind == "merge" else len(self.shape.narrow)
        budgets = [self.blocks_per_step] * shares
        # Copies ahead take no page that a sequence may need: it would have to be computed anew.
        reserve = self.host.reserve_pages
        self.planner.headroom = {w: reserve + pages for w, pages in self._growth(self.blocks.spots).items()}
        if self._spend(budgets, sparing=True) or self._spend(budgets, sparing=False):
            return
        self.planner.headroom = self._growth(growing)
        self._swap()

    def _growth(self, sequences: Iterable[Seq]) -> dict[int, int]:
        """Pages that each worker maps, at most, when each of these sequences takes one more block."""
        spots = self.blocks.spots
        lying = Counter((spots[s].narrow, spots[s].switched) for s in sequences if s in spots)
        pages = dict.fromkeys(self.shape.wide, 0)
        for (narrow, switched), count in lying.items():
            members = self.shape.back_members(narrow) if switched else self.shape.front_members(narrow)
            unit = self.host.kv_geometry(len(members))
            for worker in members:
                pages[worker] += -(-count // unit.blocks_per_group) * unit.pages_per_group
        return pages

    def _swap(self) -> None:
        """There is no room for the copy of a sequence beside it: one sequence of every narrow instance changes over at once, in
        rounds, before the step computes. Raises PlanImpossible (and moves nothing) where not even that is possible."""
        chosen: dict[int, Seq] = {}
        for sequence in sorted(self.unswitched, key=self._urgency):
            chosen.setdefault(self.blocks.spots[sequence].narrow, sequence)
        saved = self.planner.save()
        try:
            self._exchange(list(chosen.values()))
        except PlanImpossible:
            self.planner.restore(saved)
            raise

    def _spend(self, budgets: list[int], *, sparing: bool) -> bool:
        """Copies blocks, and switches what is whole, as far as the budgets go; whether anything moved."""
        moved = False
        left = set(self.unswitched)
        spots = self.blocks.spots
        while left:
            sequence = min(left, key=self._urgency)
            left.remove(sequence)
            spot = spots[sequence]
            share = spot.narrow if len(budgets) > 1 else 0
            budget, rest = budgets[share], len(spot.front) - spot.copied
            if not budget and rest:
                continue
            # Blocks that are still being written, all to come of a prompt that is computed in chunks, go with the switch: either
            # everything is copied now, or no more than what never changes again.
            full = max(0, sequence.computed // self.host.block_size - spot.copied)
            whole = rest <= budget and self._fits(spot, rest, sparing=sparing)
            count = self._copy(spot, rest if whole else min(budget, full), sparing=sparing)
            if count == rest:
                self._switch(sequence, spot)
            budgets[share] -= count
            moved |= bool(count) or spot.switched
        return moved

    def _urgency(self, sequence: Seq) -> tuple[bool, int, int, int]:
        """What is begun comes first; then those who lie where pages are scarcest; then the shortest, which gives back soonest."""
        spot = self.blocks.spots[sequence]
        books = self.planner.interpreters
        free = min(books[worker].book.free_pages for worker in self.shape.front_members(spot.narrow))
        return (not spot.copied, free, len(spot.front), sequence.order)

    def _copy(self, spot: Spot, want: int, *, sparing: bool) -> int:
        """Copies the next ``want`` blocks, or as many as there is room for."""
        while want and not self._fits(spot, want, sparing=sparing):
            want //= 2
        if want:
            self.planner.transfer(self._next_blocks(spot, want))
            spot.copied += want
        return want

    @staticmethod
    def _next_blocks(spot: Spot, count: int) -> Moves:
        part = slice(spot.copied, spot.copied + count)
        return Moves(spot.narrow, np.asarray(spot.front[part]), np.asarray(spot.back[part]))

    def _fits(self, spot: Spot, count: int, *, sparing: bool) -> bool:
        return not count or self.planner.fits([self._next_blocks(spot, count)], sparing=sparing)

    def _switch(self, sequence: Seq, spot: Spot) -> None:
        self.planner.ops.append(Switch(self.slots[sequence], spot.narrow, pack_ids(spot.back)))
        self._gone.append((spot, spot.front))
        spot.switched, spot.front, spot.copied = True, [], 0
        sequence.blocks = list(spot.back)

    def settle_ops(self, make_room: Callable[[], bool]) -> list[AnyOp]:
        """The end, and before it whatever is left, in one stop: nobody computes meanwhile.

        ``make_room``: takes a sequence out to be computed anew later, False if there is none; only asked where not even one group
        of blocks can be moved. Raises PlanImpossible if it is of no use.
        """
        self._give_up()
        self.planner.headroom = {}
        while True:
            saved, done = self.planner.save(), self._ffn_done
            try:
                self._exchange_rest()
                break
            except PlanImpossible:
                self.planner.restore(saved)
                self._ffn_done = done
                if not make_room():
                    raise
        self.planner.emit(Settle())
        return self.planner.take()

    def _exchange_rest(self) -> None:
        merging = self.shape.kind == "merge"
        if merging:
            self._rest_of_ffn()
        self._exchange(self.unswitched)
        if not merging:
            self._rest_of_ffn()

    def _exchange(self, sequences: Sequence[Seq]) -> None:
        """All blocks of these sequences, in rounds whose sources are given up at once, and their switches."""
        spots = [self.blocks.spots[sequence] for sequence in sequences]
        moves: list[Moves] = []
        for narrow in range(len(self.shape.narrow)):
            own = [spot for spot in spots if spot.narrow == narrow]
            copied = [b for spot in own for b in spot.front[: spot.copied]]
            if copied:
                self.planner.release(narrow, np.asarray(copied, np.int64))
            src = [b for spot in own for b in spot.front[spot.copied :]]
            dst = [b for spot in own for b in spot.back[spot.copied :]]
            if src:
                moves.append(Moves(narrow, np.asarray(src, np.int64), np.asarray(dst, np.int64)))
        if moves:
            self.planner.kv_stage(moves)
        for sequence, spot in zip(sequences, spots, strict=True):
            front = spot.front
            self._switch(sequence, spot)
            self._gone.pop()
            self.blocks.forget_front(spot, front)

    def _rest_of_ffn(self) -> None:
        if self._ffn_done < self.host.model.num_layers:
            self.planner.ffn_stage(self._ffn_done)
            self._ffn_done = self.host.model.num_layers

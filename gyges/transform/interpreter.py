"""What an operation (gyges.transform.ops) means for one worker: pages to map, copies to make, pages to unmap, in this order.

Pure and torch-free. The worker's device carries the effects out; a plan adds them up; a test follows every byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from gyges.transform.books import KVSide, Move, WorkerBook
from gyges.transform.copies import CopyBatch, kv_copies, unit_copies
from gyges.transform.ops import FFN, FFNRelease, Join, Op, Release, Settle, Transfer, unpack_ids
from gyges.transform.shape import Transformation


@dataclass(slots=True)
class Effect:
    """``part``: what it is accounted to, "kv" or "weights"."""

    part: str = "kv"
    map: list[Move] = field(default_factory=list)
    copies: list[CopyBatch] = field(default_factory=list)
    unmap: list[Move] = field(default_factory=list)


class Interpreter:
    """Follows one worker through a transformation. ``copies`` False: pages only, for who just keeps the books."""

    def __init__(self, book: WorkerBook, *, copies: bool = True) -> None:
        self.book, self.copies = book, copies
        self.shape: Transformation | None = None
        self._parity: dict[int, int] = {}

    def copy(self) -> Interpreter:
        twin = Interpreter(self.book.copy(), copies=self.copies)
        twin.shape, twin._parity = self.shape, self._parity
        return twin

    def apply(self, op: Op) -> Effect:
        """The effect on this worker; its book is up to date afterwards."""
        if isinstance(op, Join):
            self.shape = op.shape()
            self._parity = dict(zip(op.wide, op.parity, strict=True))
            self.book.begin(self.shape)
        elif isinstance(op, Transfer):
            return self._transfer(op.narrow, unpack_ids(op.src), unpack_ids(op.dst))
        elif isinstance(op, Release):
            return self._release(op)
        elif isinstance(op, FFN):
            return self._ffn(range(op.first, op.stop))
        elif isinstance(op, FFNRelease):
            return Effect("weights", unmap=[self.book.ffn.drop(range(op.first, op.stop))])
        elif isinstance(op, Settle):
            self.book.settle()
            self.shape, self._parity = None, {}
        return Effect()

    def side(self, narrow: int, *, back: bool) -> KVSide | None:
        """Where this worker keeps the blocks of a request of that narrow instance; None if it keeps none."""
        shape = self._running()
        members = shape.back_members(narrow) if back else shape.front_members(narrow)
        if self.book.worker not in members:
            return None
        return self.book.kv_back if back else self.book.kv

    def _running(self) -> Transformation:
        assert self.shape is not None, "no transformation is under way"
        return self.shape

    def _release(self, op: Release) -> Effect:
        side = self.side(op.narrow, back=op.back)
        return Effect(unmap=[side.drop(unpack_ids(op.ids))] if side else [])

    def _transfer(self, narrow: int, src: np.ndarray, dst: np.ndarray) -> Effect:
        shape, book, back = self._running(), self.book, self.side(narrow, back=True)
        if back is None:
            return Effect()
        effect = Effect(map=[back.hold(dst)])
        if not self.copies:
            return effect
        for shard, peer in shape.kv_sources(narrow, book.worker):
            a, b = src, dst
            if peer == book.worker and back.range == book.kv.range:
                moved = src != dst  # the rest is where it must be
                a, b = src[moved], dst[moved]
            if not len(a):
                continue
            front = shape.front_layout(peer)
            geometry = book.host.kv_geometry(front.degree)
            at = shard if book.host.same_addresses else shard - front.kv_shards.start
            effect.copies.append(
                kv_copies(
                    peer,
                    (book.range_name("kv", self._parity[peer]), back.range),
                    (geometry, back.geometry),
                    (at, back.local_shard(shard)),
                    a,
                    b,
                )
            )
        return effect

    def _ffn(self, layers: range) -> Effect:
        shape, book = self._running(), self.book
        back = book.ffn_back
        assert back is not None
        effect = Effect("weights", map=[back.hold(layers)])
        if not self.copies:
            return effect
        for shard, peer in shape.ffn_sources(book.worker):
            front = book.host.ffn_layout(shape.front_layout(peer))
            ranges = (book.range_name("ffn", self._parity[peer]), back.range)
            if peer == book.worker and ranges[0] == ranges[1]:
                continue
            copy = partial(unit_copies, peer, ranges, length=front.sizes[shard], page=front.page_bytes)
            parts = [copy(front.units[layer, shard], back.units.units[layer, shard]) for layer in layers]
            effect.copies.append(_one(parts))
        return effect


def _one(parts: Sequence[CopyBatch]) -> CopyBatch:
    first = parts[0]
    src, dst, lengths = (np.concatenate([getattr(p, name) for p in parts]) for name in ("src", "dst", "lengths"))
    return CopyBatch(first.worker, first.src_range, first.dst_range, src, dst, lengths)

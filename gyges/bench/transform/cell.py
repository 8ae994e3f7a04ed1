"""One combination of toggles, degree and fill, worked out before it is run: which blocks are in use, and both programs.

The same calls as the engine makes for a transformation with the overlap off: block allocators, new ids, one program.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from gyges.bench.transform.tasks import Case
from gyges.kv_cache.blocks import BlockAllocator
from gyges.transform.books import WorkerBook
from gyges.transform.host import HostShape
from gyges.transform.ops import AnyOp
from gyges.transform.plan import Moves, back_ids, join_of, stop_program
from gyges.transform.shape import Transformation, merge, split


@dataclass(frozen=True, slots=True)
class Program:
    """``blocks``: ids by narrow instance when it has been carried out; ``holders``: the workers that hold them then.
    plan_s: seconds it took to compose.
    kv_pages: that the worker with most holds before.   moved_pairs: (block, shard) pairs that change their worker."""

    kind: str
    ops: list[AnyOp]
    blocks: list[np.ndarray]
    holders: list[tuple[int, ...]]
    plan_s: float
    kv_pages: int
    moved_pairs: int


@dataclass(frozen=True, slots=True)
class Cell:
    """``blocks``: ids by narrow instance at first.   kv_bytes: of content, over all workers."""

    case: Case
    fill: float
    blocks: list[np.ndarray]
    merge: Program
    split: Program
    kv_bytes: int


def make_cell(case: Case, fill: float) -> Cell:
    """``fill``: share of a TP1 instance's KV blocks that is in use. At least one block."""
    host = case.host()
    narrow = tuple((worker,) for worker in range(case.degree))
    host_ids = host.host_ids()
    fronts = [host.allocator(1, host_ids) for _ in narrow]
    live = [front.allocate(max(1, round(front.total * fill))) for front in fronts]
    blocks = [np.array(ids, np.int64) for ids in live]
    books = {
        members[0]: WorkerBook(host, members[0], merge(narrow, host.shards).front_layout(members[0]))
        for members in narrow
    }
    for members, ids in zip(narrow, blocks, strict=True):
        books[members[0]].kv.hold(ids)
    down = _program(host, merge(narrow, host.shards), books, blocks, [host.allocator(case.degree, host_ids)])
    wide = merge(narrow, host.shards).wide
    backs = [host.allocator(1, host_ids) for _ in narrow]
    up = _program(host, split(wide, (1,) * case.degree, host.shards), books, down.blocks, backs)
    tokens = sum(len(ids) for ids in blocks) * host.block_size
    return Cell(case, fill, blocks, down, up, tokens * host.model.kv_bytes_per_token)


def _program(
    host: HostShape,
    shape: Transformation,
    books: dict[int, WorkerBook],
    blocks: list[np.ndarray],
    allocators: list[BlockAllocator],
) -> Program:
    """``books`` are those of afterwards when it returns."""
    pages = max(book.kv_pages for book in books.values())
    began = time.perf_counter()
    ids = back_ids(shape, host, [b.tolist() for b in blocks], allocators).ids
    moves = [Moves(index, src, dst) for index, (src, dst) in enumerate(zip(blocks, ids, strict=True))]
    ops = stop_program(host, shape, books, moves, join_of(shape, books))
    plan_s = time.perf_counter() - began
    pairs = sum(
        len(blocks[narrow]) * sum(peer != worker for _, peer in shape.kv_sources(narrow, worker))
        for narrow in range(len(blocks))
        for worker in shape.back_members(narrow)
    )
    holders = [shape.back_members(narrow) for narrow in range(len(blocks))]
    return Program(shape.kind, ops, ids, holders, plan_s, pages, pairs)

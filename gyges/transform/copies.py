"""Which bytes a block's KV shard is, and where it goes: runs, by arithmetic on the order of axes. Torch-free.

A *piece* is one shard of one block inside one cell (a page or a few). Its innermost axes that are contiguous on both sides form
one run; the axes left outside of it are loops.

    shard-pages     piece = layer head kv token dim       one run, the whole piece
    header-centric  piece = head kv token dim  (a layer)  one run; runs of neighbouring blocks join
    page-friendly   piece = kv token [head dim]           loops over kv and token, runs of head x dim
    token-first     piece = token [head dim] (layer, kv)  loop over token, runs of head x dim
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import gcd, prod

import numpy as np

from gyges.kv_cache.layouts import KVGeometry

Loop = tuple[int, int, int]  # count, source stride, destination stride (bytes)


@dataclass(frozen=True, slots=True)
class CopyBatch:
    """Copies from one worker's range into another's. All offsets in bytes from the start of the range.

    src, dst: int64 [n] starts.   lengths: int64 [n] bytes of a run (all equal where there are loops).
    loops: up to two, outermost first; run j of loop values (a, b) starts at src + a x source stride + ...
    A run never crosses a page on either side.
    """

    worker: int
    src_range: str
    dst_range: str
    src: np.ndarray
    dst: np.ndarray
    lengths: np.ndarray
    loops: tuple[Loop, ...] = ()

    @property
    def descriptors(self) -> int:
        """Contiguous copies that this is."""
        return len(self.src) * prod(loop[0] for loop in self.loops)

    @property
    def bytes(self) -> int:
        return int(self.lengths.sum()) * prod(loop[0] for loop in self.loops)


@dataclass(frozen=True, slots=True)
class PieceShape:
    """How a piece is copied between two geometries of one layout, in bytes."""

    run: int
    loops: tuple[Loop, ...]


def piece_shape(src: KVGeometry, dst: KVGeometry) -> PieceShape:
    item = src.item_size
    run = item  # bytes, the innermost axis is elements
    loops: list[Loop] = []
    for axis in reversed(src.layout.in_cell):
        if axis in ("block", "shard"):
            continue
        count, a, b = src.sizes[axis], src.strides[axis] * item, dst.strides[axis] * item
        if not loops and a == b == run:
            run *= count
        elif count > 1:
            loops.append((count, a, b))
    return PieceShape(run, tuple(reversed(loops)))


def piece_starts(geometry: KVGeometry, blocks: np.ndarray, shard: int) -> np.ndarray:
    """int64 [blocks x cells], bytes: where the pieces of a shard (counted from the first local one, if packed) start."""
    strides = geometry.strides
    group, inside = np.divmod(blocks, geometry.blocks_per_group)
    base = group * strides["group"] + inside * strides["block"] + shard * strides["shard"]
    axes = [axis for axis in geometry.layout.cell_axes if axis not in ("group", "shard")]
    steps = [
        sum(i * strides[axis] for i, axis in zip(index, axes, strict=True))
        for index in product(*(range(geometry.sizes[axis]) for axis in axes))
    ]
    # Cell by cell, so that neighbouring blocks of a cell stand next to each other.
    starts: np.ndarray = (np.array(steps, np.int64)[:, None] + base).ravel() * geometry.item_size
    return starts


def kv_copies(
    worker: int,
    ranges: tuple[str, str],
    geometries: tuple[KVGeometry, KVGeometry],
    shards: tuple[int, int],
    src_blocks: np.ndarray,
    dst_blocks: np.ndarray,
) -> CopyBatch:
    """One shard of some blocks from ``worker``'s front to the back. ``shards``: its index at the front and at the back."""
    src = piece_starts(geometries[0], src_blocks, shards[0])
    dst = piece_starts(geometries[1], dst_blocks, shards[1])
    shape = piece_shape(*geometries)
    page = geometries[0].page_bytes
    if geometries[0].pages_per_cell > 1 or geometries[1].pages_per_cell > 1:
        return _joined(worker, ranges, *_cut_at_pages(src, dst, shape, page), page)
    if shape.loops:
        return CopyBatch(worker, *ranges, src, dst, np.full(len(src), shape.run, np.int64), shape.loops)
    return _joined(worker, ranges, src, dst, shape.run, page)


def _cut_at_pages(src: np.ndarray, dst: np.ndarray, shape: PieceShape, page: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Runs small enough that none crosses a page: cells start on pages, so their greatest common divisor will do."""
    unit = gcd(shape.run, page)
    a, b = [np.arange(0, shape.run, unit)] * 2
    for count, x, y in reversed(shape.loops):
        steps = np.arange(count)[:, None]
        a, b = (steps * x + a).ravel(), (steps * y + b).ravel()
    return (src[:, None] + a).ravel(), (dst[:, None] + b).ravel(), unit


def _joined(worker: int, ranges: tuple[str, str], src: np.ndarray, dst: np.ndarray, run: int, page: int) -> CopyBatch:
    """Runs that follow each other on both sides become one, up to the end of the page."""
    if not len(src):
        return CopyBatch(worker, *ranges, src, dst, np.empty(0, np.int64))
    ends = (np.diff(src) != run) | (np.diff(dst) != run) | (src[1:] % page == 0) | (dst[1:] % page == 0)
    starts = np.concatenate([[0], np.flatnonzero(ends) + 1])
    lengths = np.diff(np.append(starts, len(src))) * run
    return CopyBatch(worker, *ranges, src[starts], dst[starts], lengths)


def unit_copies(worker: int, ranges: tuple[str, str], src: int, dst: int, length: int, page: int) -> CopyBatch:
    """One contiguous stretch of bytes, cut where either side's page ends."""
    cuts = {0, length}
    cuts.update(range(-src % page, length, page), range(-dst % page, length, page))
    edges = np.array(sorted(cuts), np.int64)
    return CopyBatch(worker, *ranges, src + edges[:-1], dst + edges[:-1], np.diff(edges))

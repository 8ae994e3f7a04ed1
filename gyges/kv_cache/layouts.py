"""KV layouts: an order of axes, nothing else (docs/architecture.md, "Memory").

The axes of the KV cache are ``layer, block, shard, head, kv, token, dim``. A layout splits them in two: the axes that
select a *cell* (a whole number of pages, usually one) and the order inside a cell. Consecutive blocks may share a cell:
``group`` is the block id divided by the number of blocks per cell, ``block`` the remainder.

    address(layer, block, shard, head, kv, token, dim), in elements from the start of the KV address range

      |<-------------------- one cell = pages_per_cell pages -------------------->|
      | block 0 of the group | block 1 of the group | ... | unused tail of the page |
      '-- in_cell axes, row-major --'

    address = sum over cell axes (index x stride)  +  sum over in_cell axes (index x stride)

Where a shard owns whole pages, ``shard`` comes before ``group``: addresses cost nothing, and so the pages of one shard of
neighbouring blocks, which a merge or a split moves together, are neighbours too (one mmap call for all).

So every address is a sum of one term per axis, attention kernels take these strides, and one kernel serves every layout.
Torch-free; all sizes in elements or tokens unless a name says bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from operator import mul

import numpy as np

from gyges.core import ModelGeometry
from gyges.errors import UserError
from gyges.registry import Registry


@dataclass(frozen=True, slots=True)
class KVLayout:
    """``cell_axes`` select a cell, outermost first; ``in_cell`` is the order inside it (``dim`` is always innermost)."""

    name: str
    cell_axes: tuple[str, ...]
    in_cell: tuple[str, ...]
    description: str

    @property
    def shards_leave_whole(self) -> bool:
        """Whether a shard owns whole pages, so that a merge can give them back without compaction."""
        return "shard" in self.cell_axes


LAYOUTS: Registry[KVLayout] = Registry("KV layout")


def _layout(name: str, cell_axes: str, in_cell: str, description: str) -> KVLayout:
    return LAYOUTS.add(name, KVLayout(name, tuple(cell_axes.split()), tuple(in_cell.split()), description))


_layout("token-first", "layer kv group", "block token shard head dim", "what stock engines use")
_layout("page-friendly", "layer group", "block kv token shard head dim", "K and V of a block share pages")
_layout("header-centric", "layer shard group", "block head kv token dim", "the paper's: a shard's pages leave whole")
_layout("shard-pages", "shard group", "block layer head kv token dim", "a page is one shard of one block, all layers")

DEFAULT_BLOCK_SIZE = 16
MIN_SHARD_PAGES_BLOCK = 8


def choose_page_bytes(geometry: ModelGeometry, num_shards: int) -> int:
    """The page of a CPU device when the user leaves it open, the same for every layout, so that they compare fairly.

    The smallest power of two from 16 KiB to 2 MiB in which a `shard-pages` block has at least 16 tokens.
    """
    need = DEFAULT_BLOCK_SIZE * geometry.kv_bytes_per_token // num_shards
    page = 16 * 1024
    while page < need and page < 2 * 1024 * 1024:
        page *= 2
    return page


def choose_block_size(layout: KVLayout, geometry: ModelGeometry, num_shards: int, page_bytes: int) -> int:
    """Tokens per block when the user leaves it open.

    `shard-pages`: as many tokens as fill one page with one shard of all layers,
    ``page_bytes // (layers x heads per shard x 2 x head_dim x item size)``; others: 16.
    """
    if layout.name != "shard-pages":
        return DEFAULT_BLOCK_SIZE
    return max(page_bytes // (geometry.kv_bytes_per_token // num_shards), MIN_SHARD_PAGES_BLOCK)


@dataclass(frozen=True, slots=True)
class KVGeometry:
    """A layout made concrete: strides (elements) and pages for one model, one shard count, one number of local shards.

    ``local_shards`` is how many shards the worker holds. Where a shard owns whole pages the addresses do not depend on
    it; where shards share a page (token-first, page-friendly) the local shards are packed, so they do.
    ``num_groups`` bounds group ids; the address range spans all of them, mapped or not.
    """

    layout: KVLayout
    block_size: int
    num_shards: int
    local_shards: int
    heads_per_shard: int
    num_groups: int
    page_bytes: int
    item_size: int
    sizes: dict[str, int]
    blocks_per_group: int
    pages_per_cell: int
    strides: dict[str, int]

    @classmethod
    def build(
        cls,
        layout: KVLayout,
        geometry: ModelGeometry,
        *,
        block_size: int,
        num_shards: int,
        local_shards: int,
        num_blocks: int,
        page_bytes: int,
    ) -> KVGeometry:
        """num_blocks: block ids are below this. Raises ValueError if a page cannot hold whole elements."""
        if page_bytes % geometry.item_size:
            raise UserError(f"page_bytes {page_bytes} is not a multiple of the element size {geometry.item_size}")
        heads_per_shard = geometry.num_kv_heads // num_shards
        addressed_shards = num_shards if layout.shards_leave_whole else local_shards
        sizes = {
            "layer": geometry.num_layers,
            "kv": 2,
            "shard": addressed_shards,
            "head": heads_per_shard,
            "token": block_size,
            "dim": geometry.head_dim,
        }
        page_elements = page_bytes // geometry.item_size
        per_block = 1
        for axis in layout.in_cell:
            per_block *= sizes.get(axis, 1)
        blocks_per_group = max(1, page_elements // per_block)
        pages_per_cell = -(-per_block * blocks_per_group // page_elements)
        num_groups = -(-num_blocks // blocks_per_group)
        sizes |= {"block": blocks_per_group, "group": num_groups}

        strides: dict[str, int] = {}
        step = 1
        for axis in reversed(layout.in_cell):
            strides[axis] = step
            step *= sizes[axis]
        step = pages_per_cell * page_elements
        for axis in reversed(layout.cell_axes):
            strides[axis] = step
            step *= sizes[axis]
        return cls(
            layout=layout,
            block_size=block_size,
            num_shards=num_shards,
            local_shards=local_shards,
            heads_per_shard=heads_per_shard,
            num_groups=num_groups,
            page_bytes=page_bytes,
            item_size=geometry.item_size,
            sizes=sizes,
            blocks_per_group=blocks_per_group,
            pages_per_cell=pages_per_cell,
            strides=strides,
        )

    @property
    def page_elements(self) -> int:
        return self.page_bytes // self.item_size

    @property
    def range_pages(self) -> int:
        """Length of the address range in pages, were everything mapped."""
        cells = 1
        for axis in self.layout.cell_axes:
            cells *= self.sizes[axis]
        return cells * self.pages_per_cell

    @property
    def pages_per_group(self) -> int:
        """Physical pages that one worker maps to hold its local shards of one block group."""
        cells = 1
        for axis in self.layout.cell_axes:
            if axis == "shard":
                cells *= self.local_shards
            elif axis != "group":
                cells *= self.sizes[axis]
        return cells * self.pages_per_cell

    def group_pages(self, groups: Sequence[int] | np.ndarray, shards: Iterable[int]) -> np.ndarray:
        """int64 [groups, pages]: indices in the address range of these groups' pages for some shards (all, if packed)."""
        axes = [a for a in self.layout.cell_axes if a != "group"]
        choices = [list(shards) if axis == "shard" else range(self.sizes[axis]) for axis in axes]
        steps = [self.strides[axis] for axis in axes]
        inside = np.array([sum(map(mul, index, steps)) for index in product(*choices)], np.int64)
        starts = (np.asarray(groups, np.int64)[:, None] * self.strides["group"] + inside) // self.page_elements
        pages = starts[:, :, None] + np.arange(self.pages_per_cell)
        return pages.reshape(len(starts), starts.shape[1] * self.pages_per_cell)

    def block_offset(self, block: int) -> int:
        """Element offset of block id ``block``: the group term plus the block-in-group term."""
        group, inside = divmod(block, self.blocks_per_group)
        return group * self.strides["group"] + inside * self.strides["block"]

    def head_offsets(self, shards: range) -> list[int]:
        """Element offset of each local KV head, shard by shard. ``shards`` are absolute ids; packed layouts restart at 0."""
        base = 0 if self.layout.shards_leave_whole else shards.start
        return [
            (shard - base) * self.strides["shard"] + head * self.strides["head"]
            for shard in shards
            for head in range(self.heads_per_shard)
        ]

    def address(self, *, layer: int, block: int, shard: int, head: int, kv: int, token: int, dim: int = 0) -> int:
        """Element offset of one value; ``shard`` counts from the worker's first shard in packed layouts."""
        s = self.strides
        return (
            self.block_offset(block)
            + layer * s["layer"]
            + shard * s["shard"]
            + head * s["head"]
            + kv * s["kv"]
            + token * s["token"]
            + dim
        )

"""Where each weight lies in a worker's address ranges. Torch-free, pure; a transformation plans with it too.

    range "resident"   | embeddings, attention, norms (whole on every worker, never moves) |
    range "ffn"        | L0 s0 | L0 s1 | L0 s2 | L0 s3 | L1 s0 | ...                         units

A unit is one FFN shard of one layer, stored in one piece: the shard's rows of ``gate`` and of ``up``, and its columns of
``down``, each a contiguous matrix.

padding on:  every unit starts on a page and has its address for life; a worker maps the pages of the shards it holds.
             Giving a shard up is an unmap, no byte moves. Costs less than a page per unit.
padding off: the units a worker holds are packed one behind the other, as an engine without the idea does; then pages are
             shared by neighbouring shards, and giving one up means copying the rest to fresh pages.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from gyges.core import ModelGeometry
from gyges.parallel.sharding import ParallelLayout, ffn_shard_rows

_ALIGN = 64  # bytes; a tensor starts on a cache line

Unit = tuple[int, int]  # (layer, shard)


@dataclass(frozen=True, slots=True)
class ResidentLayout:
    """``tensors``: name -> (byte offset, shape)."""

    tensors: dict[str, tuple[int, tuple[int, ...]]]
    pages: int
    used_bytes: int

    @classmethod
    def build(cls, shapes: Sequence[tuple[str, tuple[int, ...]]], item_size: int, page_bytes: int) -> ResidentLayout:
        at = used = 0
        tensors: dict[str, tuple[int, tuple[int, ...]]] = {}
        for name, shape in shapes:
            tensors[name] = (at, shape)
            used += prod(shape) * item_size
            at = _up(at + prod(shape) * item_size, _ALIGN)
        return cls(tensors, -(-at // page_bytes), used)


@dataclass(frozen=True, slots=True)
class FFNLayout:
    """Byte offsets of the FFN units of one worker. ``units``: those it holds; ``sizes``: bytes of a unit, by shard."""

    page_bytes: int
    units: dict[Unit, int]
    sizes: tuple[int, ...]
    rows: tuple[range, ...]
    range_pages: int

    @classmethod
    def build(cls, geometry: ModelGeometry, layout: ParallelLayout, *, padding: bool, page_bytes: int) -> FFNLayout:
        count = layout.shards.ffn
        rows = tuple(ffn_shard_rows(geometry.intermediate_size, count, shard) for shard in range(count))
        sizes = tuple(3 * len(r) * geometry.hidden_size * geometry.item_size for r in rows)
        at = 0
        units: dict[Unit, int] = {}
        for layer in range(geometry.num_layers):
            for shard in range(count):
                if shard in layout.ffn_shards:
                    units[layer, shard] = at
                elif not padding:
                    continue  # packed: a shard that is not here takes no addresses
                at = _up(at + sizes[shard], page_bytes if padding else _ALIGN)
        return cls(page_bytes, units, sizes, rows, -(-at // page_bytes))

    def slots(self, units: Iterable[Unit]) -> tuple[np.ndarray, np.ndarray]:
        """(pages under these units, how many of the units touch each)."""
        spans = [
            np.arange(at // self.page_bytes, -(-(at + self.sizes[unit[1]]) // self.page_bytes))
            for unit in units
            for at in (self.units[unit],)
        ]
        if not spans:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        return np.unique(np.concatenate(spans), return_counts=True)

    @property
    def pages(self) -> int:
        """Physical pages under all units held."""
        return len(self.slots(self.units)[0])

    @property
    def used_bytes(self) -> int:
        return sum(self.sizes[shard] for _, shard in self.units)

    @property
    def padding_bytes(self) -> int:
        """Bytes of those pages that hold no weight."""
        return self.pages * self.page_bytes - self.used_bytes


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple

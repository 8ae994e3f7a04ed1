"""Where each weight lies in a worker's weight address range. Torch-free, pure; a transformation plans with it too.

    | resident: embeddings, attention, norms (whole on every worker) | FFN units ...                                   |
                                                                     | L0 s0 | L0 s1 | L0 s2 | L0 s3 | L1 s0 | ...

A unit is one FFN shard of one layer, stored in one piece: the shard's rows of ``gate`` and of ``up``, and its columns of
``down``, each a contiguous matrix.

padding on:  every unit starts on a page and has its address for life; a worker maps the pages of the shards it holds.
             Giving a shard up is an unmap, no byte moves. Costs less than a page per unit.
padding off: the units a worker holds are packed one behind the other, as an engine without the idea does; then pages are
             shared by neighbouring shards, and giving one up means copying the rest to fresh pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from gyges.core import ModelGeometry
from gyges.parallel.sharding import ParallelLayout, ffn_shard_rows

_ALIGN = 64  # bytes; a tensor starts on a cache line


@dataclass(frozen=True, slots=True)
class FFNUnit:
    """One FFN shard of one layer: byte offset in the weight range, and its rows of the FFN."""

    layer: int
    shard: int
    offset: int
    rows: range


@dataclass(frozen=True, slots=True)
class WeightLayout:
    """Byte offsets of all weights of one worker, and the pages behind them.

    resident: name -> (byte offset, shape).   units: those this worker holds, layer by layer.
    """

    page_bytes: int
    resident: dict[str, tuple[int, tuple[int, ...]]]
    resident_pages: int
    units: tuple[FFNUnit, ...]
    range_pages: int
    slots: tuple[int, ...]
    unpadded_bytes: int

    @classmethod
    def build(
        cls,
        geometry: ModelGeometry,
        resident_shapes: Sequence[tuple[str, tuple[int, ...]]],
        layout: ParallelLayout,
        *,
        padding: bool,
        page_bytes: int,
    ) -> WeightLayout:
        at = 0
        resident: dict[str, tuple[int, tuple[int, ...]]] = {}
        for name, shape in resident_shapes:
            resident[name] = (at, shape)
            at = _up(at + prod(shape) * geometry.item_size, _ALIGN)
        resident_bytes = at
        resident_pages = -(-at // page_bytes)
        align = page_bytes if padding else _ALIGN
        if padding:
            at = resident_pages * page_bytes
        held = layout.ffn_shards
        units: list[FFNUnit] = []
        slots: list[int] = list(range(resident_pages))
        bytes_held = resident_bytes
        for layer in range(geometry.num_layers):
            for shard in range(layout.shards.ffn):
                rows = ffn_shard_rows(geometry.intermediate_size, layout.shards.ffn, shard)
                size = 3 * len(rows) * geometry.hidden_size * geometry.item_size
                if shard in held:
                    units.append(FFNUnit(layer, shard, at, rows))
                    bytes_held += size
                    slots.extend(range(at // page_bytes, -(-(at + size) // page_bytes)))
                elif not padding:
                    continue  # packed: a shard that is not here takes no addresses
                at = _up(at + size, align)
        return cls(
            page_bytes=page_bytes,
            resident=resident,
            resident_pages=resident_pages,
            units=tuple(units),
            range_pages=-(-at // page_bytes),
            slots=tuple(sorted(set(slots))),
            unpadded_bytes=bytes_held,
        )

    @property
    def pages(self) -> int:
        """Physical pages that the weights take."""
        return len(self.slots)

    @property
    def padding_bytes(self) -> int:
        """Bytes of those pages that hold no weight."""
        return self.pages * self.page_bytes - self.unpadded_bytes


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple

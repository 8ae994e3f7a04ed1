"""The sizes of one model on one host, under every TP degree the host may take. Torch-free arithmetic.

    device budget (pages) = resident weights + FFN units of the degree + KV block groups + reserve + rest (less than a group)

The reserve is what a transformation needs to make progress when every other page is in use: room for the blocks of one group of
any degree, and where FFN units must be copied (no padding, or degrees that do not divide each other, so that a worker's part
of the wide instance is not in its part of the narrow one) for one layer of them. A host that has one degree keeps none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from gyges.core import ModelGeometry
from gyges.kv_cache.blocks import BlockAllocator, GroupIds
from gyges.kv_cache.layouts import KVGeometry, KVLayout, choose_block_size
from gyges.parallel.sharding import ParallelLayout, ShardCount
from gyges.parallel.weight_layout import FFNLayout, ResidentLayout


@dataclass(frozen=True)
class HostShape:
    """``resident``: names and shapes of the weights every worker holds whole.  ``degrees``: TP degrees of the host, sorted.
    ``block_size`` 0: the layout's choice. Lengths in tokens, blocks, groups or pages as named."""

    model: ModelGeometry
    resident: tuple[tuple[str, tuple[int, ...]], ...]
    degrees: tuple[int, ...]
    layout: KVLayout
    padding: bool
    page_bytes: int
    device_pages: int
    num_devices: int
    asked_block_size: int = 0

    @cached_property
    def shards(self) -> ShardCount:
        return ShardCount.for_degrees(self.model, self.degrees)

    @cached_property
    def block_size(self) -> int:
        return self.asked_block_size or choose_block_size(self.layout, self.model, self.shards.kv, self.page_bytes)

    @property
    def same_addresses(self) -> bool:
        """Whether a block's address is the same at every degree, so that its id is kept and its own shards stay."""
        return self.layout.shards_leave_whole

    # -- weights ------------------------------------------------------------------------------------------------------

    @cached_property
    def resident_layout(self) -> ResidentLayout:
        return ResidentLayout.build(self.resident, self.model.item_size, self.page_bytes)

    def ffn_layout(self, layout: ParallelLayout) -> FFNLayout:
        known = self._ffn_layouts
        if layout not in known:
            known[layout] = FFNLayout.build(self.model, layout, padding=self.padding, page_bytes=self.page_bytes)
        return known[layout]

    @cached_property
    def _ffn_layouts(self) -> dict[ParallelLayout, FFNLayout]:
        return {}

    def ranks(self, degree: int) -> Iterable[ParallelLayout]:
        return (ParallelLayout(degree, rank, self.shards) for rank in range(degree))

    @cached_property
    def ffn_range_pages(self) -> int:
        """Address range that any degree's FFN units need."""
        return max(self.ffn_layout(rank).range_pages for degree in self.degrees for rank in self.ranks(degree))

    def weight_pages(self, degree: int) -> int:
        """Of the rank that needs most."""
        return self.resident_layout.pages + max(self.ffn_layout(rank).pages for rank in self.ranks(degree))

    # -- KV cache -----------------------------------------------------------------------------------------------------

    def kv_geometry(self, degree: int) -> KVGeometry:
        known = self._kv_geometries
        if degree not in known:
            known[degree] = self._kv_geometry(degree, self._id_groups(degree) * self._unit(degree).blocks_per_group)
        return known[degree]

    @cached_property
    def _kv_geometries(self) -> dict[int, KVGeometry]:
        return {}

    def _kv_geometry(self, degree: int, num_blocks: int) -> KVGeometry:
        return KVGeometry.build(
            self.layout,
            self.model,
            block_size=self.block_size,
            num_shards=self.shards.kv,
            local_shards=len(ParallelLayout(degree, 0, self.shards).kv_shards),
            num_blocks=num_blocks,
            page_bytes=self.page_bytes,
        )

    def _unit(self, degree: int) -> KVGeometry:
        return self._kv_geometry(degree, 1)

    @cached_property
    def _host_groups(self) -> int:
        """Ids for all groups that the pages of the host can hold at once, twice: a block that is renamed has two."""
        whole = self._unit(1).pages_per_group if 1 in self.degrees else self._whole_group_pages()
        return 2 * (self.num_devices * self.device_pages // whole + self.num_devices)

    def _whole_group_pages(self) -> int:
        unit = self._unit(self.degrees[0])
        return unit.pages_per_group * self.shards.kv // unit.local_shards

    def _id_groups(self, degree: int) -> int:
        return self._host_groups if self.same_addresses else max(1, self.max_groups(degree))

    @cached_property
    def kv_range_pages(self) -> int:
        return max(self.kv_geometry(degree).range_pages for degree in self.degrees)

    @cached_property
    def reserve_pages(self) -> int:
        if len(self.degrees) == 1:
            return 0
        units = {degree: self._unit(degree) for degree in self.degrees}
        largest = max(unit.blocks_per_group for unit in units.values())
        kv = max((-(-largest // unit.blocks_per_group) + 1) * unit.pages_per_group for unit in units.values())
        if self.padding and all(b % a == 0 for a, b in pairwise(self.degrees)):
            return kv
        wide = self.ffn_layout(ParallelLayout(self.degrees[1], 0, self.shards))
        return kv + max(len(wide.slots([u for u in wide.units if u[0] == layer])[0]) for layer in range(2)) + 2

    def max_groups(self, degree: int) -> int:
        """Block groups that an instance of this degree can hold; below 1 if it cannot run."""
        room = self.device_pages - self.weight_pages(degree) - self.reserve_pages
        return max(0, room // self._unit(degree).pages_per_group)

    def max_tokens(self, degree: int) -> int:
        """Longest context that an instance of this degree can hold."""
        return self.max_groups(degree) * self._unit(degree).blocks_per_group * self.block_size

    def allocator(self, degree: int, host_ids: GroupIds) -> BlockAllocator:
        """For a new instance. ``host_ids``: the host's group ids, used where addresses are the same at every degree."""
        groups = self.max_groups(degree)
        ids = host_ids if self.same_addresses else GroupIds(self._id_groups(degree))
        return BlockAllocator(ids, groups, self._unit(degree).blocks_per_group)

    def host_ids(self) -> GroupIds:
        return GroupIds(self._host_groups if self.same_addresses else 0)

    def needed_pages(self, degree: int) -> int:
        """The smallest device on which an instance of this degree runs."""
        return self.weight_pages(degree) + self.reserve_pages + self._unit(degree).pages_per_group


def check_degrees(host: HostShape, degrees: Sequence[int]) -> list[int]:
    """Those of ``degrees`` at which an instance fits the device."""
    return [degree for degree in degrees if host.max_groups(degree) >= 1]

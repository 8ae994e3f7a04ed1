"""What fits where: weights and KV blocks of every instance, before any process starts. Torch-free, pure arithmetic.

    device budget (pages)  =  weights (whole pages)  +  KV block groups (whole)  +  rest (less than one group)

Block ids are unique across the host. Device i's home range starts at i x blocks_per_device; an instance uses the ranges of
its members. The address range on every worker spans all ids, so a block keeps its address wherever it goes.
"""

from __future__ import annotations

from dataclasses import dataclass

from gyges.config import EngineConfig, format_bytes
from gyges.core import ModelGeometry
from gyges.errors import UserError
from gyges.kv_cache.layouts import LAYOUTS, KVGeometry, choose_block_size, choose_page_bytes
from gyges.models.config import DecoderConfig
from gyges.models.resident import resident_shapes
from gyges.parallel.sharding import ParallelLayout, ShardCount
from gyges.parallel.weight_layout import WeightLayout


@dataclass(frozen=True, slots=True)
class InstancePlacement:
    """One instance: its workers in rank order, and the KV block groups (half open) that each of them maps."""

    members: tuple[int, ...]
    groups: range
    blocks: range
    weight_pages: int
    kv_pages: int
    max_tokens: int

    @property
    def degree(self) -> int:
        return len(self.members)


@dataclass(frozen=True, slots=True)
class HostPlacement:
    shards: ShardCount
    block_size: int
    instances: tuple[InstancePlacement, ...]
    max_context: int  # prompt + output, by model or user, whatever the memory
    max_positions: int  # that any instance can reach


class Placer:
    """Sizes of one model on one host; see the module's note. ``config`` is the given one with page_bytes chosen."""

    def __init__(self, config: EngineConfig, model: DecoderConfig, geometry: ModelGeometry) -> None:
        self.model, self.geometry = model, geometry
        self.layout = LAYOUTS.get(config.layout)
        self.shards = ShardCount.for_degrees(geometry, config.candidate_degrees)
        if not config.page_bytes:
            config = config.with_(page_bytes=choose_page_bytes(geometry, self.shards.kv))
        self.config = config
        self.block_size = config.block_size or choose_block_size(
            self.layout, geometry, self.shards.kv, config.page_bytes
        )
        self.device_pages = config.device_memory // config.page_bytes
        full_block = self.block_size * geometry.kv_bytes_per_token
        # One extra group of the largest kind, because a range need not start at a multiple of the group.
        slack = max(self._geometry(1, d).blocks_per_group for d in config.candidate_degrees)
        self.blocks_per_device = self.device_pages * config.page_bytes // full_block + slack
        self.num_blocks = self.blocks_per_device * config.num_devices

    def _geometry(self, num_blocks: int, degree: int) -> KVGeometry:
        return KVGeometry.build(
            self.layout,
            self.geometry,
            block_size=self.block_size,
            num_shards=self.shards.kv,
            local_shards=len(ParallelLayout(degree, 0, self.shards).kv_shards),
            num_blocks=num_blocks,
            page_bytes=self.config.page_bytes,
        )

    def kv_geometry(self, degree: int) -> KVGeometry:
        return self._geometry(self.num_blocks, degree)

    def weight_layout(self, layout: ParallelLayout) -> WeightLayout:
        return WeightLayout.build(
            self.geometry,
            resident_shapes(self.model, self.shards),
            layout,
            padding=self.config.padding,
            page_bytes=self.config.page_bytes,
        )

    def place(self, members: tuple[int, ...]) -> InstancePlacement:
        """Raises UserError, with the budget that would do, if weights and one block group do not fit."""
        degree = len(members)
        kv = self.kv_geometry(degree)
        weight_pages = max(self.weight_layout(ParallelLayout(degree, r, self.shards)).pages for r in range(degree))
        groups = (self.device_pages - weight_pages) // kv.pages_per_group
        if groups < 1:
            need = (weight_pages + kv.pages_per_group) * self.config.page_bytes
            raise UserError(
                f"a device of {format_bytes(self.config.device_memory)} is too small for {self.config.model} at "
                f"TP{degree}: weights take {format_bytes(weight_pages * self.config.page_bytes)} and the smallest piece "
                f"of KV cache {format_bytes(kv.pages_per_group * self.config.page_bytes)}; "
                f"give at least --device-memory {-(-need // 2**20)}MiB"
            )
        first = -(-members[0] * self.blocks_per_device // kv.blocks_per_group)
        end = min(first + groups, kv.num_groups)
        blocks = range(first * kv.blocks_per_group, end * kv.blocks_per_group)
        return InstancePlacement(
            members=members,
            groups=range(first, end),
            blocks=blocks,
            weight_pages=weight_pages,
            kv_pages=(end - first) * kv.pages_per_group,
            max_tokens=len(blocks) * self.block_size,
        )

    def host(self) -> HostPlacement:
        instances, device = [], 0
        for degree in self.config.instances:
            instances.append(self.place(tuple(range(device, device + degree))))
            device += degree
        context = min(self.model.max_position, self.config.max_context or self.model.max_position)
        reachable = min(context, max(i.max_tokens for i in instances) + 1)
        return HostPlacement(self.shards, self.block_size, tuple(instances), context, reachable)

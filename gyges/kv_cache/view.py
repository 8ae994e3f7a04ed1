"""A worker's KV cache as the kernels see it: one flat array over the address range, plus strides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gyges.kv_cache.layouts import KVGeometry
from gyges.memory.base import AddressRange

if TYPE_CHECKING:
    import torch

    from gyges.kernels.base import KernelSet, PagedCache


@dataclass(slots=True)
class KVView:
    """``paged`` spans the whole range (touch only mapped blocks). ``block_offsets`` int64 [block ids]: element offsets."""

    geometry: KVGeometry
    paged: PagedCache
    block_offsets: np.ndarray

    @classmethod
    def over(
        cls, where: AddressRange, geometry: KVGeometry, shards: range, dtype: torch.dtype, kernels: KernelSet
    ) -> KVView:
        elements = where.num_pages * geometry.page_bytes // geometry.item_size
        paged = kernels.cache(
            where.tensor(dtype, (elements,)),
            np.array(geometry.head_offsets(shards), np.int64),
            geometry.strides["kv"],
            geometry.strides["token"],
            geometry.block_size,
        )
        num_blocks = geometry.num_groups * geometry.blocks_per_group
        group, inside = np.divmod(np.arange(num_blocks), geometry.blocks_per_group)
        offsets = group * geometry.strides["group"] + inside * geometry.strides["block"]
        return cls(geometry, paged, offsets)

    def layer_base(self, layer: int) -> int:
        return layer * self.geometry.strides["layer"]

"""A worker's KV cache as the kernels see it: one flat array over the address range, plus strides."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from gyges.kv_cache.layouts import KVGeometry
from gyges.memory.base import AddressRange


@dataclass(slots=True)
class KVView:
    """``flat`` spans the whole range (touch only mapped blocks); ``flat_np`` is the same memory for numba, bfloat16 as
    its bits in uint16. ``head_offsets`` [local KV heads], ``block_offsets`` [block ids]: element offsets."""

    geometry: KVGeometry
    flat: torch.Tensor
    flat_np: np.ndarray
    head_offsets: np.ndarray
    block_offsets: np.ndarray

    @classmethod
    def over(cls, where: AddressRange, geometry: KVGeometry, shards: range, dtype: torch.dtype) -> KVView:
        elements = where.num_pages * geometry.page_bytes // geometry.item_size
        flat = where.tensor(dtype, (elements,))
        flat_np = flat.view(torch.uint16).numpy() if dtype == torch.bfloat16 else flat.numpy()
        num_blocks = geometry.num_groups * geometry.blocks_per_group
        group, inside = np.divmod(np.arange(num_blocks), geometry.blocks_per_group)
        offsets = group * geometry.strides["group"] + inside * geometry.strides["block"]
        return cls(geometry, flat, flat_np, np.array(geometry.head_offsets(shards), np.int64), offsets)

    def layer_base(self, layer: int) -> int:
        return layer * self.geometry.strides["layer"]

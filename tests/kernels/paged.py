"""A paged KV cache of random values in any layout, for parity tests (``from paged import ...``)."""

import numpy as np
import torch

from gyges.core import ModelGeometry
from gyges.kernels import reference
from gyges.kernels.base import PagedCache
from gyges.kv_cache.layouts import LAYOUTS, KVGeometry

LAYERS, DIM, BLOCKS = 2, 16, 24
ALL = [(name, dtype) for name in LAYOUTS.names() for dtype in (torch.float32, torch.bfloat16)]


class Cache:
    """Layer 1 of a cache on a worker that holds ``shards`` of 4; block ids in random order."""

    def __init__(
        self,
        layout: str,
        dtype: torch.dtype,
        *,
        shards: range = range(4),
        heads_per_shard: int = 1,
        block=7,
        dim: int = DIM,
    ):
        item = dtype.itemsize
        model = ModelGeometry(LAYERS, 64, 8, 4 * heads_per_shard, dim, 64, 64, item, False)
        self.dim = dim
        self.geometry = KVGeometry.build(
            LAYOUTS.get(layout), model, block_size=block, num_shards=4, local_shards=len(shards), num_blocks=BLOCKS,
            page_bytes=4096,
        )  # fmt: skip
        generator = torch.Generator().manual_seed(7)
        self.flat = torch.randn(self.geometry.range_pages * 4096 // item, generator=generator).to(dtype)
        self.heads = np.array(self.geometry.head_offsets(shards), np.int64)
        order = torch.randperm(BLOCKS, generator=generator).tolist()
        self.offsets = np.array([self.geometry.block_offset(b) for b in order], np.int64)
        self.base = self.geometry.strides["layer"]  # layer 1
        self.strides = (self.geometry.strides["kv"], self.geometry.strides["token"], self.geometry.block_size)

    def on(self, device: torch.device) -> PagedCache:
        """As a Triton kernel set takes it; shares ``flat`` on a CPU."""
        return PagedCache(self.flat.to(device), torch.from_numpy(self.heads).to(device), *self.strides)

    def context(self, table: np.ndarray, length: int) -> torch.Tensor:
        return reference.context(
            self.flat, self.base, torch.from_numpy(table), length, torch.from_numpy(self.heads), *self.strides, self.dim
        )

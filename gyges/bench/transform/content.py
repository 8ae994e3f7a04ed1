"""What is written into the pages before a transformation, and how it is found again afterwards.

    KV     element = pattern[layer, shard, head, kv, token, dim] + key(instance, n-th block of it), modulo the element's range
    FFN    every 4 KiB of a unit, and its last 8 bytes:  unit number x 2^40 + offset

All of the KV cache is written, since what is copied should be what a running engine copies. A block that comes from the wrong
place, or lies in the wrong one, differs in nearly every element.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from gyges.kv_cache.layouts import KVGeometry
from gyges.memory.cpu import CpuAddressRange
from gyges.transform.books import KVSide
from gyges.transform.device import Device
from gyges.transform.host import HostShape

_STAMP_EVERY = 4096
_AXES = ("group", "block", "layer", "shard", "head", "kv", "token", "dim")
_KEY_STEP = 40503  # odd, so that neighbouring blocks have keys far apart, and 65536 blocks have different ones


def _bytes(where: CpuAddressRange) -> np.ndarray:
    window: Any = (ctypes.c_uint8 * where.length).from_address(where.address)
    return np.frombuffer(window, np.uint8)


def _blocks(where: CpuAddressRange, geometry: KVGeometry, dtype: np.dtype) -> np.ndarray:
    """The range as [group, block, layer, shard, head, kv, token, dim]. Touch only what is mapped."""
    flat = _bytes(where)[: where.num_pages * geometry.page_bytes].view(dtype)
    sizes = [geometry.sizes[axis] for axis in _AXES]
    strides = [geometry.strides[axis] * geometry.item_size for axis in _AXES]
    return as_strided(flat, sizes, strides)


class Content:
    """Of one host; the same in every process that is given the same ``seed``."""

    def __init__(self, host: HostShape, seed: int) -> None:
        self.host, self.seed = host, seed
        self.dtype = np.dtype({2: np.uint16, 4: np.uint32}[host.model.item_size])
        shape = (
            host.model.num_layers,
            host.shards.kv,
            host.model.num_kv_heads // host.shards.kv,
            2,
            host.block_size,
            host.model.head_dim,
        )
        self.pattern = np.random.default_rng(seed).integers(0, 1 << 16, shape, self.dtype)

    def _key(self, narrow: int, ordinal: int) -> Any:
        return self.dtype.type((narrow * 9973 + ordinal) * _KEY_STEP % 65536)

    def write_kv(self, device: Device, narrow: int, blocks: np.ndarray) -> None:
        """``blocks``: ids, in order, of narrow instance ``narrow``; mapped by now."""
        side = device.book.kv
        view, pattern = self._of(device, side)
        for ordinal, block in enumerate(blocks.tolist()):
            group, inside = divmod(block, side.geometry.blocks_per_group)
            np.add(pattern, self._key(narrow, ordinal), out=view[group, inside])

    def wrong_kv(self, device: Device, narrow: int, blocks: np.ndarray, sample: int) -> int:
        """Blocks whose content is not what was written: of all, two elements; of ``sample`` of them, everything."""
        if not len(blocks):
            return 0
        side = device.book.kv
        view, pattern = self._of(device, side)
        keys = np.array([self._key(narrow, n) for n in range(len(blocks))])
        group, inside = np.divmod(blocks, side.geometry.blocks_per_group)
        wrong = np.zeros(len(blocks), bool)
        for corner in (0, -1):
            at = (corner,) * 6
            wrong |= view[(group, inside, *at)] != pattern[at] + keys
        draw = np.random.default_rng((self.seed, narrow))
        for ordinal in draw.choice(len(blocks), min(sample, len(blocks)), replace=False).tolist():
            wrong[ordinal] |= not np.array_equal(view[group[ordinal], inside[ordinal]], pattern + keys[ordinal])
        return int(wrong.sum())

    def _of(self, device: Device, side: KVSide) -> tuple[np.ndarray, np.ndarray]:
        """This worker's shards of its KV range, and of the pattern."""
        held = side.layout.kv_shards
        view = _blocks(device.ranges[side.range], side.geometry, self.dtype)
        local = slice(side.local_shard(held.start), side.local_shard(held.start) + len(held))
        return view[:, :, :, local], self.pattern[:, held.start : held.stop]

    # -- FFN ----------------------------------------------------------------------------------------------------------

    def write_ffn(self, device: Device) -> None:
        for stamps, want in self._units(device):
            stamps[...] = want

    def wrong_ffn(self, device: Device) -> int:
        """Units that do not hold what was written."""
        broken = {
            index // 2 for index, (stamps, want) in enumerate(self._units(device)) if not np.array_equal(stamps, want)
        }
        return len(broken)

    def _units(self, device: Device) -> list[tuple[np.ndarray, np.ndarray]]:
        """(stamps as they are, as they should be): for every unit that the worker holds, all but the last, and the last."""
        found = []
        side = device.book.ffn
        for (layer, shard), at in side.units.units.items():
            if shard not in side.layout.ffn_shards:
                continue
            size = side.units.sizes[shard]
            unit = _bytes(device.ranges[side.range])[at : at + size].view(np.uint64)
            number = np.uint64((layer * self.host.shards.ffn + shard + 1) << 40)
            offsets = np.arange(0, size, _STAMP_EVERY, dtype=np.uint64)
            found.append((unit[:: _STAMP_EVERY // 8], number + offsets))
            found.append((unit[-1:], np.array([number + np.uint64(size)])))
        return found

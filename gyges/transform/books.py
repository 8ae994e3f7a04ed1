"""What one worker holds, as counts and addresses, without the memory: the worker applies it to its pages, the controller keeps
the same books to know what fits before it asks. Torch-free.

Ranges a worker reserves:   resident | ffn0 [ffn1] | kv0 [kv1]      the second ones only where addresses change with the degree;
then front and back swap at every transformation (parity).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np

from gyges.kv_cache.layouts import KVGeometry
from gyges.memory.counts import PageCounts
from gyges.parallel.sharding import ParallelLayout
from gyges.parallel.weight_layout import FFNLayout
from gyges.transform.host import HostShape
from gyges.transform.shape import Transformation


def ranges_of(host: HostShape) -> dict[str, int]:
    """Name -> slots of every address range of a worker, in the order in which all workers reserve them."""
    ranges = {"resident": host.resident_layout.pages, "ffn0": host.ffn_range_pages}
    if not host.padding and len(host.degrees) > 1:
        ranges["ffn1"] = host.ffn_range_pages
    ranges["kv0"] = host.kv_range_pages
    if not host.same_addresses and len(host.degrees) > 1:
        ranges["kv1"] = host.kv_range_pages
    return ranges


@dataclass(frozen=True, slots=True)
class Move:
    """Slots of a range that must be mapped, or may be unmapped."""

    range: str
    slots: np.ndarray


class KVSide:
    """One side (front or back) of a worker's KV cache: which shards, where, and who counts its pages."""

    def __init__(self, host: HostShape, layout: ParallelLayout, range_name: str, counts: PageCounts) -> None:
        self.layout, self.range, self.counts = layout, range_name, counts
        self.geometry: KVGeometry = host.kv_geometry(layout.degree)

    def _pages(self, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        groups, users = np.unique(blocks // self.geometry.blocks_per_group, return_counts=True)
        return self.geometry.group_pages(groups, self.layout.kv_shards), users[:, None]

    def hold(self, blocks: np.ndarray) -> Move:
        return Move(self.range, self.counts.hold(*self._pages(blocks)))

    def would_map(self, blocks: np.ndarray) -> int:
        return self.counts.would_map(self._pages(blocks)[0])

    def drop(self, blocks: np.ndarray) -> Move:
        return Move(self.range, self.counts.drop(*self._pages(blocks)))

    def local_shard(self, shard: int) -> int:
        """Index of a shard in this side's addresses."""
        return shard if self.geometry.layout.shards_leave_whole else shard - self.layout.kv_shards.start


class FFNSide:
    """One side of a worker's FFN units."""

    def __init__(self, host: HostShape, layout: ParallelLayout, range_name: str, counts: PageCounts) -> None:
        self.layout, self.range, self.counts = layout, range_name, counts
        self.units: FFNLayout = host.ffn_layout(layout)

    def _slots(self, layers: range) -> tuple[np.ndarray, np.ndarray]:
        return self.units.slots((layer, shard) for layer in layers for shard in self.layout.ffn_shards)

    def hold(self, layers: range) -> Move:
        return Move(self.range, self.counts.hold(*self._slots(layers)))

    def would_map(self, layers: range) -> int:
        return self.counts.would_map(self._slots(layers)[0])

    def drop(self, layers: range) -> Move:
        return Move(self.range, self.counts.drop(*self._slots(layers)))


class WorkerBook:
    """Front and, during a transformation, back of one worker. ``parity``: transformations so far, modulo 2."""

    def __init__(self, host: HostShape, worker: int, layout: ParallelLayout, parity: int = 0) -> None:
        self.host, self.worker, self.parity = host, worker, parity
        self.counts = {name: PageCounts(slots) for name, slots in ranges_of(host).items() if name != "resident"}
        self.kv = self._kv_side(layout, parity)
        self.ffn = self._ffn_side(layout, parity)
        self.ffn.hold(range(host.model.num_layers))
        self.kv_back: KVSide | None = None
        self.ffn_back: FFNSide | None = None

    @property
    def mapped_pages(self) -> int:
        return self.host.resident_layout.pages + sum(counts.mapped for counts in self.counts.values())

    @property
    def free_pages(self) -> int:
        return self.host.device_pages - self.mapped_pages

    @property
    def kv_pages(self) -> int:
        return sum(counts.mapped for name, counts in self.counts.items() if name.startswith("kv"))

    def range_name(self, part: str, parity: int) -> str:
        return f"{part}1" if parity and f"{part}1" in self.counts else f"{part}0"

    def _kv_side(self, layout: ParallelLayout, parity: int) -> KVSide:
        name = self.range_name("kv", parity)
        return KVSide(self.host, layout, name, self.counts[name])

    def _ffn_side(self, layout: ParallelLayout, parity: int) -> FFNSide:
        name = self.range_name("ffn", parity)
        return FFNSide(self.host, layout, name, self.counts[name])

    def begin(self, shape: Transformation) -> None:
        back = shape.back_layout(self.worker)
        self.kv_back = self._kv_side(back, self.parity ^ 1)
        self.ffn_back = self._ffn_side(back, self.parity ^ 1)

    def copy(self) -> WorkerBook:
        """A book of its own that starts from the same state."""
        twin = copy.copy(self)
        twin.counts = {name: counts.copy() for name, counts in self.counts.items()}
        twin.kv = twin._kv_side(self.kv.layout, self.parity)
        twin.ffn = twin._ffn_side(self.ffn.layout, self.parity)
        if self.kv_back is not None and self.ffn_back is not None:
            twin.kv_back = twin._kv_side(self.kv_back.layout, self.parity ^ 1)
            twin.ffn_back = twin._ffn_side(self.ffn_back.layout, self.parity ^ 1)
        return twin

    def settle(self) -> None:
        assert self.kv_back is not None
        assert self.ffn_back is not None
        self.kv, self.ffn = self.kv_back, self.ffn_back
        self.kv_back = self.ffn_back = None
        self.parity ^= 1

"""One worker's memory under a running model: pages, address ranges, peers; carries out what the interpreter says.

Used by the engine's runner and, without any model, by the micro-benchmark.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gyges.memory.base import AddressRange, PagePool, PeerMemory
from gyges.parallel.sharding import ParallelLayout
from gyges.transform.books import WorkerBook, ranges_of
from gyges.transform.copies import CopyBatch
from gyges.transform.host import HostShape
from gyges.transform.interpreter import Effect, Interpreter
from gyges.transform.memory import CpuMemory, DeviceMemory
from gyges.transform.ops import FFN, Barrier, FFNRelease, Join, Op, Settle, Switch


@dataclass(slots=True)
class Spent:
    """What one worker did for one transformation. Seconds; bytes copied; descriptors: contiguous copies; pages.

    kv_* and weights_*: by what moved.   local: from this worker's own pages (compaction).   peer: from another's.
    wait_s: for the others, at barriers.   peak_pages: most pages mapped at one moment.

    Where copies overlap with other work (a GPU), peer_copy_s and local_copy_s are what they took on the device, and kv_host_s is
    what the host spent on them, launching and waiting; where they do not, the host copies and kv_host_s is 0. All other seconds
    are the host's: weights_s has its launches of copies and its waits for them, not what they took beside other work.
    """

    map_s: float = 0.0
    unmap_s: float = 0.0
    peer_copy_s: float = 0.0
    local_copy_s: float = 0.0
    kv_host_s: float = 0.0
    weights_s: float = 0.0
    wait_s: float = 0.0
    communicator_s: float = 0.0
    kv_peer_bytes: int = 0
    kv_local_bytes: int = 0
    weights_peer_bytes: int = 0
    weights_local_bytes: int = 0
    kv_descriptors: int = 0
    weights_descriptors: int = 0
    mapped_pages: int = 0
    unmapped_pages: int = 0
    start_pages: int = 0
    peak_pages: int = 0
    end_pages: int = 0

    def count(self, batch: CopyBatch, part: str, *, local: bool) -> None:
        """A batch was launched."""
        if part == "weights":
            self.weights_descriptors += batch.descriptors
            if local:
                self.weights_local_bytes += batch.bytes
            else:
                self.weights_peer_bytes += batch.bytes
        else:
            self.kv_descriptors += batch.descriptors
            if local:
                self.kv_local_bytes += batch.bytes
            else:
                self.kv_peer_bytes += batch.bytes

    def copied(self, seconds: float, part: str, *, local: bool) -> None:
        """What a batch took; that of weights is in weights_s, as far as the host had to do with it."""
        if part == "kv":
            if local:
                self.local_copy_s += seconds
            else:
                self.peer_copy_s += seconds

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Device:
    """``wait``: returns when all workers of the wide instance have called it (a collective's barrier).   ``pool``: an empty one
    of the host's size to use, where its memory is to outlive the device.   memory: what it is made of; CPU memory if None.

    Copies may run beside the model's kernels (``memory.overlaps``). What orders them:

        copy after kernel       nothing here: operations come first in a step. The last one's collectives have said that all
                                workers have written what is read now; this worker has waited for its own kernels, which may
                                have read what is overwritten now
        copy after copy         the order of their launch
        kernel after copy       :meth:`join_copies`: at a Switch, and for who asks where a unit lies that is being copied
        unmap after copy        :meth:`finish_copies`, as at a Barrier, a Settle, a reset and the end
        a peer that gives up    :meth:`finish_copies` before the collective that tells it so; who carries operations out without a
                                Barrier behind them sees to both
    """

    def __init__(
        self,
        host: HostShape,
        worker: int,
        layout: ParallelLayout,
        *,
        pool: PagePool | None = None,
        memory: DeviceMemory | None = None,
    ) -> None:
        self.host, self.worker = host, worker
        self.memory = memory or CpuMemory()
        self.pool = pool or self.memory.pool(host.device_pages, host.page_bytes, f"gyges-device-{worker}")
        self.ranges: dict[str, AddressRange] = {
            range_name: self.pool.reserve(range_name, slots) for range_name, slots in ranges_of(host).items()
        }
        self.pool.map(self.ranges["resident"], np.arange(host.resident_layout.pages))
        self.peers: dict[int, PeerMemory] = {}
        self.spent = Spent()
        self._copying: list[tuple[str, bool]] = []  # (part, local) of each copy that is not known to be done
        self._joined = 0  # so many of them come before any kernel that is launched now
        self.start(layout, 0)

    def start(self, layout: ParallelLayout, parity: int) -> None:
        """An empty KV cache, and pages (their content is the caller's task) for this layout's weights."""
        self.book = WorkerBook(self.host, self.worker, layout, parity)
        self.interpreter = Interpreter(self.book)
        self._converted: set[int] = set()
        self._released: set[int] = set()
        ffn = self.book.ffn
        slots, _ = ffn.units.slots(ffn.units.units)
        self.pool.map(self.ranges[ffn.range], slots)

    def reset(self, layout: ParallelLayout, parity: int) -> None:
        """As :meth:`start`, from any state, a broken one included."""
        self.finish_copies()
        for name, where in self.ranges.items():
            if name != "resident":
                self.pool.unmap(where, np.flatnonzero(where.table >= 0))
        self.start(layout, parity)

    def connect(self, worker: int, descriptors: tuple[int, ...]) -> None:
        """Makes a peer's pages readable here; the worker's own, too, count as a peer's."""
        self.peers[worker] = self.memory.peer(descriptors, self.host.device_pages, self.host.page_bytes)

    def close(self) -> None:
        self.finish_copies()
        for peer in self.peers.values():
            peer.close()
        self.peers.clear()
        self.pool.close()

    # -- FFN units ----------------------------------------------------------------------------------------------------

    def ffn_unit(self, layer: int, shard: int) -> tuple[AddressRange, int]:
        """(range, byte offset) of a unit that this worker holds; where it has just been moved to, if it has. Kernels that are
        launched from now on find it whole."""
        side = self.book.ffn
        if self.book.ffn_back is not None and (
            layer in self._released or (layer in self._converted and not self._front_has(shard))
        ):
            side = self.book.ffn_back
            self.join_copies()
        return self.ranges[side.range], side.units.units[layer, shard]

    def _front_has(self, shard: int) -> bool:
        return shard in self.book.ffn.layout.ffn_shards

    # -- copies under way ---------------------------------------------------------------------------------------------

    @property
    def copying(self) -> bool:
        """Whether copies were launched that are not known to be done."""
        return bool(self._copying)

    def join_copies(self) -> None:
        """Kernels that the model launches from now on run after the copies so far. The host goes on."""
        if self._joined < len(self._copying):
            self._joined = len(self._copying)
            self.memory.join()

    def finish_copies(self) -> None:
        """The host waits until all copies are done, and accounts for them."""
        if not self._copying:
            return
        began = time.perf_counter()
        seconds = self.memory.wait()
        waited = time.perf_counter() - began
        copies, self._copying, self._joined = self._copying, [], 0
        for (part, local), took in zip(copies, seconds, strict=True):
            self.spent.copied(took, part, local=local)
        if any(part == "kv" for part, _ in copies):
            self.spent.kv_host_s += waited
        else:
            self.spent.weights_s += waited

    # -- operations ---------------------------------------------------------------------------------------------------

    def apply(self, op: Op, wait: Callable[[], None]) -> None:
        """Carries one operation out. Raises OutOfPages if the plan did not keep within the budget."""
        if isinstance(op, Join):
            self.spent = Spent(start_pages=self.host.device_pages - self.pool.free_pages)
            self.pool.reset_peak()
        if isinstance(op, Barrier | Settle):
            self.finish_copies()
        elif isinstance(op, Switch):
            self.join_copies()
        if isinstance(op, Barrier):
            began = time.perf_counter()
            wait()
            self.spent.wait_s += time.perf_counter() - began
            return
        self.carry_out(self.interpreter.apply(op))
        if isinstance(op, FFN):
            self._converted.update(range(op.first, op.stop))
        elif isinstance(op, FFNRelease):
            self._released.update(range(op.first, op.stop))
        elif isinstance(op, Settle):
            self._converted, self._released = set(), set()
            self.spent.end_pages = self.host.device_pages - self.pool.free_pages
            self.spent.peak_pages = self.pool.peak_mapped

    def carry_out(self, effect: Effect) -> None:
        spent = self.spent
        began = time.perf_counter()
        for move in effect.map:
            self.pool.map(self.ranges[move.range], move.slots)
            spent.mapped_pages += len(move.slots)
        mapped = time.perf_counter()
        for batch in effect.copies:
            self._copy(batch, effect.part)
        copied = time.perf_counter()
        if any(len(move.slots) for move in effect.unmap):
            self.finish_copies()
        finished = time.perf_counter()
        for move in effect.unmap:
            self.pool.unmap(self.ranges[move.range], move.slots)
            spent.unmapped_pages += len(move.slots)
        unmapped = time.perf_counter()
        if effect.part == "weights":
            spent.weights_s += (copied - began) + (unmapped - finished)
        else:
            spent.map_s += mapped - began
            spent.unmap_s += unmapped - finished

    def _copy(self, batch: CopyBatch, part: str) -> None:
        began = time.perf_counter()
        peer, page = self.peers[batch.worker], self.host.page_bytes
        source, target = self.ranges[batch.src_range], self.ranges[batch.dst_range]
        slot, inside = np.divmod(batch.src, page)
        pages = peer.pages(source)[slot].astype(np.int64)
        assert (pages >= 0).all(), (
            f"worker {batch.worker} does not hold what worker {self.worker} wants of {batch.src_range}"
        )
        self.memory.copy(target, peer, pages * page + inside, batch)
        took = time.perf_counter() - began
        local = batch.worker == self.worker
        self.spent.count(batch, part, local=local)
        if not self.memory.overlaps:
            self.spent.copied(took, part, local=local)
            return
        self._copying.append((part, local))
        if part == "kv":
            self.spent.kv_host_s += took

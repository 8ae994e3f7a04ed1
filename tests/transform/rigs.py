"""What carries programs out on stamps (transform.content): numpy arrays, strict about every effect; devices on real pages."""

from __future__ import annotations

import ctypes
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from transform.content import FRESH, NEVER_MAPPED, UNMAPPED

from gyges.parallel.sharding import ParallelLayout
from gyges.transform.books import Move, WorkerBook, ranges_of
from gyges.transform.copies import CopyBatch
from gyges.transform.device import Device
from gyges.transform.host import HostShape
from gyges.transform.interpreter import Interpreter
from gyges.transform.memory import CpuMemory, DeviceMemory
from gyges.transform.ops import Barrier, Op
from gyges.transform.plan import WorkerTotals
from gyges.transform.shape import Transformation


@dataclass
class Runs:
    """A batch of copies, spelled out."""

    src: np.ndarray
    dst: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, batch: CopyBatch) -> Runs:
        src, dst = batch.src, batch.dst
        for count, a, b in batch.loops:
            steps = np.arange(count)
            src, dst = np.add.outer(src, steps * a), np.add.outer(dst, steps * b)
        lengths = np.broadcast_to(batch.lengths.reshape(-1, *[1] * len(batch.loops)), src.shape)
        return cls(src.ravel(), dst.ravel(), lengths.ravel())

    def elements(self, item: int) -> tuple[np.ndarray, np.ndarray]:
        for each in (self.src, self.dst, self.lengths):
            assert not (each % item).any(), "a copy cuts an element"
        counts = self.lengths // item
        inside = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.repeat(self.src // item, counts) + inside, np.repeat(self.dst // item, counts) + inside


class ModelRig:
    """Memory as int64 arrays, one number per element; checks what hardware would let pass.

    Between two barriers workers run as they like: so nothing that a peer reads may be written, mapped or given up by its owner.
    """

    def __init__(self, host: HostShape, layouts: dict[int, ParallelLayout]) -> None:
        self.host = host
        self.per_page = host.page_bytes // host.model.item_size
        self.books = {w: WorkerBook(host, w, layout) for w, layout in layouts.items()}
        self.content: dict[int, dict[str, np.ndarray]] = {}
        self.held: dict[int, dict[str, np.ndarray]] = {}
        for worker in layouts:
            sizes = ranges_of(host)
            self.content[worker] = {n: np.full(s * self.per_page, NEVER_MAPPED) for n, s in sizes.items()}
            self.held[worker] = {n: np.zeros(s, bool) for n, s in sizes.items()}
            self.map(worker, Move("resident", np.arange(sizes["resident"])))
            units = self.books[worker].ffn.units
            self.map(worker, Move("ffn0", units.slots(units.units)[0]))

    def mapped(self, worker: int, name: str) -> np.ndarray:
        return np.flatnonzero(self.held[worker][name])

    def mapped_pages(self, worker: int) -> int:
        return sum(int(each.sum()) for each in self.held[worker].values())

    def map(self, worker: int, move: Move) -> None:
        held = self.held[worker][move.range]
        assert len(np.unique(move.slots)) == len(move.slots), f"a slot of {move.range} is mapped twice in one go"
        assert not held[move.slots].any(), f"a slot of {move.range} is mapped twice"
        held[move.slots] = True
        self._fill(worker, move, FRESH)
        assert self.mapped_pages(worker) <= self.host.device_pages, f"worker {worker} exceeds its device"

    def unmap(self, worker: int, move: Move) -> None:
        held = self.held[worker][move.range]
        assert len(np.unique(move.slots)) == len(move.slots), f"a slot of {move.range} is unmapped twice in one go"
        assert held[move.slots].all(), f"a slot of {move.range} is unmapped and was not mapped"
        held[move.slots] = False
        self._fill(worker, move, UNMAPPED)

    def _fill(self, worker: int, move: Move, value: int) -> None:
        self.content[worker][move.range].reshape(-1, self.per_page)[move.slots] = value

    def write(self, worker: int, name: str, elements: np.ndarray, values: np.ndarray | int) -> None:
        assert self.held[worker][name][elements // self.per_page].all(), f"writes to an unmapped page of {name}"
        self.content[worker][name][elements] = values

    def read(self, worker: int, name: str, elements: np.ndarray) -> np.ndarray:
        assert self.held[worker][name][elements // self.per_page].all(), f"reads an unmapped page of {name}"
        return self.content[worker][name][elements]

    def check(self, worker: int) -> None:
        book = self.books[worker]
        assert book.mapped_pages == self.mapped_pages(worker)
        assert book.free_pages + self.mapped_pages(worker) == self.host.device_pages

    def run(self, shape: Transformation, ops: Sequence[Op]) -> dict[int, WorkerTotals]:
        """Op by op: all maps, then all copies, then all unmaps. What was done, counted here."""
        interpreters = {w: Interpreter(self.books[w]) for w in shape.wide}
        counted = {w: WorkerTotals() for w in shape.wide}
        for worker, total in counted.items():
            total.start_pages = total.peak_pages = self.mapped_pages(worker)
        self._new_segment()
        for op in ops:
            effects = {w: interpreters[w].apply(op) for w in shape.wide}
            if isinstance(op, Barrier):
                self._end_segment()
            for worker, effect in effects.items():
                for move in effect.map:
                    self.map(worker, move)
                    self._changed[worker, move.range].append(move.slots)
                    counted[worker].mapped_pages += len(move.slots)
                counted[worker].peak_pages = max(counted[worker].peak_pages, self.mapped_pages(worker))
            for worker, effect in effects.items():
                for batch in effect.copies:
                    self._copy(worker, batch, effect.part, counted[worker])
            for worker, effect in effects.items():
                for move in effect.unmap:
                    self.unmap(worker, move)
                    self._changed[worker, move.range].append(move.slots)
                    counted[worker].unmapped_pages += len(move.slots)
                self.check(worker)
        self._end_segment()
        for worker, total in counted.items():
            total.end_pages = self.mapped_pages(worker)
        return counted

    def _copy(self, worker: int, batch: CopyBatch, part: str, counted: WorkerTotals) -> None:
        runs, page = Runs.of(batch), self.host.page_bytes
        for starts in (runs.src, runs.dst):
            assert (starts // page == (starts + runs.lengths - 1) // page).all(), "a copy crosses a page"
        src, dst = runs.elements(self.host.model.item_size)
        assert len(np.unique(dst)) == len(dst), "a copy writes a value twice"
        own = batch.worker == worker
        if own and batch.src_range == batch.dst_range:
            assert not np.intersect1d(src, dst).size, "a copy overwrites what it reads"
        if not own:
            self._read[batch.worker, batch.src_range].append(src)
        self._written[worker, batch.dst_range].append(dst)
        self.write(worker, batch.dst_range, dst, self.read(batch.worker, batch.src_range, src))
        size = len(src) * self.host.model.item_size
        name = f"{part}_{'local' if own else 'peer'}_bytes"
        setattr(counted, name, getattr(counted, name) + size)
        name = f"{part}_descriptors"
        setattr(counted, name, getattr(counted, name) + len(runs.src))

    def _new_segment(self) -> None:
        self._read: dict[tuple[int, str], list[np.ndarray]] = defaultdict(list)  # elements, by owner
        self._written: dict[tuple[int, str], list[np.ndarray]] = defaultdict(list)
        self._changed: dict[tuple[int, str], list[np.ndarray]] = defaultdict(list)  # slots

    def _end_segment(self) -> None:
        for place, reads in self._read.items():
            read = np.unique(np.concatenate(reads))
            for written in self._written.get(place, ()):
                assert not np.isin(written, read).any(), f"{place} is written while a peer reads it"
            for slots in self._changed.get(place, ()):
                assert not np.isin(slots, read // self.per_page).any(), f"{place} is remapped while a peer reads it"
        self._new_segment()

    def close(self) -> None:
        pass


class DeviceRig:
    """Real pages in one process; the workers take turns, or run freely between barriers."""

    POISON = -2

    def __init__(
        self,
        host: HostShape,
        layouts: dict[int, ParallelLayout],
        *,
        threads: bool,
        memory: Callable[[], DeviceMemory] = CpuMemory,
    ) -> None:
        self.host, self.threads = host, threads
        self.per_page = host.page_bytes // 4
        assert host.model.item_size == 4
        self.devices = {w: Device(host, w, layout, memory=memory()) for w, layout in layouts.items()}
        for device in self.devices.values():
            self._poison_what_is_mapped(device)
            for worker, other in self.devices.items():
                device.connect(worker, other.pool.export())

    def _poison_what_is_mapped(self, device: Device) -> None:
        """Pages are recycled: without this, a copy that is not made could go unnoticed."""
        pool_map = device.pool.map

        def poisoned(where, slots):
            pool_map(where, slots)
            self._array(device, where.name).reshape(-1, self.per_page)[np.asarray(slots)] = self.POISON

        device.pool.map = poisoned  # type: ignore[method-assign]

    @staticmethod
    def _array(device: Device, name: str) -> np.ndarray:
        where = device.ranges[name]
        return np.frombuffer((ctypes.c_int32 * (where.length // 4)).from_address(where.address), np.int32)

    @property
    def books(self) -> dict[int, WorkerBook]:
        return {w: device.book for w, device in self.devices.items()}

    def mapped(self, worker: int, name: str) -> np.ndarray:
        return np.flatnonzero(self.devices[worker].ranges[name].table >= 0)

    def map(self, worker: int, move: Move) -> None:
        device = self.devices[worker]
        device.pool.map(device.ranges[move.range], move.slots)

    def unmap(self, worker: int, move: Move) -> None:
        device = self.devices[worker]
        device.pool.unmap(device.ranges[move.range], move.slots)

    def write(self, worker: int, name: str, elements: np.ndarray, values: np.ndarray | int) -> None:
        self._array(self.devices[worker], name)[elements] = values

    def read(self, worker: int, name: str, elements: np.ndarray) -> np.ndarray:
        assert np.isin(elements // self.per_page, self.mapped(worker, name)).all(), f"an unmapped page of {name}"
        return self._array(self.devices[worker], name)[elements]

    def check(self, worker: int) -> None:
        device = self.devices[worker]
        device.pool.check()
        assert device.pool.free_pages == device.book.free_pages
        assert device.pool.peak_mapped <= self.host.device_pages
        pages = np.concatenate([where.table[where.table >= 0] for where in device.ranges.values()])
        assert len(np.unique(pages)) == len(pages), "a page is in two places"

    def run(self, shape: Transformation, ops: Sequence[Op]) -> dict[int, WorkerTotals]:
        if self.threads:
            self._run_freely(shape, ops)
        else:
            for op in ops:
                for worker in shape.wide:
                    self.devices[worker].apply(op, wait=lambda: None)
        done = {}
        for worker in shape.wide:
            spent = self.devices[worker].spent.to_dict()
            done[worker] = WorkerTotals(**{name: spent[name] for name in WorkerTotals.__slots__})
        return done

    def _run_freely(self, shape: Transformation, ops: Sequence[Op]) -> None:
        barrier, failures = threading.Barrier(len(shape.wide)), []

        def work(worker: int) -> None:
            try:
                for op in ops:
                    self.devices[worker].apply(op, wait=lambda: barrier.wait(60) and None)
            except BaseException as error:
                failures.append(error)
                barrier.abort()

        threads = [threading.Thread(target=work, args=(worker,)) for worker in shape.wide]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for failure in failures:
            raise failure

    def close(self) -> None:
        for device in self.devices.values():
            device.close()

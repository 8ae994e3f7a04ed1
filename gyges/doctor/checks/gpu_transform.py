"""A merge and a split between two devices on one GPU; what was written is looked for afterwards. As the micro-benchmark on CPUs.

Both devices belong to this process and take turns, operation by operation; each has a pool of its own and reads the other's pages
as a peer does. So seconds are those of both together, and all copies are compared with the GPU's rate for one at a time.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from gyges.bench.transform.cell import Cell, Program, make_cell
from gyges.bench.transform.shapes import sizing
from gyges.bench.transform.tasks import Case
from gyges.config import GIB
from gyges.doctor.checks import goal
from gyges.doctor.checks.gpu import Gpu, copy_rate, first_gpu
from gyges.kv_cache.layouts import KVGeometry
from gyges.parallel.sharding import ParallelLayout
from gyges.transform.device import Device
from gyges.transform.interpreter import Effect
from gyges.transform.memory import CudaMemory

_DEGREE, _FILL = 2, 0.9
_AXES = ("group", "block", "layer", "shard", "head", "kv", "token", "dim")
_KEY_STEP = 40503


@dataclass(frozen=True)
class Size:
    """What to move: a shape's name, bytes of each device, and of the copies it is compared with."""

    model: str = "qwen2.5-32b"
    device_bytes: int = 8 * GIB
    copy_bytes: int = GIB
    layouts: tuple[str, ...] = ("shard-pages", "header-centric", "token-first")


def transformations(gpu: Gpu | None = None, size: Size | None = None) -> dict[str, Any]:
    """Figures by layout, padding and kind; the rate of copies before and after."""
    gpu, size = gpu or first_gpu(), size or Size()
    shape = sizing(size.model, _DEGREE, page_bytes=gpu.page_bytes, device_memory=size.device_bytes)
    before = copy_rate(gpu, size.copy_bytes)
    cells: dict[str, Any] = {}
    for index, (layout, padding, kernel) in enumerate(_cells(size)):
        case = Case(shape.model, shape.page_bytes, shape.device_pages, _DEGREE, layout, padding)
        cell = make_cell(case, _FILL)
        if not index:
            _Pair(gpu, cell, kernel).run()  # compiles the kernel
        name = f"{layout}, padding {'on' if padding else 'off'}{'' if kernel else ', driver copies'}"
        cells[name] = _Pair(gpu, cell, kernel).run()
    rate = (before + copy_rate(gpu, size.copy_bytes)) / 2
    for cell in cells.values():
        for kind in ("merge", "split"):
            for name, seconds in (("kv_of_copy", "kv_s"), ("kv_copies_of_copy", "kv_copy_s")):
                cell[kind][name] = cell[kind]["kv_bytes"] / cell[kind][seconds] / rate
    first = size.layouts[0]
    padded, packed = (cells[f"{first}, padding {which}"]["merge"] for which in ("on", "off"))
    share, copied = padded["kv_of_copy"], float(padded["weights_bytes"])
    goals = [
        goal(f"KV of a merge, {first}, 90 % full, of the copy rate", "at least 0.7x", 0.7, share, unit="ratio"),
        goal("weights copied in a merge with padding", "none", 0, copied, unit="bytes", least=False),
    ]
    figures = {
        "model": size.model, "layers": shape.model.num_layers, "device_bytes": size.device_bytes,
        "copy_bytes_per_s": rate, "cells": cells,
    }  # fmt: skip
    weights = f"{padded['weights_s'] * 1e3:.1f} ms with padding, {packed['weights_s'] * 1e3:.1f} without"
    text = f"KV at {share:.0%} of the copy rate; weights of {shape.model.num_layers} layers {weights}"
    return {"figures": figures, "goals": goals, "summary": text}


def _cells(size: Size) -> list[tuple[str, bool, bool]]:
    """(layout, padding, kernel): with the page copy kernel, and the first layout with the driver's copies too."""
    found = [(layout, padding, True) for layout in size.layouts for padding in (True, False)]
    return [*found, (size.layouts[0], True, False)]


class _Pair:
    """Two devices with the blocks of a cell written to them."""

    def __init__(self, gpu: Gpu, cell: Cell, kernel: bool) -> None:
        self.cell, self.host = cell, cell.case.host()
        alone = ParallelLayout(1, 0, self.host.shards)
        self.devices = [
            Device(self.host, worker, alone, memory=CudaMemory(gpu.driver(), gpu.stream, kernel=kernel))
            for worker in range(_DEGREE)
        ]
        self.pattern: Any = None

    def run(self) -> dict[str, Any]:
        try:
            for device in self.devices:
                for worker, other in enumerate(self.devices):
                    device.connect(worker, other.pool.export())
            self._write()
            found = {}
            for program in (self.cell.merge, self.cell.split):
                found[program.kind] = self._carry_out(program)
                self._check(program)
            return found
        finally:
            for device in self.devices:
                device.close()

    def _carry_out(self, program: Program) -> dict[str, Any]:
        began = time.perf_counter()
        for op in program.ops:
            for device in self.devices:
                device.apply(op, wait=lambda: None)
        total = time.perf_counter() - began
        spent = [device.spent for device in self.devices]
        return {
            "total_s": total,
            "kv_s": sum(s.map_s + s.unmap_s + s.kv_host_s for s in spent),
            "kv_copy_s": sum(s.peer_copy_s + s.local_copy_s for s in spent),
            "map_s": sum(s.map_s for s in spent),
            "unmap_s": sum(s.unmap_s for s in spent),
            "weights_s": sum(s.weights_s for s in spent),
            "kv_bytes": sum(s.kv_peer_bytes + s.kv_local_bytes for s in spent),
            "kv_descriptors": sum(s.kv_descriptors for s in spent),
            "weights_bytes": sum(s.weights_peer_bytes + s.weights_local_bytes for s in spent),
            "mapped_pages": sum(s.mapped_pages for s in spent),
            "unmapped_pages": sum(s.unmapped_pages for s in spent),
        }

    # -- content: what is where, as the model and the layout say, not as the copies do ---------------------------------

    def _write(self) -> None:
        for worker, (device, blocks) in enumerate(zip(self.devices, self.cell.blocks, strict=True)):
            device.carry_out(Effect(map=[device.book.kv.hold(blocks)]))
            view = self._view(device)
            self._make_pattern(view)
            for ordinal, block in enumerate(blocks.tolist()):
                group, inside = divmod(block, device.book.kv.geometry.blocks_per_group)
                view[group, inside] = self.pattern + self._key(worker, ordinal)
            for unit, number in self._units(device):
                unit.fill_(number)
            device.memory.wait()
            device.pool.driver.wait()  # type: ignore[attr-defined]

    def _make_pattern(self, view: Any) -> None:
        import torch

        if self.pattern is None:
            generator = torch.Generator().manual_seed(7)
            drawn = torch.randint(-(1 << 15), 1 << 15, tuple(view.shape[2:]), generator=generator, dtype=view.dtype)
            self.pattern = drawn.to(view.device)

    @staticmethod
    def _key(narrow: int, ordinal: int) -> int:
        return (narrow * 9973 + ordinal) * _KEY_STEP % 32768

    def _view(self, device: Device) -> Any:
        """Integers [group, block, layer, shard, head, kv, token, dim] over the KV range; touch only what is mapped."""
        import torch

        side = device.book.kv
        geometry: KVGeometry = side.geometry
        where = device.ranges[side.range]
        dtype = {2: torch.int16, 4: torch.int32}[geometry.item_size]
        flat = where.tensor(dtype, (where.num_pages * geometry.page_bytes // geometry.item_size,))
        return torch.as_strided(flat, [geometry.sizes[a] for a in _AXES], [geometry.strides[a] for a in _AXES])

    def _units(self, device: Device) -> list[tuple[Any, int]]:
        """(int16 tensor over an FFN unit that the device holds, what it is filled with)."""
        import torch

        side, found = device.book.ffn, []
        for (layer, shard), at in side.units.units.items():
            if shard in side.layout.ffn_shards:
                tensor = device.ranges[side.range].tensor(torch.int16, (side.units.sizes[shard] // 2,), at)
                found.append((tensor, (layer * self.host.shards.ffn + shard) % 32767 + 1))
        return found

    def _check(self, program: Program) -> None:
        for worker, device in enumerate(self.devices):
            device.pool.check()
            side = device.book.kv
            view, held = self._view(device), side.layout.kv_shards
            first = side.local_shard(held.start)
            want = self.pattern[:, held.start : held.stop]
            for narrow, (blocks, holders) in enumerate(zip(program.blocks, program.holders, strict=True)):
                if worker in holders:
                    wrong = self._wrong(view, blocks, slice(first, first + len(held)), want, narrow, side.geometry)
                    assert not wrong, f"after a {program.kind}, {wrong} KV blocks of device {worker} are wrong"
            broken = sum(not bool((unit == number).all()) for unit, number in self._units(device))
            assert not broken, f"after a {program.kind}, {broken} FFN units of device {worker} are wrong"

    def _wrong(self, view: Any, blocks: np.ndarray, shards: slice, want: Any, narrow: int, geometry: KVGeometry) -> int:
        import torch

        wrong = 0
        for ordinal, block in enumerate(blocks.tolist()):
            group, inside = divmod(block, geometry.blocks_per_group)
            wrong += not torch.equal(view[group, inside][:, shards], want + self._key(narrow, ordinal))
        return wrong

"""A self-test of the Triton kernels on the device at hand: each against its twin, in every layout, fp32 and bf16.

Short, and with nothing but the library: what ``gyges doctor`` can run where there is no checkout. The test suite does more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch

from gyges.core import ModelGeometry
from gyges.errors import EngineError
from gyges.kernels import reference
from gyges.kernels.base import KernelSet
from gyges.kernels.sets import make_kernels
from gyges.kv_cache.layouts import LAYOUTS, KVGeometry

Document = dict[str, Any]

_BLOCK, _BLOCKS, _HEADS, _GROUP = 16, 40, 2, 5
# Largest differences allowed. bf16: of tensor cores, which round the softmax weights, and of a stored value's last place.
_LIMITS = {torch.float32: 1e-4, torch.bfloat16: 3e-2}


@dataclass(frozen=True, slots=True)
class Sizes:
    """``lengths``: contexts of decode rows.   chunk: start and tokens of a prompt's piece. At most 300 tokens each."""

    dim: int = 128
    lengths: tuple[int, ...] = (1, 16, 97, 300)
    chunk: tuple[int, int] = (70, 75)


def check_kernels(device: torch.device, sizes: Sizes = Sizes()) -> Document:
    """``worst``: the largest difference by kernel and dtype. Raises EngineError if one is over its limit, UserError where Triton
    kernels cannot run."""
    kernels = make_kernels(device, "triton")
    worst: dict[str, float] = {}
    cases = 0
    for layout, dtype in product(LAYOUTS.names(), _LIMITS):
        scene = _Scene(layout, dtype, kernels, sizes)
        for name, difference in scene.differences():
            cases += 1
            key = f"{name}, {str(dtype).removeprefix('torch.')}"
            worst[key] = max(worst.get(key, 0.0), difference)
            if not difference <= _LIMITS[dtype]:
                raise EngineError(
                    f"{name} is {difference:.2g} off its twin in {layout}, {dtype}; at most {_LIMITS[dtype]:.0e} is rounding"
                )
    for name, work in (("page copy", _copies), ("all-reduce", _all_reduce)):
        cases += 1
        worst[name] = work(device)
        if worst[name]:
            raise EngineError(f"{name} is not exact: {worst[name]:.2g} off its twin")
    return {"cases": cases, "worst": worst}


class _Scene:
    """A random cache of two layers, of which the second is used."""

    def __init__(self, layout: str, dtype: torch.dtype, kernels: KernelSet, sizes: Sizes) -> None:
        model = ModelGeometry(2, 64, _HEADS * _GROUP, _HEADS, sizes.dim, 64, 64, dtype.itemsize, False)
        self.geometry = geometry = KVGeometry.build(
            LAYOUTS.get(layout), model, block_size=_BLOCK, num_shards=_HEADS, local_shards=_HEADS, num_blocks=_BLOCKS,
            page_bytes=1 << 16,
        )  # fmt: skip
        self.kernels, self.dtype, self.sizes, self.scale = kernels, dtype, sizes, sizes.dim**-0.5
        self.draw = torch.Generator().manual_seed(11)
        self.flat = torch.randn(geometry.range_pages * geometry.page_elements, generator=self.draw).to(dtype)
        self.heads = np.array(geometry.head_offsets(range(_HEADS)), np.int64)
        self.strides = (geometry.strides["kv"], geometry.strides["token"], _BLOCK)
        self.paged = kernels.cache(self.flat.to(kernels.device), self.heads, *self.strides)
        self.base = geometry.strides["layer"]
        order = torch.randperm(_BLOCKS, generator=self.draw).tolist()
        self.offsets = np.array([geometry.block_offset(block) for block in order], np.int64)

    def differences(self) -> Iterator[tuple[str, float]]:
        yield "decode attention", self._decode()
        yield "prefill attention", self._prefill()
        yield "KV write", self._write()

    def _random(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.draw).to(self.dtype)

    def _context(self, table: np.ndarray, length: int) -> torch.Tensor:
        heads = torch.from_numpy(self.heads)
        return reference.context(
            self.flat, self.base, torch.from_numpy(table), length, heads, *self.strides, self.sizes.dim
        )

    def _decode(self) -> float:
        q = self._random(len(self.sizes.lengths), _HEADS, _GROUP, self.sizes.dim)
        tables = np.stack([np.roll(self.offsets, -3 * row)[:20] for row in range(len(self.sizes.lengths))])
        out = torch.empty(q.shape, device=self.kernels.device)
        array = self.kernels.array
        self.kernels.decode_attention(
            q.to(out.device),
            self.paged,
            self.base,
            array(tables),
            array(np.array(self.sizes.lengths, np.int64)),
            self.scale,
            out,
        )
        return max(
            _worst(
                out[row].reshape(1, -1, self.sizes.dim),
                reference.attend(
                    q[row].reshape(1, -1, self.sizes.dim), self._context(tables[row], length), length - 1, self.scale
                ),
            )
            for row, length in enumerate(self.sizes.lengths)
        )

    def _prefill(self) -> float:
        start, count = self.sizes.chunk
        q = self._random(count, _HEADS * _GROUP, self.sizes.dim)
        out = torch.empty(q.shape, device=self.kernels.device)
        table = self.offsets[:20]
        self.kernels.prefill_attention(
            q.to(out.device), self.paged, self.base, self.kernels.array(table), start, self.scale, out
        )
        return _worst(out, reference.attend(q, self._context(table, start + count), start, self.scale))

    def _write(self) -> float:
        n = 9
        q, kv = self._random(n, _HEADS * _GROUP, self.sizes.dim), self._random(n, _HEADS, 2, 1, self.sizes.dim)
        angles = torch.rand((50, self.sizes.dim // 2), generator=self.draw)
        cos, sin = angles.cos(), angles.sin()
        positions = np.arange(20, 20 + n)
        slots = self.offsets[:n] + np.arange(n) * self.strides[1]
        array = self.kernels.array
        rotated = self.kernels.rope_write(
            q.to(self.kernels.device, copy=True), kv.to(self.kernels.device), array(cos.numpy()), array(sin.numpy()),
            array(positions), array(slots), self.paged, self.base,
        )  # fmt: skip
        want, own = self.flat.clone(), torch.from_numpy(slots)
        reference.write_kv(
            kv, cos[positions], sin[positions], own, want, self.base, torch.from_numpy(self.heads), self.strides[0]
        )
        return max(
            _worst(rotated, reference.rotate(q, cos[positions], sin[positions])),
            _worst(self.paged.values, want.float()),
        )


def _worst(got: torch.Tensor, want: torch.Tensor) -> float:
    """NaN counts as infinitely far."""
    difference = (got.detach().cpu().float() - want.float()).abs().max().item()
    return float("inf") if difference != difference else difference


def _copies(device: torch.device) -> float:
    from gyges.kernels.triton.copy import copy_runs

    draw = torch.Generator().manual_seed(5)
    src, dst = (torch.randint(0, 256, (1 << 16,), dtype=torch.uint8, generator=draw) for _ in range(2))
    starts = np.arange(4) * 8192
    worst = 0.0
    for unit in (16, 8, 2, 1):  # bytes that everything is a multiple of
        to, lengths, loops = starts[::-1] + unit, np.full(4, 24 * unit, np.int64), ((3, 40 * unit, 32 * unit),)
        want, got = dst.clone(), dst.to(device, copy=True)
        reference.copy_runs(want, src, to.tolist(), starts.tolist(), lengths.tolist(), loops)
        copy_runs(got, src.to(device), to, starts, lengths, loops)
        worst = max(worst, _worst(got, want))
    return worst


def _all_reduce(device: torch.device) -> float:
    """Buffers of one device stand for peers'; nobody waits for anybody."""
    from gyges.kernels.triton.allreduce import PeerBuffers, all_reduce

    draw = torch.Generator().manual_seed(6)
    parts = [torch.randint(-8, 8, (5000,), generator=draw).float() for _ in range(4)]
    there = [part.to(device) for part in parts]
    out = torch.empty(5000, device=device)
    all_reduce(out, PeerBuffers([p.data_ptr() for p in there], [0] * 4, 2, device), synchronize=False)
    return _worst(out, reference.all_reduce(parts))

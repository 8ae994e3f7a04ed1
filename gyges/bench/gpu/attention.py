"""Paged decode attention: bytes of KV cache read per second, as a share of the copy bandwidth of the same run.

    bytes      K and V of every token of every row, of one layer
    of_copy    bytes / seconds / copy bandwidth (read plus written bytes)
    sdpa       torch's scaled_dot_product_attention on K and V that were gathered before, contiguous; the gathering is not counted

Blocks lie in random order. Layers are cut to what the memory holds, with the block size of the whole model, so that a block's
piece of one layer is as long as it would be; where there are several, each repeat reads another.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from gyges.bench.gpu.clock import DeviceClock
from gyges.bench.run import spread
from gyges.bench.transform.shapes import CUDA_PAGE, SHAPES
from gyges.core import ModelGeometry
from gyges.kernels.base import KernelSet, PagedCache
from gyges.kernels.sets import make_kernels
from gyges.kv_cache.layouts import LAYOUTS, KVGeometry, choose_block_size

Progress = Callable[[str], None]
Document = dict[str, Any]

_MAX_LAYERS = 4
_MEMORY_SHARE = 0.35  # of what is free, for the cache; SDPA's gathered copy of one layer comes on top


@dataclass(frozen=True, slots=True)
class AttentionBench:
    """``memory_bytes``: for one cache; 0: a share of what the device has free.   copy_bytes: of the copy that sets the ceiling.
    deadline_s: no case is begun after it."""

    shapes: tuple[str, ...] = ("llama3-8b", "qwen2.5-32b")
    layouts: tuple[str, ...] = tuple(LAYOUTS.names())
    contexts: tuple[int, ...] = (8192, 65536)
    batches: tuple[int, ...] = (1, 4, 16, 64)
    repeats: int = 20
    memory_bytes: int = 0
    copy_bytes: int = 1 << 30
    page_bytes: int = CUDA_PAGE
    deadline_s: float = math.inf
    kernels: str = "auto"


class PagedContext:
    """Random KV content of ``batch`` requests of ``context`` tokens each, in one layout on one device."""

    def __init__(
        self, model: ModelGeometry, layout: str, batch: int, context: int, page_bytes: int, memory_bytes: int,
        kernels: KernelSet,
    ) -> None:  # fmt: skip
        shards = model.num_kv_heads  # as for the highest degree: a shard is one head
        kv_layout = LAYOUTS.get(layout)
        block = choose_block_size(kv_layout, model, shards, page_bytes)
        per_request = -(-context // block)
        per_layer = batch * per_request * block * model.kv_bytes_per_token // model.num_layers
        self.layers = min(_MAX_LAYERS, model.num_layers, max(1, memory_bytes // per_layer))
        # The same share of a page per layer as in the whole model.
        page = page_bytes * self.layers // model.num_layers if kv_layout.name == "shard-pages" else page_bytes
        cut = replace(model, num_layers=self.layers)
        self.geometry = geometry = KVGeometry.build(
            kv_layout, cut, block_size=block, num_shards=shards, local_shards=shards, num_blocks=batch * per_request,
            page_bytes=page,
        )  # fmt: skip
        self.bytes_per_layer = batch * context * 2 * model.num_kv_heads * model.head_dim * model.item_size
        elements = geometry.range_pages * geometry.page_elements
        dtype = torch.bfloat16 if model.item_size == 2 else torch.float32
        self.flat = torch.empty(elements, dtype=dtype, device=kernels.device).normal_()
        heads = np.array(geometry.head_offsets(range(shards)), np.int64)
        strides = geometry.strides
        self.paged: PagedCache = kernels.cache(self.flat, heads, strides["kv"], strides["token"], block)
        order = np.random.default_rng(0).permutation(batch * per_request)
        offsets = np.array([geometry.block_offset(int(b)) for b in order], np.int64).reshape(batch, per_request)
        self.tables = kernels.array(offsets)
        self.lengths = kernels.array(np.full(batch, context, np.int64))
        self._offsets, self._heads, self._context = offsets, heads, context

    @property
    def total_bytes(self) -> int:
        return self.flat.numel() * self.flat.itemsize

    def base(self, index: int) -> int:
        """Element offset of the layer that repeat ``index`` reads."""
        return index % self.layers * self.geometry.strides["layer"]

    def gather(self, layer: int, dim: int) -> torch.Tensor:
        """K and V of one layer, contiguous [2, B, K, T, D]."""
        device, strides, block = self.flat.device, self.geometry.strides, self.geometry.block_size
        token = torch.arange(self._context, device=device)
        at = torch.from_numpy(self._offsets).to(device)[:, token // block] + token % block * strides["token"]
        at = at[:, None] + torch.from_numpy(self._heads).to(device)[None, :, None] + layer * strides["layer"]
        out = torch.empty((2, *at.shape, dim), dtype=self.flat.dtype, device=device)
        for kv, row in product(range(2), range(len(at))):
            where = at[row] + kv * strides["kv"]
            out[kv, row] = self.flat[where[..., None] + torch.arange(dim, device=device)]
        return out


def measure_attention(bench: AttentionBench, device: torch.device, progress: Progress = lambda _: None) -> Document:
    """One entry of ``cases`` per shape, context, batch and layout; what did not fit or was not reached is in ``skipped``."""
    kernels = make_kernels(device, bench.kernels)
    clock = DeviceClock(device)
    ends = time.monotonic() + bench.deadline_s
    copy = clock.copy_bytes_per_s(bench.copy_bytes)
    cases: list[Document] = []
    skipped: list[Document] = []
    for shape, context, batch in product(bench.shapes, bench.contexts, bench.batches):
        sdpa_s: list[float] | None = None
        for layout in bench.layouts:
            named = {"shape": shape, "context": context, "batch": batch, "layout": layout}
            memory = bench.memory_bytes or free_bytes(device) * _MEMORY_SHARE
            model = SHAPES.get(shape).geometry
            need = batch * context * model.kv_bytes_per_token // model.num_layers
            if need > memory:
                skipped.append(named | {"reason": f"one layer takes {need} bytes, and {int(memory)} may be used"})
            elif time.monotonic() > ends:
                skipped.append(named | {"reason": "out of time"})
            else:
                case, sdpa_s = _case(bench, kernels, clock, model, named, int(memory), sdpa_s)
                case["of_copy"] = case["bytes_per_s"] / copy
                cases.append(case)
                progress(f"attention: {shape}, {batch} x {context} tokens, {layout}: {case['of_copy']:.0%} of copy")
    return {"copy_bytes_per_s": copy, "kernels": kernels.name, "cases": cases, "skipped": skipped}


def _case(
    bench: AttentionBench, kernels: KernelSet, clock: DeviceClock, model: ModelGeometry, named: Document, memory: int,
    sdpa_s: list[float] | None,
) -> tuple[Document, list[float]]:  # fmt: skip
    batch, dim, group = named["batch"], model.head_dim, model.num_heads // model.num_kv_heads
    kv = PagedContext(model, named["layout"], batch, named["context"], bench.page_bytes, memory, kernels)
    q = torch.randn((batch, model.num_kv_heads, group, dim), device=clock.device)
    q = q if kernels.name == "cpu" else q.to(kv.flat.dtype)
    out, scale = torch.empty_like(q), dim**-0.5

    def attend(index: int) -> None:
        kernels.decode_attention(q, kv.paged, kv.base(index), kv.tables, kv.lengths, scale, out)

    seconds = clock.measure(attend, repeats=bench.repeats)
    if sdpa_s is None:  # the same whatever the layout
        sdpa_s = _sdpa_s(kv, q, scale, clock, bench.repeats)
    median = statistics.median(seconds)
    return named | {
        "block_size": kv.geometry.block_size,
        "layers": kv.layers,
        "bytes": kv.bytes_per_layer,
        "seconds": spread(seconds),
        "bytes_per_s": kv.bytes_per_layer / median,
        "sdpa_seconds": spread(sdpa_s),
        "sdpa_over_own": statistics.median(sdpa_s) / median if sdpa_s else None,
    }, sdpa_s


def _sdpa_s(kv: PagedContext, q_BKGD: torch.Tensor, scale: float, clock: DeviceClock, repeats: int) -> list[float]:
    """None measured where the gathered K and V do not fit beside the cache."""
    batch, kv_heads, group, dim = q_BKGD.shape
    try:
        k, v = kv.gather(0, dim)
        query = q_BKGD.view(batch, kv_heads * group, 1, dim).to(k.dtype)
        return clock.measure(
            lambda _: F.scaled_dot_product_attention(query, k, v, scale=scale, enable_gqa=True), repeats=repeats
        )
    except torch.OutOfMemoryError:
        return []


def free_bytes(device: torch.device) -> int:
    """Memory that is free on the device (a CPU: of the machine)."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return int(psutil.virtual_memory().available)


def layout_spread(cases: Iterable[Document], baseline: str = "token-first") -> list[Document]:
    """How much slower each other layout is than ``baseline``, case by case: 0.05 is 5 %."""
    by_case: dict[tuple[Any, ...], dict[str, float]] = {}
    for case in cases:
        key = (case["shape"], case["context"], case["batch"])
        by_case.setdefault(key, {})[case["layout"]] = case["seconds"]["median"]
    return [
        {"shape": shape, "context": context, "batch": batch, "layout": layout, "slower": s / times[baseline] - 1}
        for (shape, context, batch), times in by_case.items()
        if baseline in times
        for layout, s in times.items()
        if layout != baseline
    ]

"""A whole decode step: seconds, and the share of its bandwidth floor.

floor        (bytes of all weights + K and V of every row's context) / bytes per second that a plain copy moves
of_floor     floor / seconds: 1 would be a step that does nothing but read what it must at the speed of a copy
graph        the same step launched as one CUDA graph (GPU only)
transformers the same config with random weights in transformers, on a cache of the same length
"""

from __future__ import annotations

import inspect
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from gyges.bench.gpu.clock import DeviceClock
from gyges.bench.gpu.model import LocalModel
from gyges.bench.run import spread
from gyges.bench.transform.shapes import CUDA_PAGE, SHAPES
from gyges.kernels.base import KernelSet
from gyges.kernels.sets import make_kernels
from gyges.kv_cache.layouts import LAYOUTS, choose_block_size
from gyges.models.decoder import StepBatch
from gyges.models.graphs import DecodeGraphs

Progress = Callable[[str], None]
Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class StepBench:
    """``context``: tokens that every row has before the step."""

    shape: str = "llama3-8b"
    dtype: str = "bfloat16"
    layout: str = "shard-pages"
    batches: tuple[int, ...] = (1, 16, 64)
    context: int = 1024
    repeats: int = 20
    page_bytes: int = CUDA_PAGE
    copy_bytes: int = 1 << 30
    kernels: str = "auto"
    beside_transformers: bool = True


def measure_steps(bench: StepBench, device: torch.device, progress: Progress = lambda _: None) -> Document:
    """One entry of ``steps`` per batch size."""
    clock = DeviceClock(device)
    copy = clock.copy_bytes_per_s(bench.copy_bytes)
    kernels = make_kernels(device, bench.kernels)
    with torch.inference_mode():
        steps = _own_steps(bench, kernels, clock, copy, progress)
        if bench.beside_transformers:
            if device.type == "cuda":
                torch.cuda.empty_cache()
            for step, seconds in zip(steps, _transformers_s(bench, clock), strict=True):
                step["transformers_seconds"] = spread(seconds)
    return {
        "shape": bench.shape,
        "dtype": bench.dtype,
        "layout": bench.layout,
        "context": bench.context,
        "kernels": kernels.name,
        "copy_bytes_per_s": copy,
        "steps": steps,
    }


def _own_steps(
    bench: StepBench, kernels: KernelSet, clock: DeviceClock, copy: float, progress: Progress
) -> list[Document]:
    config = SHAPES.get(bench.shape).decoder
    geometry = config.geometry(bench.dtype)
    block = choose_block_size(LAYOUTS.get(bench.layout), geometry, geometry.num_kv_heads, bench.page_bytes)
    per_row = bench.context // block + 1
    model = LocalModel(
        config, kernels, dtype=getattr(torch, bench.dtype), layout=bench.layout, num_blocks=max(bench.batches) * per_row,
        block_size=block, page_bytes=bench.page_bytes, max_positions=bench.context + 1,
    )  # fmt: skip
    graphs = None
    if clock.device.type == "cuda":
        graphs = DecodeGraphs(model.decoder, model.weights, model.kv, model.layout, model.comm, per_row)
        graphs.capture(bench.batches)
    steps: list[Document] = []
    for batch in bench.batches:
        step = model.batch([(1, bench.context, range(row * per_row, (row + 1) * per_row)) for row in range(batch)])
        seconds = {"seconds": clock.measure(partial(_call, model.forward, step), repeats=bench.repeats)}
        if graphs is not None:
            seconds["graph_seconds"] = clock.measure(partial(_call, graphs.forward, step), repeats=bench.repeats)
        moved = model.read_bytes + batch * (bench.context + 1) * model.kv_bytes_per_token
        floor, best = moved / copy, min(statistics.median(each) for each in seconds.values())
        steps.append(
            {"batch": batch, "floor_s": floor, "of_floor": floor / best} | {k: spread(v) for k, v in seconds.items()}
        )
        progress(f"step: {bench.shape}, batch {batch}: {best * 1e3:.2f} ms, {floor / best:.0%} of its floor")
    return steps


def _call(work: Callable[[StepBatch], Any], batch: StepBatch, _: int) -> None:
    work(batch)


def _transformers_s(bench: StepBench, clock: DeviceClock) -> Sequence[list[float]]:
    """Seconds of one decode step per batch size, with transformers' default cache and fused attention."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.cache_utils import DynamicCache

    shape, dtype = SHAPES.get(bench.shape), getattr(torch, bench.dtype)
    settings, config = AutoConfig.for_model(**shape.config), shape.decoder
    with torch.device(clock.device):
        model = AutoModelForCausalLM.from_config(settings, dtype=dtype, attn_implementation="sdpa").eval()
    per_row = (config.num_kv_heads, bench.context, config.head_dim)
    # transformers 5.40 renames the argument.
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    found = []
    for batch in bench.batches:
        cache = DynamicCache()
        for layer in range(config.num_layers):
            kv = torch.randn((2, batch, *per_row), dtype=dtype, device=clock.device)
            cache.update(kv[0], kv[1], layer)
        token = torch.ones((batch, 1), dtype=torch.int64, device=clock.device)

        def step(_: int, token: torch.Tensor = token, cache: Any = cache) -> None:
            model(token, **{name: cache}, use_cache=True)
            cache.crop(-1)

        found.append(clock.measure(step, repeats=bench.repeats))
    return found

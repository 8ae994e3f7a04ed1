"""Moving KV blocks with the page copy kernel: bytes moved per second, as a share of a plain copy of as many bytes.

    transfer      a shard of every block goes from one range to another, as a merge moves it between workers
    compaction    the shards that stay are packed into fresh pages (layouts whose shards share pages)

Source and destination are ranges of one device. What moves between GPUs, with pages mapped and unmapped, is the engine's own
transformation, not this.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from gyges.bench.gpu.clock import DeviceClock
from gyges.bench.run import spread
from gyges.bench.transform.shapes import CUDA_PAGE, SHAPES
from gyges.kv_cache.layouts import LAYOUTS, KVGeometry, choose_block_size
from gyges.transform.copies import kv_copies

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class CopyBench:
    """``kv_bytes``: of KV cache before the merge, on this worker.   degree: of the merge."""

    shape: str = "llama3-8b"
    layouts: tuple[str, ...] = tuple(LAYOUTS.names())
    degree: int = 4
    kv_bytes: int = 4 << 30
    page_bytes: int = CUDA_PAGE
    layers: int = 0
    repeats: int = 10


def measure_copies(bench: CopyBench, device: torch.device) -> Document:
    """One entry per layout. Raises UserError (of ``require_triton``) where Triton kernels cannot run."""
    from gyges.kernels.triton import require_triton

    require_triton(device)
    clock = DeviceClock(device)
    return {
        "shape": bench.shape,
        "degree": bench.degree,
        "layouts": [_layout(bench, layout, clock) for layout in bench.layouts],
    }


def _layout(bench: CopyBench, name: str, clock: DeviceClock) -> Document:
    from gyges.kernels.triton.copy import copy_runs

    layout, model = LAYOUTS.get(name), SHAPES.get(bench.shape).geometry
    model = replace(model, num_layers=bench.layers or model.num_layers)
    shards = bench.degree
    block = choose_block_size(layout, model, shards, bench.page_bytes)
    blocks = max(1, bench.kv_bytes // (block * model.kv_bytes_per_token))

    def geometry(local: int) -> KVGeometry:
        return KVGeometry.build(
            layout, model, block_size=block, num_shards=shards, local_shards=local, num_blocks=blocks,
            page_bytes=bench.page_bytes,
        )  # fmt: skip

    front, back = geometry(shards), geometry(1)
    own = shards - 1 if layout.shards_leave_whole else 0
    src, dst = (
        torch.zeros(g.range_pages * bench.page_bytes, dtype=torch.uint8, device=clock.device) for g in (front, back)
    )
    ids = np.random.default_rng(0).permutation(blocks)
    batch = kv_copies(0, ("front", "back"), (front, back), (shards - 1, own), ids, ids)
    seconds = clock.measure(
        lambda _: copy_runs(dst, src, batch.dst, batch.src, batch.lengths, batch.loops), repeats=bench.repeats
    )
    moved = batch.bytes
    plain = clock.copy_bytes_per_s(moved, repeats=bench.repeats) / 2
    return {
        "layout": name,
        "kind": "transfer" if layout.shards_leave_whole else "compaction",
        "bytes": moved,
        "runs": batch.descriptors,
        "run_bytes": int(np.median(batch.lengths)),
        "seconds": spread(seconds),
        "bytes_per_s": moved / statistics.median(seconds),
        "copy_bytes_per_s": plain,
        "of_copy": moved / statistics.median(seconds) / plain,
    }

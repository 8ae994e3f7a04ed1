"""Which launch parameters of Triton's decode attention are the fastest on the device at hand."""

from __future__ import annotations

import math
import statistics
import time
from itertools import product
from typing import Any

import torch

from gyges.bench.gpu.attention import PagedContext
from gyges.bench.gpu.clock import DeviceClock
from gyges.bench.transform.shapes import CUDA_PAGE, SHAPES
from gyges.kernels.sets import make_kernels

Document = dict[str, Any]


def tune_decode(
    device: torch.device, shape: str = "llama3-8b", batch: int = 16, context: int = 8192, *, repeats: int = 10,
    page_bytes: int = CUDA_PAGE, memory_bytes: int = 4 << 30, deadline_s: float = 60.0,
) -> list[Document]:  # fmt: skip
    """Launch parameters of the Triton kernel on one case of `shard-pages`, fastest first; as many as fit the deadline.

    What is better here than the default belongs into :class:`gyges.kernels.triton.decode.DecodeTuning`.
    """
    kernels = make_kernels(device, "triton")
    from triton.runtime.errors import OutOfResources

    from gyges.kernels.triton.decode import DecodeTuning, decode_attention

    model, ends = SHAPES.get(shape).geometry, time.monotonic() + deadline_s
    kv = PagedContext(model, "shard-pages", batch, context, page_bytes, memory_bytes, kernels)
    group = model.num_heads // model.num_kv_heads
    q = torch.randn((batch, model.num_kv_heads, group, model.head_dim), device=device).to(kv.flat.dtype)
    out, clock, found = torch.empty_like(q), DeviceClock(device), []
    sms = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    for tile, warps, stages in product((64, 128, 32), (4, 8), (3, 2, 4)):
        if found and time.monotonic() > ends:
            break
        tuning = DecodeTuning(tile=tile, warps=warps, stages=stages)

        def attend(index: int, tuning: DecodeTuning = tuning) -> None:
            decode_attention(
                q, kv.paged, kv.base(index), kv.tables, kv.lengths, model.head_dim**-0.5, out, tuning=tuning,
                multiprocessors=sms,
            )  # fmt: skip

        try:
            seconds = statistics.median(clock.measure(attend, repeats=repeats))
        except OutOfResources as error:  # more shared memory than there is
            found.append({"tile": tile, "warps": warps, "stages": stages, "error": str(error).splitlines()[0]})
            continue
        rate = kv.bytes_per_layer / seconds
        found.append({"tile": tile, "warps": warps, "stages": stages, "seconds": seconds, "bytes_per_s": rate})
    return sorted(found, key=lambda row: row.get("seconds", math.inf))

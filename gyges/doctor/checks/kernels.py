"""The CPU kernels against gyges.kernels.reference, in every KV layout. No tests folder is needed for this."""

from __future__ import annotations

from typing import Any

_DIM, _BLOCK, _BLOCKS, _SHARDS = 16, 7, 24, 4


def cpu() -> dict[str, Any]:
    import numpy as np
    import torch

    from gyges.core import ModelGeometry
    from gyges.kernels import cpu as fast
    from gyges.kernels import reference
    from gyges.kv_cache.layouts import LAYOUTS, KVGeometry

    worst: dict[str, float] = {}
    for name in LAYOUTS.names():
        for dtype in (torch.float32, torch.bfloat16):
            model = ModelGeometry(2, 64, 8, _SHARDS, _DIM, 64, 64, dtype.itemsize, False)
            geometry = KVGeometry.build(
                LAYOUTS.get(name), model, block_size=_BLOCK, num_shards=_SHARDS, local_shards=_SHARDS, num_blocks=_BLOCKS,
                page_bytes=4096,
            )  # fmt: skip
            generator = torch.Generator().manual_seed(7)
            cache = torch.randn(geometry.range_pages * 4096 // dtype.itemsize, generator=generator).to(dtype)
            raw = cache.view(torch.uint16).numpy() if dtype == torch.bfloat16 else cache.numpy()
            heads = np.array(geometry.head_offsets(range(_SHARDS)), np.int64)
            strides = (geometry.strides["kv"], geometry.strides["token"], geometry.block_size)
            order = torch.randperm(_BLOCKS, generator=generator).tolist()
            offsets = np.array([geometry.block_offset(block) for block in order], np.int64)
            lengths = np.array([1, _BLOCK, _BLOCK + 1, 41], np.int64)
            tables = offsets.reshape(4, 6)
            q = torch.randn(4, _SHARDS, 3, _DIM, generator=generator)
            out = torch.empty_like(q)
            base = geometry.strides["layer"]
            fast.decode_attention(q.numpy(), raw, base, tables, lengths, heads, *strides, 0.25, out.numpy())
            error = 0.0
            for row, length in enumerate(lengths.tolist()):
                args = (torch.from_numpy(tables[row]), length, torch.from_numpy(heads), *strides, _DIM)
                kv = reference.context(cache, base, *args)
                want = reference.attend(q[row].reshape(1, -1, _DIM), kv, length - 1, 0.25)
                error = max(error, float((out[row].reshape(1, -1, _DIM) - want).abs().max()))
                gathered = torch.empty(2, _SHARDS, length, _DIM, dtype=dtype)
                flat = gathered.view(torch.uint16).numpy() if dtype == torch.bfloat16 else gathered.numpy()
                fast.gather_context(raw, base, tables[row], length, heads, *strides, flat)
                assert torch.equal(gathered, kv), f"{name}, {dtype}: gathered context of {length} tokens differs"
            assert error < 1e-5, f"{name}, {dtype}: decode attention is off by {error:.1e}"
            worst[f"{name} {str(dtype).removeprefix('torch.')}"] = error
    most = max(worst.values())
    return {
        "figures": {"largest_error": worst},
        "summary": f"{len(worst)} layouts and dtypes, largest error {most:.1e}",
    }

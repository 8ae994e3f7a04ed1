"""KV write with the rotary embedding fused in: q is rotated in place, rotated k and v go to the cache.

grid (N, 2)     program (n, 0): the query heads of token n       program (n, 1): its keys and values
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from gyges.kernels.base import PagedCache
from gyges.kernels.triton import alignment


@triton.jit
def _rope_write(
    q,
    kv,
    cos,
    sin,
    positions,
    slots,
    cache,
    base,
    heads,
    kv_stride,
    QUERY_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    PER_SHARD: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_KV: tl.constexpr,
    BLOCK_F: tl.constexpr,
    ALIGN: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    f = tl.arange(0, BLOCK_F)
    f_in = f < HALF
    angle = tl.load(positions + n) * HALF + f
    c = tl.load(cos + angle, mask=f_in, other=0.0)[None, :]
    s = tl.load(sin + angle, mask=f_in, other=0.0)[None, :]
    if tl.program_id(1) == 0:
        g = tl.arange(0, BLOCK_Q)
        g_mask = (g < QUERY_HEADS)[:, None] & f_in[None, :]
        query = q + (n * QUERY_HEADS + g)[:, None] * (2 * HALF) + f[None, :]
        a = tl.load(query, mask=g_mask, other=0.0).to(tl.float32)
        b = tl.load(query + HALF, mask=g_mask, other=0.0).to(tl.float32)
        tl.store(query, (a * c - b * s).to(q.dtype.element_ty), mask=g_mask)
        tl.store(query + HALF, (b * c + a * s).to(q.dtype.element_ty), mask=g_mask)
    else:
        slot = tl.load(slots + n)
        h = tl.arange(0, BLOCK_KV)
        h_in = h < tl.where(slot >= 0, KV_HEADS, 0)
        # kv is [N, S, 2, P, D]: of head h, the key at shard h // P, 0, h % P and the value P heads later.
        first = (n * KV_HEADS * 2 + h // PER_SHARD * (2 * PER_SHARD) + h % PER_SHARD) * (2 * HALF)
        mask = h_in[:, None] & f_in[None, :]
        key = kv + first[:, None] + f[None, :]
        value = key + PER_SHARD * 2 * HALF
        at = tl.multiple_of(base + slot + tl.load(heads + h, mask=h_in, other=0), ALIGN)
        to = cache + at[:, None] + f[None, :]
        k = tl.load(key, mask=mask, other=0.0).to(tl.float32)
        k_half = tl.load(key + HALF, mask=mask, other=0.0).to(tl.float32)
        tl.store(to, (k * c - k_half * s).to(cache.dtype.element_ty), mask=mask)
        tl.store(to + HALF, (k_half * c + k * s).to(cache.dtype.element_ty), mask=mask)
        v = tl.load(value, mask=mask, other=0.0).to(tl.float32)
        v_half = tl.load(value + HALF, mask=mask, other=0.0).to(tl.float32)
        tl.store(to + kv_stride, v.to(cache.dtype.element_ty), mask=mask)
        tl.store(to + kv_stride + HALF, v_half.to(cache.dtype.element_ty), mask=mask)


def rope_write(
    q_NHD: torch.Tensor,
    kv_NS2PD: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    cache: PagedCache,
    base: int,
) -> None:
    """See :meth:`gyges.kernels.base.KernelSet.rope_write`; rotates ``q_NHD`` in place."""
    n, query_heads, dim = q_NHD.shape
    if not n:
        return
    for rows in (q_NHD, kv_NS2PD):
        assert rows.is_contiguous(), "the KV write takes contiguous rows"
    kv_heads = len(cache.heads)
    _rope_write[(n, 2)](
        q_NHD, kv_NS2PD, cos, sin, positions, slots, cache.values, base, cache.heads, cache.kv_stride,
        QUERY_HEADS=query_heads, KV_HEADS=kv_heads, PER_SHARD=kv_NS2PD.shape[3], HALF=dim // 2,
        BLOCK_Q=triton.next_power_of_2(query_heads), BLOCK_KV=triton.next_power_of_2(kv_heads),
        BLOCK_F=triton.next_power_of_2(dim // 2), ALIGN=alignment(dim), num_warps=4,
    )  # fmt: skip

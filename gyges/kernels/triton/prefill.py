"""Paged prefill attention of one chunk: N new tokens of a request against everything it has so far, causally.

A program takes a tile of the new tokens for one query head and walks over the context from its start to the last token that the
tile may see. K and V of the chunk itself are read from the cache too: it was written before. Late tiles have the most to do, so
they go first.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from gyges.kernels.base import PagedCache
from gyges.kernels.triton import alignment, interpreting

_LOG2E = 1.4426950408889634


@triton.jit(do_not_specialize=["count", "first"])
def _chunk(
    q,
    cache,
    base,
    table,
    heads,
    out,
    count,
    first,
    kv_stride,
    token_stride,
    scale,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    QUERIES: tl.constexpr,
    TILE: tl.constexpr,
    ALIGN: tl.constexpr,
    UPCAST: tl.constexpr,
):
    tile, head = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1)
    n, d, t = tile * QUERIES + tl.arange(0, QUERIES), tl.arange(0, BLOCK_D), tl.arange(0, TILE)
    d_in = d < DIM
    row = (n.to(tl.int64) * tl.num_programs(1) + head) * DIM
    mine = (n < count)[:, None] & d_in[None, :]
    query = tl.load(q + row[:, None] + d[None, :], mask=mine, other=0.0)
    if UPCAST:
        query = query.to(tl.float32)
    position = first + n
    last = tl.minimum(first + count, first + (tile + 1) * QUERIES)
    start_of_head = tl.load(heads + head // GROUP) + base

    peak = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    acc = tl.zeros([QUERIES, BLOCK_D], tl.float32)
    for start in range(0, last, TILE):
        token = start + t
        there = token < last
        block = tl.load(table + token // BLOCK_SIZE, mask=there, other=0)
        at = tl.multiple_of(start_of_head + block + (token % BLOCK_SIZE) * token_stride, ALIGN)
        where = cache + at[:, None] + d[None, :]
        inside = there[:, None] & d_in[None, :]
        k = tl.load(where, mask=inside, other=0.0)
        v = tl.load(where + kv_stride, mask=inside, other=0.0)
        if UPCAST:
            k = k.to(tl.float32)
            v = v.to(tl.float32)
        scores = tl.dot(query, tl.trans(k), input_precision="ieee") * scale
        # Rows beyond the chunk see what its last token sees; they are not stored. Token 0 is visible to all: no row is empty.
        visible = there[None, :] & (token[None, :] <= position[:, None])
        scores = tl.where(visible, scores, float("-inf"))
        high = tl.maximum(peak, tl.max(scores, 1))
        weights = tl.exp2(scores - high[:, None])
        shrink = tl.exp2(peak - high)
        total = total * shrink + tl.sum(weights, 1)
        acc = acc * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        peak = high
    result = acc / total[:, None]
    tl.store(out + row[:, None] + d[None, :], result.to(out.dtype.element_ty), mask=mine)


def prefill_attention(
    q_NHD: torch.Tensor,
    cache: PagedCache,
    base: int,
    table: torch.Tensor,
    start: int,
    scale: float,
    out: torch.Tensor,
    *,
    queries: int = 0,
    tile: int = 0,
) -> None:
    """See :meth:`gyges.kernels.base.KernelSet.prefill_attention`. q and out are contiguous, in the cache's dtype or float32.

    ``queries``, ``tile``: new tokens and context tokens at a time, powers of two of at least 16; 0 chooses. In float32, without
    tensor cores, tiles of 64 would not fit into the registers.
    """
    count, query_heads, dim = q_NHD.shape
    if not count:
        return
    for rows in (q_NHD, out):
        assert rows.is_contiguous(), "prefill attention takes contiguous rows"
    values = cache.values
    upcast = interpreting() or values.dtype == torch.float32
    query = q_NHD if upcast else q_NHD.to(values.dtype)
    fits = 32 if values.dtype == torch.float32 else 64
    queries = min(queries or fits, max(16, triton.next_power_of_2(count)))
    _chunk[(triton.cdiv(count, queries), query_heads)](
        query, values, base, table, cache.heads, out, count, start, cache.kv_stride, cache.token_stride, scale * _LOG2E,
        GROUP=query_heads // len(cache.heads), DIM=dim, BLOCK_SIZE=cache.block_size,
        BLOCK_D=max(16, triton.next_power_of_2(dim)), QUERIES=queries, TILE=tile or fits,
        ALIGN=alignment(dim), UPCAST=upcast, num_warps=4 if fits == 64 else 8, num_stages=3 if fits == 64 else 2,
    )  # fmt: skip

"""Paged decode attention, split over the context (flash-decoding), for any KV layout.

Phase 1: a program takes one row, one KV head with its G query heads, and one split of the context, in tiles of tokens. It keeps a
running maximum and sum (online softmax) and leaves a normalised partial result with the logarithm of its sum.
Phase 2: a program per query head adds the partial results up, weighted by those sums. With one split there is no phase 2.

    grid 1   (B, K, splits)        partial [B, K, splits, G, D] float32, logs [B, K, splits, G] float32, base 2
    grid 2   (B x K x G)           out [B, K, G, D]

A row's context is cut anew into ``splits`` pieces of whole tiles, so short rows leave later splits empty: their log is -inf.
A tile is a number of tokens, not a KV block: block sizes may be odd, and follow from the layout. Query heads are padded to 16
rows, which tensor cores need anyway.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from gyges.kernels.base import PagedCache
from gyges.kernels.triton import alignment, interpreting

_LOG2E = 1.4426950408889634
_MIN_SPLIT_TOKENS = 256  # a shorter split costs more to add up than it saves
_MAX_SPLITS = 64
_PROGRAMS_PER_MULTIPROCESSOR = 4


@dataclass(frozen=True, slots=True)
class DecodeTuning:
    """``tile``: tokens at a time, a power of two of at least 16.   warps, stages: of Triton's launch.

    splits: a power of two; 0 chooses.
    """

    tile: int = 64
    warps: int = 4
    stages: int = 3
    splits: int = 0


@triton.jit
def _split(
    q,
    cache,
    base,
    tables,
    lengths,
    heads,
    out,
    logs,
    kv_stride,
    token_stride,
    table_width,
    scale,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TILE: tl.constexpr,
    ALIGN: tl.constexpr,
    UPCAST: tl.constexpr,
):
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    pair = row.to(tl.int64) * tl.num_programs(1) + head
    g, d, t = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_D), tl.arange(0, TILE)
    g_in, d_in = g < GROUP, d < DIM
    query = tl.load(q + (pair * GROUP + g)[:, None] * DIM + d[None, :], mask=g_in[:, None] & d_in[None, :], other=0.0)
    if UPCAST:
        query = query.to(tl.float32)

    length = tl.load(lengths + row).to(tl.int32)
    tokens = ((length + TILE - 1) // TILE + SPLITS - 1) // SPLITS * TILE
    first = split * tokens
    last = tl.minimum(first + tokens, length)
    start_of_head = tl.load(heads + head) + base
    table = tables + row.to(tl.int64) * table_width

    peak = tl.full([BLOCK_G], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_G], tl.float32)
    acc = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
    for start in range(first, last, TILE):
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
        scores = tl.where(there[None, :], scores, float("-inf"))
        high = tl.maximum(peak, tl.max(scores, 1))
        weights = tl.exp2(scores - high[:, None])
        shrink = tl.exp2(peak - high)
        total = total * shrink + tl.sum(weights, 1)
        acc = acc * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        peak = high

    some = total > 0
    total = tl.where(some, total, 1.0)
    place = (pair * SPLITS + split) * GROUP + g
    result = acc / total[:, None]
    tl.store(
        out + place[:, None] * DIM + d[None, :], result.to(out.dtype.element_ty), mask=g_in[:, None] & d_in[None, :]
    )
    if SPLITS > 1:
        tl.store(logs + place, tl.where(some, peak + tl.log2(total), float("-inf")), mask=g_in)


@triton.jit
def _combine(
    partial,
    logs,
    out,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    query_head = tl.program_id(0).to(tl.int64)
    s, d = tl.arange(0, SPLITS), tl.arange(0, BLOCK_D)
    place = (query_head // GROUP * SPLITS + s) * GROUP + query_head % GROUP
    log = tl.load(logs + place)
    peak = tl.max(log, 0)
    # A row without tokens has nothing but empty splits.
    weight = tl.where(log > float("-inf"), tl.exp2(log - tl.where(peak > float("-inf"), peak, 0.0)), 0.0)
    parts = tl.load(partial + place[:, None] * DIM + d[None, :], mask=(d < DIM)[None, :], other=0.0)
    total = tl.sum(weight, 0)
    result = tl.sum(parts * weight[:, None], 0) / tl.where(total > 0, total, 1.0)
    tl.store(out + query_head * DIM + d, result.to(out.dtype.element_ty), mask=d < DIM)


def choose_splits(pairs: int, max_tokens: int, multiprocessors: int) -> int:
    """A power of two, so that few variants are compiled. ``pairs``: rows x KV heads; ``max_tokens``: the longest context."""
    wanted = -(-_PROGRAMS_PER_MULTIPROCESSOR * multiprocessors // max(1, pairs))
    most = min(_MAX_SPLITS, wanted, -(-max_tokens // _MIN_SPLIT_TOKENS))
    return 1 << max(0, most.bit_length() - 1)


def decode_attention(
    q_BKGD: torch.Tensor,
    cache: PagedCache,
    base: int,
    tables: torch.Tensor,
    lengths: torch.Tensor,
    scale: float,
    out: torch.Tensor,
    *,
    tuning: DecodeTuning = DecodeTuning(),
    multiprocessors: int = 1,
) -> None:
    """See :meth:`gyges.kernels.base.KernelSet.decode_attention`. q and out are contiguous, in the cache's dtype or float32.

    A row of length 0 gives zeros, so a CUDA graph's unused rows need no block. Splits are chosen from the width of ``tables``,
    not from the lengths, which a graph does not know.
    """
    rows, kv_heads, group, dim = q_BKGD.shape
    if not rows:
        return
    for rows_of in (q_BKGD, out, tables):
        assert rows_of.is_contiguous(), "decode attention takes contiguous rows"
    values = cache.values
    splits = tuning.splits or choose_splits(rows * kv_heads, tables.shape[1] * cache.block_size, multiprocessors)
    upcast = interpreting() or values.dtype == torch.float32
    query = q_BKGD if upcast else q_BKGD.to(values.dtype)
    partial, logs = out, out
    if splits > 1:
        partial = torch.empty((rows, kv_heads, splits, group, dim), dtype=torch.float32, device=out.device)
        logs = torch.empty((rows, kv_heads, splits, group), dtype=torch.float32, device=out.device)
    block_d = max(16, triton.next_power_of_2(dim))
    sizes: dict[str, Any] = {"GROUP": group, "DIM": dim, "SPLITS": splits, "BLOCK_D": block_d}
    _split[(rows, kv_heads, splits)](
        query, values, base, tables, lengths, cache.heads, partial, logs, cache.kv_stride, cache.token_stride,
        tables.stride(0), scale * _LOG2E, BLOCK_SIZE=cache.block_size, BLOCK_G=max(16, triton.next_power_of_2(group)),
        TILE=tuning.tile, ALIGN=alignment(dim), UPCAST=upcast, num_warps=tuning.warps, num_stages=tuning.stages, **sizes,
    )  # fmt: skip
    if splits > 1:
        _combine[(rows * kv_heads * group,)](partial, logs, out, num_warps=2, **sizes)

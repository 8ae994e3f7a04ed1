"""CPU kernels in numba: rotary embedding fused with the KV write, paged decode attention, and the gather for prefill.

The cache is passed as a flat array over the whole address range, float32, or uint16 holding bfloat16 bits (numpy has no
bfloat16). Kernels run without the GIL; :func:`over_threads` splits the rows of one call over the worker's threads, since
a second OpenMP pool beside torch's would make the two spin against each other.

Compiled once per machine into numba's cache; a lock around the first call keeps workers from compiling the same thing at
the same time.
"""

from __future__ import annotations

import fcntl
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
from numba.core import types
from numba.extending import overload

from gyges.kernels.simd import dot, exp_nonpositive, prefetch, weighted_sum

JIT: dict[str, Any] = {"nogil": True, "fastmath": True, "error_model": "numpy", "cache": True}


def _store(array: Any, index: int, value: float) -> None:  # pragma: no cover
    raise AssertionError("compiled code only")


# numba compares the argument lists of these two, annotations included: so there are none.
@overload(_store, inline="always")
def _store_overload(array, index, value):  # type: ignore[no-untyped-def]
    if array.dtype == types.uint16:

        def store_bf16(array, index, value):  # type: ignore[no-untyped-def]
            bits = np.float32(value).view(np.uint32)
            # Round to nearest even, as hardware and torch do.
            rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
            array[index] = np.uint16(rounded >> np.uint32(16))

        return store_bf16

    def store(array, index, value):  # type: ignore[no-untyped-def]
        array[index] = value

    return store


@numba.njit(**JIT)
def _rope_write(q, kv, cos, sin, positions, slots, cache, base, head_offsets, kv_stride, lo, hi):  # type: ignore[no-untyped-def]
    # q [N, H, D] and kv [N, S, 2, P, D] float32. Rotates q in place; writes rotated k, and v, to the cache.
    heads, dim = q.shape[1], q.shape[2]
    per_shard = kv.shape[3]
    half = dim // 2
    for n in range(lo, hi):
        c = cos[positions[n]]
        s = sin[positions[n]]
        for h in range(heads):
            row = q[n, h]
            for d in range(half):
                a = row[d]
                b = row[d + half]
                row[d] = a * c[d] - b * s[d]
                row[d + half] = b * c[d] + a * s[d]
        if slots[n] < 0:
            continue
        for h in range(kv.shape[1] * per_shard):
            at = base + slots[n] + head_offsets[h]
            k_out = cache[at : at + dim]
            v_out = cache[at + kv_stride : at + kv_stride + dim]
            k = kv[n, h // per_shard, 0, h % per_shard]
            v = kv[n, h // per_shard, 1, h % per_shard]
            for d in range(half):
                _store(k_out, d, k[d] * c[d] - k[d + half] * s[d])
                _store(k_out, d + half, k[d + half] * c[d] + k[d] * s[d])
            for d in range(dim):
                _store(v_out, d, v[d])


@numba.njit(**JIT)
def _rms_norm(x, weight, eps, out, lo, hi):  # type: ignore[no-untyped-def]
    size = x.shape[1]
    for n in range(lo, hi):
        row = x[n]
        squares = np.float32(0)
        for i in range(size):
            squares += row[i] * row[i]
        scale = np.float32(1) / np.sqrt(squares / np.float32(size) + eps)
        to = out[n]
        for i in range(size):
            to[i] = row[i] * scale * weight[i]


@functools.cache
def _decode_kernel(dim: int) -> Callable[..., None]:
    """The decode kernel for one head size, which must be a constant for the vector operations."""

    @numba.njit(**JIT)
    def _decode(q, cache, base, tables, lengths, head_offsets, kv_stride, token_stride, block_size, scale, out, shape, lo, hi):  # type: ignore[no-untyped-def]  # fmt: skip
        # q and out: flat [B, Hk, G, D] float32, shape (Hk, G); tables [B, max blocks] element offsets; rows lo..hi of the
        # B x Hk grid. Online softmax block by block (FlashAttention): scores never leave a [G, block_size] scratch.
        kv_heads, group = shape
        acc = np.empty(group * dim, np.float32)
        peak = np.empty(group, np.float32)
        total = np.empty(group, np.float32)
        scores = np.empty(group * block_size, np.float32)
        for i in range(lo, hi):
            b = i // kv_heads
            n = lengths[b]
            head = base + head_offsets[i % kv_heads]
            first = i * group * dim
            acc[:] = 0
            peak[:] = -np.inf
            total[:] = 0
            blocks = (n + block_size - 1) // block_size
            for j in range(blocks):
                at = head + tables[b, j]
                count = min(block_size, n - j * block_size)
                # Blocks lie anywhere, so the hardware cannot guess the next one: ask for it while this one is computed.
                upcoming = head + tables[b, min(j + 1, blocks - 1)]
                for t in range(count):
                    prefetch(cache, upcoming + t * token_stride, dim)
                    prefetch(cache, upcoming + kv_stride + t * token_stride, dim)
                    for g in range(group):
                        scores[g * block_size + t] = scale * dot(q, first + g * dim, cache, at + t * token_stride, dim)
                for g in range(group):
                    row = scores[g * block_size : g * block_size + count]
                    high = peak[g]
                    for t in range(count):
                        high = max(high, row[t])
                    if high > peak[g]:
                        shrink = np.exp(peak[g] - high)
                        peak[g] = high
                        total[g] *= shrink
                        for d in range(g * dim, (g + 1) * dim):
                            acc[d] *= shrink
                    added = np.float32(0)
                    for t in range(count):
                        weight = exp_nonpositive(row[t] - high)
                        row[t] = weight
                        added += weight
                    total[g] += added
                    weighted_sum(acc, g * dim, scores, g * block_size, count, cache, at + kv_stride, token_stride, dim)
            for g in range(group):
                inverse = np.float32(1) / total[g]
                for d in range(dim):
                    out[first + g * dim + d] = acc[g * dim + d] * inverse

    return _decode


@numba.njit(**JIT)
def _gather(cache, base, table, length, head_offsets, kv_stride, token_stride, block_size, out, lo, hi):  # type: ignore[no-untyped-def]
    # out [2, Hk, length, D] in the cache's dtype; rows lo..hi of the 2 x Hk grid.
    kv_heads, dim = out.shape[1], out.shape[3]
    for i in range(lo, hi):
        kv = i // kv_heads
        h = i % kv_heads
        for t in range(length):
            at = base + table[t // block_size] + head_offsets[h] + kv * kv_stride + (t % block_size) * token_stride
            src = cache[at : at + dim]
            dst = out[kv, h, t]
            for d in range(dim):
                dst[d] = src[d]


_pool: ThreadPoolExecutor | None = None
_threads = 1
_compiled: set[tuple[object, ...]] = set()
# Below this many cache elements per thread, handing work over costs more than it saves.
_MIN_WORK = 1 << 16


def set_threads(count: int) -> None:
    """Threads that one kernel call may use, the caller's included. Call once, at worker start."""
    global _pool, _threads
    _threads = max(1, count)
    _pool = ThreadPoolExecutor(_threads - 1, thread_name_prefix="gyges-kernel") if _threads > 1 else None


def over_threads(kernel: Callable[..., None], args: tuple[Any, ...], rows: int, work: int) -> None:
    """Runs ``kernel(*args, lo, hi)`` over ``rows`` rows in even pieces; ``work``: cache elements read in all."""
    compile_alone(kernel, args, (*args, 0, 0))
    pieces = min(_threads, rows, work // _MIN_WORK)
    if pieces <= 1 or _pool is None:
        kernel(*args, 0, rows)
        return
    cuts = [rows * i // pieces for i in range(pieces + 1)]
    waiting = [_pool.submit(kernel, *args, cuts[i], cuts[i + 1]) for i in range(1, pieces)]
    kernel(*args, 0, cuts[1])
    for future in waiting:
        future.result()


def compile_alone(kernel: Callable[..., None], args: tuple[Any, ...], nothing: tuple[Any, ...]) -> None:
    """The first call of ``kernel`` with arguments of these types; ``nothing``: arguments that leave it nothing to do."""
    key = (kernel, *(getattr(a, "dtype", type(a)) for a in args))
    if key in _compiled:
        return
    fd = os.open(__file__, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        kernel(*nothing)
    finally:
        os.close(fd)
    _compiled.add(key)


def rms_norm(x, weight, eps, out) -> None:  # type: ignore[no-untyped-def]
    """``out = x / sqrt(mean(x^2) + eps) * weight``, row by row; x and out [N, C] float32."""
    over_threads(_rms_norm, (x, weight, np.float32(eps), out), len(x), x.size)


def rope_write(q, kv, cos, sin, positions, slots, cache, base, head_offsets, kv_stride) -> None:  # type: ignore[no-untyped-def]
    """q [N, H, D], kv [N, S, 2, P, D] (S shards of P KV heads) float32; slots [N]: element offset, or negative."""
    args = (q, kv, cos, sin, positions, slots, cache, base, head_offsets, kv_stride)
    over_threads(_rope_write, args, len(positions), q.size + kv.size)


def decode_attention(q, cache, base, tables, lengths, head_offsets, kv_stride, token_stride, block_size, scale, out):  # type: ignore[no-untyped-def]
    """One query token per row against its whole context; returns nothing, fills ``out`` [B, Hk, G, D]."""
    b, kv_heads, group, dim = q.shape
    args = (
        q.reshape(-1), cache, base, tables, lengths, head_offsets, kv_stride, token_stride, block_size,
        np.float32(scale), out.reshape(-1), (kv_heads, group),
    )  # fmt: skip
    over_threads(_decode_kernel(dim), args, b * kv_heads, 2 * int(lengths.sum()) * kv_heads * dim)


def gather_context(cache, base, table, length, head_offsets, kv_stride, token_stride, block_size, out) -> None:  # type: ignore[no-untyped-def]
    """Copies K and V of one request's first ``length`` tokens to contiguous ``out`` [2, Hk, length, D]."""
    args = (cache, base, table, length, head_offsets, kv_stride, token_stride, block_size, out)
    over_threads(_gather, args, 2 * out.shape[1], out.size)


def warm(bfloat16: bool, head_dim: int) -> None:
    """Loads (the first time on a machine: compiles) every kernel, so that the first request does not wait for it."""
    d = head_dim
    cache = np.zeros(8 * d, np.uint16 if bfloat16 else np.float32)
    q, kv = np.zeros((1, 1, d), np.float32), np.zeros((1, 1, 2, 1, d), np.float32)
    half, index = np.zeros((1, d // 2), np.float32), np.zeros(1, np.int64)
    rms_norm(q[0], q[0, 0], 1e-6, np.empty_like(q[0]))
    rope_write(q, kv, half, half, index, index, cache, 0, index, d)
    decode_attention(q[None], cache, 0, index[None], index + 1, index, d, 2 * d, 1, 1.0, np.empty_like(q[None]))
    gather_context(cache, 0, index, 1, index, d, 2 * d, 1, np.empty((2, 1, 1, d), cache.dtype))

"""Runs of bytes from pages to pages: what a transformation moves between devices, and compaction inside one.

The same description as gyges.kernels.copy takes: starts, lengths, and up to two loops. A layout whose shards leave whole moves
runs of a page; one whose shards are scattered (`token-first`) is compacted by short runs. One launch for all:

    grid (runs x loop counts, pieces of the longest run)
"""

from __future__ import annotations

from math import gcd

import numpy as np
import torch
import triton
import triton.language as tl

_WORDS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}
_VECTOR = 16  # bytes that one thread moves at a time, where everything is aligned to them
_TILE_BYTES = 8192  # of one program


@triton.jit
def _copy(
    dst,
    src,
    dst_at,
    src_at,
    lengths,
    n2,
    inner,
    s1,
    d1,
    s2,
    d2,
    ALIGN: tl.constexpr,
    TILE: tl.constexpr,
):
    # Everything counts in words; inner = n1 x n2.
    program = tl.program_id(0)
    run, loop = program // inner, program % inner
    j, k = loop // n2, loop % n2
    length = tl.load(lengths + run)
    a = tl.multiple_of(tl.load(src_at + run) + j * s1 + k * s2, ALIGN)
    b = tl.multiple_of(tl.load(dst_at + run) + j * d1 + k * d2, ALIGN)
    i = tl.program_id(1) * TILE + tl.arange(0, TILE)
    mask = i < tl.multiple_of(length, ALIGN)
    tl.store(dst + b + i, tl.load(src + a + i, mask=mask), mask=mask)


def copy_runs(
    dst: torch.Tensor,
    src: torch.Tensor,
    dst_at: np.ndarray,
    src_at: np.ndarray,
    lengths: np.ndarray,
    loops: tuple[tuple[int, int, int], ...] = (),
) -> None:
    """``dst``, ``src``: uint8 [bytes], address ranges (a peer's, where its pages are mapped here) that do not overlap.

    dst_at, src_at, lengths: int64 [runs], bytes.   loops: up to two of (count, source stride,
    destination stride), outermost first; every run is repeated over them. Goes to the current stream,
    and returns without waiting for it.
    """
    if not len(lengths) or not lengths.any():
        return
    (n1, s1, d1), (n2, s2, d2) = ((1, 0, 0), (1, 0, 0), *loops)[-2:]
    strides = (s1, d1, s2, d2)
    common = gcd(
        _VECTOR, dst.data_ptr(), src.data_ptr(), *strides, *(int(np.gcd.reduce(x)) for x in (dst_at, src_at, lengths))
    )
    word = min(common, 8)
    starts = torch.from_numpy(np.stack([dst_at, src_at, lengths]) // word)
    if dst.device.type == "cuda":
        starts = starts.pin_memory()  # or else the host would wait for what is on the stream before it
    starts = starts.to(dst.device, non_blocking=True)
    longest = int(lengths.max()) // word
    tile = min(_TILE_BYTES // word, triton.next_power_of_2(longest))
    _copy[(len(lengths) * n1 * n2, triton.cdiv(longest, tile))](
        _as_words(dst, word), _as_words(src, word), starts[0], starts[1], starts[2], n2, n1 * n2,
        *(stride // word for stride in (s1, d1, s2, d2)), ALIGN=common // word, TILE=tile, num_warps=4,
    )  # fmt: skip


def _as_words(values: torch.Tensor, word: int) -> torch.Tensor:
    """The same memory; bytes at the end that fill no word are no part of any run."""
    return values[: len(values) // word * word].view(_WORDS[word])


def copy_pages(
    dst: torch.Tensor, src: torch.Tensor, dst_pages: np.ndarray, src_pages: np.ndarray, page_bytes: int
) -> None:
    """Whole pages: ``src_pages[i]`` to ``dst_pages[i]``, int64 indices in their ranges (uint8 [bytes])."""
    lengths = np.full(len(dst_pages), page_bytes, np.int64)
    copy_runs(dst, src, np.asarray(dst_pages) * page_bytes, np.asarray(src_pages) * page_bytes, lengths)

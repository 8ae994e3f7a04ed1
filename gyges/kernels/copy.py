"""Copying runs of bytes from one device's pages into another's: one pass from source page to destination page.

Long runs are written past the cache (non-temporal stores): a store that goes through the cache first reads the line that it is
about to overwrite. Measured, one core, GB/s with and without: runs of 2 MiB 10.2 and 6.9, of 4 KiB 9.0 and 6.1, of 256 bytes
5.2 and 5.2. libc's memcpy does the same, but only from tens of megabytes on.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from gyges.kernels.cpu import JIT, compile_alone


@intrinsic
def _memcpy(typingctx, dst, src, count):  # type: ignore[no-untyped-def]
    """libc's memcpy on addresses given as integers."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        pointer, word = ir.IntType(8).as_pointer(), ir.IntType(64)
        kind = ir.FunctionType(ir.VoidType(), [pointer, pointer, word, ir.IntType(1)])
        call = builder.module.declare_intrinsic("llvm.memcpy", [pointer, pointer, word], kind)
        to, source = (builder.inttoptr(a, pointer) for a in args[:2])
        builder.call(call, [to, source, args[2], ir.Constant(ir.IntType(1), 0)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), emit


_LINE = 64  # bytes of a cache line: what a non-temporal store must fill whole
_STREAM_FROM = 4096  # bytes; shorter runs gain nothing


@intrinsic
def _stream_line(typingctx, dst, src):  # type: ignore[no-untyped-def]
    """One cache line; ``dst`` is aligned to it."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        line = ir.VectorType(ir.IntType(64), _LINE // 8)
        to, source = (builder.inttoptr(a, line.as_pointer()) for a in args)
        store = builder.store(builder.load(source, align=1), to, align=_LINE)
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), emit


@intrinsic
def _fence(typingctx):  # type: ignore[no-untyped-def]
    """Non-temporal stores are seen by others before whatever is stored from here on."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), emit


@numba.njit(**JIT)
def _run(dst, src, count):  # type: ignore[no-untyped-def]
    head = -dst % _LINE
    if count < _STREAM_FROM:
        _memcpy(dst, src, count)
        return
    _memcpy(dst, src, head)
    lines = (count - head) // _LINE
    for i in range(lines):
        _stream_line(dst + head + i * _LINE, src + head + i * _LINE)
    done = head + lines * _LINE
    _memcpy(dst + done, src + done, count - done)


@numba.njit(**JIT)
def _copy(dst, src, dst_at, src_at, lengths, n1, s1, d1, n2, s2, d2):  # type: ignore[no-untyped-def]
    for i in range(len(lengths)):
        for j in range(n1):
            for k in range(n2):
                _run(dst + dst_at[i] + j * d1 + k * d2, src + src_at[i] + j * s1 + k * s2, lengths[i])
    _fence()


def copy_runs(
    dst: int,
    src: int,
    dst_at: np.ndarray,
    src_at: np.ndarray,
    lengths: np.ndarray,
    loops: tuple[tuple[int, int, int], ...] = (),
) -> None:
    """``dst`` and ``src``: addresses that the starts (int64 [n], bytes, as ``lengths``) are relative to.

    ``loops``: up to two of (count, source stride, destination stride), outermost first; every run is repeated over them.
    """
    (n1, s1, d1), (n2, s2, d2) = ((1, 0, 0), (1, 0, 0), *loops)[-2:]
    args: tuple[Any, ...] = (dst, src, dst_at, src_at, lengths, n1, s1, d1, n2, s2, d2)
    compile_alone(_copy, args, (dst, src, dst_at[:0], src_at[:0], lengths[:0], n1, s1, d1, n2, s2, d2))
    _copy(*args)


def warm() -> None:
    """Compiles (or loads) the kernel, so that the first transformation does not wait for it."""
    none = np.empty(0, np.int64)
    copy_runs(0, 0, none, none, none)

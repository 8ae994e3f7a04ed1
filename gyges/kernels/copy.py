"""Copying runs of bytes from one device's pages into another's: one pass from source page to destination page."""

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


@numba.njit(**JIT)
def _copy(dst, src, dst_at, src_at, lengths, n1, s1, d1, n2, s2, d2):  # type: ignore[no-untyped-def]
    for i in range(len(lengths)):
        for j in range(n1):
            for k in range(n2):
                _memcpy(dst + dst_at[i] + j * d1 + k * d2, src + src_at[i] + j * s1 + k * s2, lengths[i])


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

"""Vector operations for numba kernels, as LLVM vector instructions.

LLVM's loop vectorizer gives up on loops as short as a head (16 to 128 elements, operands that may alias): measured, it left
`dot` and `weighted_sum` at 8 to 12 ns for 16 elements, these take 1 to 2. ``dim`` must be a compile-time constant. Arrays
are one-dimensional, contiguous, float32, or uint16 that holds bfloat16 bits. LLVM splits vectors that the CPU is too narrow
for.
"""

from __future__ import annotations

from math import gcd
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

_F32, _I16, _I32 = ir.FloatType(), ir.IntType(16), ir.IntType(32)
_MAX_WIDTH = 16  # float32 lanes of an AVX-512 register


def _chunks(dim: int) -> tuple[int, range]:
    width = gcd(dim, _MAX_WIDTH)
    return width, range(0, dim, width)


def _load(builder: Any, array: Any, array_type: Any, index: Any, width: int) -> Any:
    """``width`` elements from ``index`` on, as float32 lanes."""
    is_bf16 = array_type.dtype == types.uint16
    pointer = builder.gep(array.data, [index])
    lanes = ir.VectorType(_I16 if is_bf16 else _F32, width)
    value = builder.load(builder.bitcast(pointer, lanes.as_pointer()), align=2 if is_bf16 else 4)
    if is_bf16:
        wide = builder.zext(value, ir.VectorType(_I32, width))
        shift = ir.Constant(wide.type, [16] * width)
        value = builder.bitcast(builder.shl(wide, shift), ir.VectorType(_F32, width))
    return value


def _reduce(builder: Any, vector: Any) -> Any:
    name = f"llvm.vector.reduce.fadd.v{vector.type.count}f32"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_F32, [_F32, vector.type]), name)
    # Without the fast flag the reduction would be an ordered chain of additions.
    return builder.call(function, [ir.Constant(_F32, 0.0), vector], fastmath=("fast",))


def _add_product(builder: Any, total: Any, a: Any, b: Any) -> Any:
    return builder.fadd(total, builder.fmul(a, b, flags=("fast",)), flags=("fast",))


@intrinsic
def dot(typingctx, a, a_at, b, b_at, dim):  # type: ignore[no-untyped-def]
    """``sum(a[a_at + d] * b[b_at + d] for d in range(dim))`` as float32."""
    if not isinstance(dim, types.Literal):
        return None
    length = dim.literal_value

    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        a_array = context.make_array(signature.args[0])(context, builder, args[0])
        b_array = context.make_array(signature.args[2])(context, builder, args[2])
        width, chunks = _chunks(length)
        total = ir.Constant(ir.VectorType(_F32, width), [0.0] * width)
        for chunk in chunks:
            offset = ir.Constant(ir.IntType(64), chunk)
            left = _load(builder, a_array, signature.args[0], builder.add(args[1], offset), width)
            right = _load(builder, b_array, signature.args[2], builder.add(args[3], offset), width)
            total = _add_product(builder, total, left, right)
        return _reduce(builder, total)

    return types.float32(a, types.intp, b, types.intp, dim), generate


@intrinsic
def weighted_sum(typingctx, out, out_at, weights, weights_at, count, rows, rows_at, stride, dim):  # type: ignore[no-untyped-def]
    """``out[out_at + d] += sum(weights[weights_at + t] * rows[rows_at + t * stride + d] for t in range(count))``."""
    if not isinstance(dim, types.Literal):
        return None
    length = dim.literal_value

    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        def array(i: int) -> Any:
            return context.make_array(signature.args[i])(context, builder, args[i])

        out_array, weight_array, row_array = array(0), array(2), array(5)
        width, chunks = _chunks(length)
        lanes = ir.VectorType(_F32, width)
        at = [builder.add(args[1], ir.Constant(ir.IntType(64), chunk)) for chunk in chunks]
        # Stack slots that LLVM turns into registers: the sums stay there for the whole loop.
        sums = [cgutils.alloca_once_value(builder, _load(builder, out_array, signature.args[0], i, width)) for i in at]
        with cgutils.for_range(builder, args[4]) as loop:
            weight = builder.load(builder.gep(weight_array.data, [builder.add(args[3], loop.index)]))
            splat = builder.insert_element(ir.Constant(lanes, ir.Undefined), weight, ir.Constant(_I32, 0))
            zeros = ir.Constant(ir.VectorType(_I32, width), [0] * width)
            splat = builder.shuffle_vector(splat, ir.Constant(lanes, ir.Undefined), zeros)
            row = builder.add(args[6], builder.mul(loop.index, args[7]))
            for slot, chunk in zip(sums, chunks, strict=True):
                index = builder.add(row, ir.Constant(ir.IntType(64), chunk))
                value = _load(builder, row_array, signature.args[5], index, width)
                builder.store(_add_product(builder, builder.load(slot), splat, value), slot)
        for slot, index in zip(sums, at, strict=True):
            pointer = builder.bitcast(builder.gep(out_array.data, [index]), lanes.as_pointer())
            builder.store(builder.load(slot), pointer, align=4)
        return context.get_dummy_value()

    signature = types.void(
        out, types.intp, weights, types.intp, types.intp, rows, types.intp, types.intp, dim
    )  # fmt: skip
    return signature, generate


@intrinsic
def prefetch(typingctx, rows, at, dim):  # type: ignore[no-untyped-def]
    """Asks for ``rows[at : at + dim]`` to be brought to the cache; never faults, whatever ``at`` is."""
    if not isinstance(dim, types.Literal):
        return None
    line = 64 // (rows.dtype.bitwidth // 8)
    length = dim.literal_value

    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        array = context.make_array(signature.args[0])(context, builder, args[0])
        byte = ir.IntType(8).as_pointer()
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [byte, _I32, _I32, _I32]), "llvm.prefetch.p0i8"
        )
        for start in range(0, length, line):
            index = builder.add(args[1], ir.Constant(ir.IntType(64), start))
            pointer = builder.bitcast(builder.gep(array.data, [index]), byte)
            # read, into all cache levels, data
            builder.call(function, [pointer, ir.Constant(_I32, 0), ir.Constant(_I32, 3), ir.Constant(_I32, 1)])
        return context.get_dummy_value()

    return types.void(rows, types.intp, dim), generate


@numba.njit(inline="always")
def exp_nonpositive(x):  # type: ignore[no-untyped-def]
    """e^x for x <= 0 in float32, which LLVM can vectorize, unlike a call to libm. Relative error 3e-7 near 0, 4e-6 at -87.

    2^t = 2^floor(t) x 2^frac(t): the first factor is an exponent written as bits, the second a polynomial.
    """
    t = max(x, np.float32(-87.0)) * np.float32(1.4426950408889634)
    whole = np.floor(t)
    f = t - whole
    p = np.float32(1.8775767e-3)
    p = p * f + np.float32(8.9893397e-3)
    p = p * f + np.float32(5.5826318e-2)
    p = p * f + np.float32(2.4015361e-1)
    p = p * f + np.float32(6.9315308e-1)
    p = p * f + np.float32(9.9999994e-1)
    exponent = np.int32((np.int32(whole) + np.int32(127)) << np.int32(23))
    return p * exponent.view(np.float32)

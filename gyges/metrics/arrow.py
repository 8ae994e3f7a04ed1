"""Lists as Arrow arrays, without ``pyarrow.array``: that loads pandas, which takes longer than writing most results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa


def arrow_array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Of numbers, booleans, strings, or sequences (arrays too) of numbers, where None stands for null.

    ``kind``: float64, int64, int32, bool, string, or a list of one of the numbers.
    """
    import pyarrow as pa

    count = len(values)
    known = np.fromiter((value is not None for value in values), dtype=bool, count=count)
    nulls = count - int(known.sum())
    valid = pa.py_buffer(_bits(known)) if nulls else None
    if pa.types.is_list(kind):
        parts = [() if value is None else value for value in values]
        joined = np.concatenate([np.asarray(part, dtype=kind.value_type.to_pandas_dtype()) for part in parts] or [[]])
        child = arrow_array_of(joined, kind.value_type)
        return pa.Array.from_buffers(kind, count, [valid, _offsets(parts)], nulls, children=[child])
    if pa.types.is_string(kind):
        texts = [b"" if value is None else value.encode() for value in values]
        return pa.Array.from_buffers(kind, count, [valid, _offsets(texts), pa.py_buffer(b"".join(texts))], nulls)
    plain = np.array([0 if value is None else value for value in values], dtype=kind.to_pandas_dtype())
    if pa.types.is_boolean(kind):
        return pa.Array.from_buffers(kind, count, [valid, pa.py_buffer(_bits(plain))], nulls)
    return pa.Array.from_buffers(kind, count, [valid, pa.py_buffer(plain)], nulls)


def arrow_array_of(numbers: np.ndarray[Any, Any], kind: pa.DataType) -> pa.Array:
    """Of a one-dimensional array of numbers, none of them null."""
    import pyarrow as pa

    plain = np.ascontiguousarray(numbers, dtype=kind.to_pandas_dtype())
    return pa.Array.from_buffers(kind, len(plain), [None, pa.py_buffer(plain)], 0)


def _bits(flags: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.packbits(flags, bitorder="little")


def _offsets(parts: Sequence[Sequence[Any]]) -> pa.Buffer:
    import pyarrow as pa

    ends = np.cumsum([0, *map(len, parts)])
    assert ends[-1] < 2**31, "more than 2^31 elements in one column"
    return pa.py_buffer(ends.astype(np.int32))

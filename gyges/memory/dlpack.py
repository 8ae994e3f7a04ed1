"""Tensors over addresses that torch did not allocate, through DLPack: no copy, and no question to the driver about the pointer.

That last point decides: a range is mostly unmapped when a view of it is made, and whoever asks the driver what lies at its
address (``__cuda_array_interface__`` makes torch do so) is told that there is nothing. DLPack names the device itself.

    DLManagedTensor | shape | strides     one block of libc's memory; torch gives it back with free() when the tensor goes
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

CPU, CUDA = 1, 2  # DLDeviceType
_UINT, _INT, _FLOAT, _BFLOAT = 1, 0, 2, 4  # DLDataTypeCode
_NAME = b"dltensor"  # the capsule points to it

Device = tuple[int, int]  # (DLDeviceType, index)


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _DLManagedTensor(ctypes.Structure):
    _fields_ = (("tensor", _DLTensor), ("manager", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


_libc = ctypes.CDLL(None)
_libc.malloc.restype = ctypes.c_void_p
_libc.malloc.argtypes = [ctypes.c_size_t]
_libc.free.argtypes = [ctypes.c_void_p]
# free(void *) has the signature of a deleter, and needs no interpreter: tensors may outlive it.
_FREE = ctypes.cast(_libc.free, ctypes.c_void_p).value

_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


def _code(dtype: torch.dtype) -> int:
    import torch

    if dtype == torch.bfloat16:
        return _BFLOAT
    if dtype.is_floating_point:
        return _FLOAT
    assert dtype not in (torch.bool, torch.complex64, torch.complex128), f"no view of {dtype}"
    return _INT if dtype.is_signed else _UINT


def tensor_at(address: int, dtype: torch.dtype, shape: tuple[int, ...], device: Device) -> torch.Tensor:
    """A contiguous tensor over ``address``. Whoever made the mapping keeps it for as long as the tensor is used."""
    import torch

    ndim = len(shape)
    size = ctypes.sizeof(_DLManagedTensor)
    block = _libc.malloc(size + 2 * 8 * max(1, ndim))
    if not block:
        raise MemoryError("malloc of a tensor's description failed")
    sizes = (ctypes.c_int64 * ndim).from_address(block + size)
    strides = (ctypes.c_int64 * ndim).from_address(block + size + 8 * max(1, ndim))
    step = 1
    for axis in reversed(range(ndim)):
        sizes[axis], strides[axis] = shape[axis], step
        step *= shape[axis]
    managed = _DLManagedTensor.from_address(block)
    pointer = ctypes.POINTER(ctypes.c_int64)
    managed.tensor = _DLTensor(
        address, *device, ndim, _code(dtype), 8 * dtype.itemsize, 1, ctypes.cast(sizes, pointer),
        ctypes.cast(strides, pointer), 0,
    )  # fmt: skip
    managed.manager, managed.deleter = None, _FREE
    try:
        return torch.from_dlpack(_new_capsule(block, _NAME, None))
    except BaseException:
        _libc.free(block)
        raise

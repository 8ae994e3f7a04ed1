"""What NVIDIA's driver says about the devices, asked through ``ctypes``: works where neither torch nor cuda-bindings do.

Only questions are asked here. The page pool talks to the driver through cuda-bindings (gyges/memory/cuda_driver.py).
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

LIBRARY = "libcuda.so.1"

# CUdevice_attribute of cuda.h
_MULTIPROCESSORS, _L2_BYTES, _COMPUTE_MODE, _MAJOR, _MINOR, _VMM, _POSIX_HANDLES = 16, 38, 20, 75, 76, 102, 103
COMPUTE_MODES = {0: "default", 2: "prohibited", 3: "exclusive process"}
_PINNED, _ON_DEVICE, _POSIX_FD = 1, 1, 1  # CUmemAllocationType, CUmemLocationType, CUmemAllocationHandleType


class LibcudaError(RuntimeError):
    """A call that did not answer CUDA_SUCCESS; the text has the call's name and the driver's own words."""


class _AllocationProp(ctypes.Structure):
    """CUmemAllocationProp."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("requested_handle_types", ctypes.c_int),
        ("location_type", ctypes.c_int),
        ("location_id", ctypes.c_int),
        ("win32_metadata", ctypes.c_void_p),
        ("flags", ctypes.c_ubyte * 8),
    )


class Libcuda:
    """``library``: what has the driver's functions. Raises OSError where there is none, LibcudaError where it does not start."""

    def __init__(self, library: Any = None) -> None:
        self.library = ctypes.CDLL(LIBRARY) if library is None else library
        self.call("cuInit", 0)

    def call(self, name: str, *arguments: Any) -> None:
        code = getattr(self.library, name)(*arguments)
        if code:
            text = ctypes.c_char_p()
            self.library.cuGetErrorName(code, ctypes.byref(text))
            said = (text.value or b"unknown error").decode()
            raise LibcudaError(f"{name}: {said} ({code})")

    def _number(self, name: str, *arguments: Any, kind: type[Any] = ctypes.c_int) -> int:
        out = kind()
        self.call(name, ctypes.byref(out), *arguments)
        return int(out.value)

    def version(self) -> str:
        """The newest CUDA that this driver runs, "13.0"."""
        number = self._number("cuDriverGetVersion")
        return f"{number // 1000}.{number % 1000 // 10}"

    def devices(self) -> list[dict[str, Any]]:
        """One entry per device; sizes in bytes. ``granule``: of cuMemCreate, None without virtual memory management."""
        return [self._device(index) for index in range(self._number("cuDeviceGetCount"))]

    def _device(self, index: int) -> dict[str, Any]:
        device = self._number("cuDeviceGet", index)
        name = ctypes.create_string_buffer(128)
        self.call("cuDeviceGetName", name, len(name), device)

        def attribute(which: int) -> int:
            return self._number("cuDeviceGetAttribute", which, device)

        about: dict[str, Any] = {
            "index": index,
            "name": name.value.decode(),
            "memory_bytes": self._number("cuDeviceTotalMem_v2", device, kind=ctypes.c_size_t),
            "capability": f"{attribute(_MAJOR)}.{attribute(_MINOR)}",
            "multiprocessors": attribute(_MULTIPROCESSORS),
            "l2_bytes": attribute(_L2_BYTES),
            "compute_mode": COMPUTE_MODES.get(attribute(_COMPUTE_MODE), "unknown"),
            "vmm": bool(attribute(_VMM)),
            "posix_handles": bool(attribute(_POSIX_HANDLES)),
        }
        about["granule"] = self._granule(device) if about["vmm"] else None
        about["free_bytes"] = self._free_bytes(device)
        return about

    def _granule(self, device: int) -> int:
        prop = _AllocationProp(_PINNED, _POSIX_FD, _ON_DEVICE, device)
        return self._number("cuMemGetAllocationGranularity", ctypes.byref(prop), 0, kind=ctypes.c_size_t)

    def _free_bytes(self, device: int) -> int:
        """Needs a context, which is what fails where a device is taken by somebody else."""
        context = ctypes.c_void_p()
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        try:
            self.call("cuCtxSetCurrent", context)
            total = ctypes.c_size_t()
            return self._number("cuMemGetInfo_v2", ctypes.byref(total), kind=ctypes.c_size_t)
        finally:
            self.call("cuCtxSetCurrent", None)
            self.call("cuDevicePrimaryCtxRelease_v2", device)

    def peers(self, count: int) -> Iterator[tuple[int, int, bool]]:
        """(device, peer, whether the device can read the peer's memory) for every ordered pair."""
        handles = [self._number("cuDeviceGet", index) for index in range(count)]
        for a in range(count):
            for b in range(count):
                if a != b:
                    yield a, b, bool(self._number("cuDeviceCanAccessPeer", handles[a], handles[b]))

"""Facts of machines that these tests do not run on, and a driver library made of Python."""

from __future__ import annotations

import ctypes
from typing import Any

from gyges.doctor.facts import Fact

PACKAGES = (
    "torch",
    "triton",
    "numba",
    "numpy",
    "msgspec",
    "safetensors",
    "psutil",
    "pandas",
    "pyarrow",
    "pyyaml",
    "datasets",
    "transformers",
)


def bare(*without: str) -> list[Fact]:
    """A machine with all packages but these, and no GPU."""
    facts = [Fact("python", name, "1.0", data=None if name in without else "1.0") for name in PACKAGES]
    return [*facts, Fact("gpu", "driver", "none", "note"), Fact("gpu", "torch", "a build without CUDA", "note")]


def with_gpus(count: int, *without: str) -> list[Fact]:
    facts = [fact for fact in bare(*without) if fact.group != "gpu"]
    if "cuda-bindings" not in without:
        facts.append(Fact("python", "cuda-bindings", "13.0", data="13.0"))
    facts.append(Fact("gpu", "devices", str(count), data=count))
    for index in range(count):
        facts.append(Fact("gpu", f"device {index}", "GPU", data={"name": "GPU"}))
        facts.append(Fact("gpu", f"device {index} VMM", "granule 2.0 MiB", data=2 << 20))
    facts.append(Fact("gpu", "torch", "2.11", data="13.0"))
    return facts


class FakeLibcuda:
    """``libcuda.so.1`` as ctypes would have it: results by name, everything else written through references."""

    def __init__(self, devices: int = 1, **results: int) -> None:
        self.devices, self.results = devices, results
        self.attributes = {75: 9, 76: 0, 16: 132, 38: 50 << 20, 20: 0, 102: 1, 103: 1}
        self.blind: set[tuple[int, int]] = set()
        self.free, self.total = 78 << 30, 80 << 30
        self.retained = 0

    def _answer(self, name: str, reference: Any, value: Any) -> int:
        if not self.results.get(name, 0):
            reference._obj.value = value
        return self.results.get(name, 0)

    def cuInit(self, flags: int) -> int:  # noqa: N802 - the driver's names
        return self.results.get("cuInit", 0)

    def cuGetErrorName(self, code: int, text: Any) -> int:  # noqa: N802
        text._obj.value = b"CUDA_ERROR_UNKNOWN"
        return 0

    def cuDriverGetVersion(self, out: Any) -> int:  # noqa: N802
        return self._answer("cuDriverGetVersion", out, 13000)

    def cuDeviceGetCount(self, out: Any) -> int:  # noqa: N802
        return self._answer("cuDeviceGetCount", out, self.devices)

    def cuDeviceGet(self, out: Any, index: int) -> int:  # noqa: N802
        return self._answer("cuDeviceGet", out, index)

    def cuDeviceGetName(self, buffer: Any, size: int, device: int) -> int:  # noqa: N802
        buffer.value = f"NVIDIA Test {device}".encode()
        return 0

    def cuDeviceTotalMem_v2(self, out: Any, device: int) -> int:  # noqa: N802
        return self._answer("cuDeviceTotalMem_v2", out, self.total)

    def cuDeviceGetAttribute(self, out: Any, which: int, device: int) -> int:  # noqa: N802
        return self._answer("cuDeviceGetAttribute", out, self.attributes[which])

    def cuMemGetAllocationGranularity(self, out: Any, prop: Any, option: int) -> int:  # noqa: N802
        asked = prop._obj
        assert (asked.type, asked.requested_handle_types, asked.location_type) == (1, 1, 1)
        assert ctypes.sizeof(asked) == 32, "CUmemAllocationProp has 32 bytes"
        return self._answer("cuMemGetAllocationGranularity", out, 2 << 20)

    def cuDevicePrimaryCtxRetain(self, out: Any, device: int) -> int:  # noqa: N802
        self.retained += 1
        return self._answer("cuDevicePrimaryCtxRetain", out, 1)

    def cuDevicePrimaryCtxRelease_v2(self, device: int) -> int:  # noqa: N802
        self.retained -= 1
        return 0

    def cuCtxSetCurrent(self, context: Any) -> int:  # noqa: N802
        return 0

    def cuMemGetInfo_v2(self, out: Any, total: Any) -> int:  # noqa: N802
        return self._answer("cuMemGetInfo_v2", out, self.free)

    def cuDeviceCanAccessPeer(self, out: Any, device: int, peer: int) -> int:  # noqa: N802
        return self._answer("cuDeviceCanAccessPeer", out, int((device, peer) not in self.blind))

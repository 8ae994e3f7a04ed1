"""NVIDIA's driver as the page pool needs it, through ``cuda-bindings`` (extra ``cuda``). Every call's return is checked.

An error names the call, what it was about, and the driver's own name and text for it. Called from one thread, the worker's: the
device's primary context, which torch uses too, is current in it. Not yet run on hardware (docs/cuda.md).
"""

from __future__ import annotations

import importlib
import os
from typing import Any

from gyges.config import format_bytes
from gyges.errors import EngineError, UserError
from gyges.memory import dlpack
from gyges.memory.cuda_ipc import IpcCalls

_OUT_OF_MEMORY = "CUDA_ERROR_OUT_OF_MEMORY"


class CudaError(EngineError):
    """A driver call failed. ``name``: the driver's for it, "CUDA_ERROR_INVALID_VALUE"; ``call``: the function's."""

    def __init__(self, call: str, about: str, name: str, text: str) -> None:
        self.call, self.name = call, name
        super().__init__(f"{call}{f' ({about})' if about else ''}: {name}: {text}")


def load_bindings() -> Any:
    """``cuda.bindings.driver``. Raises UserError where it is not installed."""
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise UserError(
            f"GPU memory needs cuda-bindings ({error}); pip install 'gyges[cuda]', and see gyges doctor"
        ) from error
    return driver


def open_driver(index: int, maker: str = "") -> CudaDriver:
    """``maker``: "module:function" that makes another than the GPU's, in the process that it is named to."""
    if not maker:
        return CudaDriver(index)
    module, _, name = maker.partition(":")
    driver = getattr(importlib.import_module(module), name)()
    assert isinstance(driver, CudaDriver), f"{maker} makes no driver"
    return driver


class CudaDriver(IpcCalls):
    """One device. Addresses and sizes in bytes; handles are the driver's.

    api: what has the driver's functions (tests bring their own).   dlpack_device: where tensors over its memory say they are.
    Raises UserError where there is no such device or it cannot map pages, CudaError where the driver fails.
    """

    def __init__(self, index: int = 0, api: Any = None, dlpack_device: dlpack.Device | None = None) -> None:
        self.api = load_bindings() if api is None else api
        self.index = index
        self.dlpack_device = dlpack_device or (dlpack.CUDA, index)
        self._retained = False
        self._start()
        count = self._call("cuDeviceGetCount")
        if not 0 <= index < count:
            raise UserError(f"there is no GPU {index}: {count} visible; see gyges doctor")
        self._device = self._call("cuDeviceGet", index)
        attribute = self.api.CUdevice_attribute
        for wanted, what in (
            (attribute.CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, "map pages"),
            (
                attribute.CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED,
                "hand pages to other processes",
            ),
        ):
            if not self._call("cuDeviceGetAttribute", wanted, self._device):
                raise UserError(f"GPU {index} cannot {what}: choose another, or CPU devices; see gyges doctor")
        self._context = self._call("cuDevicePrimaryCtxRetain", self._device)
        self._retained = True
        self._call("cuCtxSetCurrent", self._context)
        self._prop = self._allocation_prop()
        minimum = self.api.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM
        self.granule: int = int(self._call("cuMemGetAllocationGranularity", self._prop, minimum))

    def _start(self) -> None:
        try:
            self._call("cuInit", 0)
        except CudaError as error:
            raise UserError(f"NVIDIA's driver does not start: {error}; see gyges doctor") from error
        except RuntimeError as error:  # the bindings look for the driver's library at the first call
            raise UserError(
                f"there is no NVIDIA driver here ({error}); use CPU devices, or see gyges doctor"
            ) from error

    def close(self) -> None:
        """Idempotent."""
        if self._retained:
            self._retained = False
            self._call("cuDevicePrimaryCtxRelease", self._device)

    def _call(self, name: str, *arguments: Any, about: str = "") -> Any:
        """What the function answers beside its result: nothing, one value, or a tuple."""
        result, *values = getattr(self.api, name)(*arguments)
        if int(result):
            raise CudaError(name, about, *self._say(result))
        return values[0] if len(values) == 1 else tuple(values) or None

    def _say(self, result: Any) -> tuple[str, str]:
        found = []
        for function in (self.api.cuGetErrorName, self.api.cuGetErrorString):
            known, text = function(result)
            found.append(text.decode() if not int(known) and isinstance(text, bytes) else f"error {int(result)}")
        return found[0], found[1]

    # -- structures ---------------------------------------------------------------------------------------------------

    def _allocation_prop(self) -> Any:
        """Pinned memory of this device that may be exported as a descriptor."""
        api = self.api
        prop = api.CUmemAllocationProp()
        prop.type = api.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        prop.location.type = api.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        prop.location.id = self.index
        prop.requestedHandleTypes = self._descriptor
        return prop

    @property
    def _descriptor(self) -> Any:
        return self.api.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR

    # -- memory -------------------------------------------------------------------------------------------------------

    def memory(self) -> tuple[int, int]:
        """(free, total) bytes of the device, all its users counted."""
        free, total = self._call("cuMemGetInfo")
        return int(free), int(total)

    def reserve(self, size: int) -> int:
        """Addresses that fault; a multiple of the granule."""
        return int(self._call("cuMemAddressReserve", size, 0, 0, 0, about=format_bytes(size)))

    def free_addresses(self, address: int, size: int) -> None:
        self._call("cuMemAddressFree", address, size, about=f"{format_bytes(size)} at {address:#x}")

    def create(self, size: int) -> Any:
        """The handle of physical memory. Raises UserError if the device has none left."""
        try:
            return self._call("cuMemCreate", size, self._prop, 0, about=format_bytes(size))
        except CudaError as error:
            if error.name != _OUT_OF_MEMORY:
                raise
            raise UserError(f"GPU {self.index} has no memory left: give a smaller --device-memory ({error})") from error

    def release(self, handle: Any) -> None:
        """The memory itself goes when its last mapping and its last handle have gone, in any process."""
        self._call("cuMemRelease", handle)

    def map(self, address: int, size: int, handle: Any) -> None:
        """Nobody may touch it before :meth:`allow`."""
        self._call("cuMemMap", address, size, 0, handle, 0, about=f"{format_bytes(size)} at {address:#x}")

    def allow(self, address: int, size: int, *, write: bool) -> None:
        """This device may read, and with ``write`` write, what is mapped there; all of it must be mapped."""
        flags = self.api.CUmemAccess_flags
        access = self.api.CUmemAccessDesc()
        access.location.type = self.api.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        access.location.id = self.index
        access.flags = flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE if write else flags.CU_MEM_ACCESS_FLAGS_PROT_READ
        what = f"{'write' if write else 'read'} {format_bytes(size)} at {address:#x}"
        self._call("cuMemSetAccess", address, size, [access], 1, about=what)

    def unmap(self, address: int, size: int) -> None:
        """Whole mappings, one or several; nobody may still be reading."""
        self._call("cuMemUnmap", address, size, about=f"{format_bytes(size)} at {address:#x}")

    def export(self, handle: Any) -> int:
        """A new descriptor of the memory, which no program that this process starts inherits."""
        fd = int(self._call("cuMemExportToShareableHandle", handle, self._descriptor, 0))
        os.set_inheritable(fd, False)
        return fd

    def import_(self, fd: int) -> Any:
        """A handle of a peer's memory; ``fd`` may be closed afterwards."""
        return self._call("cuMemImportFromShareableHandle", fd, self._descriptor, about=f"descriptor {fd}")

    # -- work ---------------------------------------------------------------------------------------------------------

    def wait(self, stream: Any = None) -> None:
        """Until everything given to the stream so far is done; without one, everything of this process on the device."""
        if stream is None:
            self._call("cuCtxSynchronize")
        else:
            self._call("cuStreamSynchronize", stream)

    def broken(self) -> bool:
        """Whether every call fails from now on, since a kernel faulted; waits for all work of this process on the device."""
        try:
            self.wait()
        except CudaError:
            return True
        return False

    def copy(self, destination: int, source: int, size: int, stream: Any) -> None:
        """Device to device (a peer's mapped pages too), in the order of the stream."""
        about = f"{format_bytes(size)} from {source:#x} to {destination:#x}"
        self._call("cuMemcpyDtoDAsync", destination, source, size, stream, about=about)

    # -- events -------------------------------------------------------------------------------------------------------

    def record(self, stream: Any) -> Any:
        """An event that happens when everything given to the stream so far is done; the caller destroys it."""
        event = self._call("cuEventCreate", 0)
        self._call("cuEventRecord", event, stream)
        return event

    def follow(self, stream: Any, event: Any) -> None:
        """What is given to the stream from now on begins after the event, as it was last recorded; one that nobody has recorded
        counts as happened. The host does not wait."""
        self._call("cuStreamWaitEvent", stream, event, 0)

    def elapsed(self, first: Any, last: Any) -> float:
        """Seconds between two events that have happened, by the device's clock."""
        return float(self._call("cuEventElapsedTime", first, last)) / 1000

    def destroy(self, event: Any) -> None:
        """Streams that were told to follow it still do. A shared one is destroyed by those that opened it first."""
        self._call("cuEventDestroy", event)

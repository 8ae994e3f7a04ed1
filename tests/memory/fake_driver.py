"""NVIDIA's driver made of memfd and mmap, as strict as its documentation: for everything that must hold without a GPU.

It has the functions of ``cuda.bindings.driver`` that the pool uses, under their names, and answers as they do. Memory is real:
what is written through one mapping is read through another, addresses without a mapping or without access rights fault. And it

    refuses   (AssertionError) what the documentation forbids and hardware may let pass: unmapping a part of a mapping, freeing
              addresses that have mappings, access for a device that is not there, a call before cuInit or without a context
    watches   kernels and copies that were launched and not waited for: unmapping what they touch is refused
    delays    (``late``) copies, as long as the documentation lets them take: until the host waits for their stream, or another
              stream was told to follow them, whose kernels a test runs itself
    counts    what is left: :meth:`leaks`
    records   every call: ``calls``
    fails     on demand: :meth:`fail`
"""

from __future__ import annotations

import ctypes
import itertools
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from memory.cuda_names import (
    CUdevice_attribute,
    CUmemAccess_flags,
    CUmemAccessDesc,
    CUmemAllocationGranularity_flags,
    CUmemAllocationHandleType,
    CUmemAllocationProp,
    CUmemAllocationType,
    CUmemLocationType,
    CUresult,
)
from memory.fake_ipc import IpcFake

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_NONE, _READ, _RW = 0, 1, 3
_SHARED, _PRIVATE, _FIXED, _ANONYMOUS, _NORESERVE = 1, 2, 0x10, 0x20, 0x4000


@dataclass
class _Memory:
    """Physical memory: it goes when no handle and no mapping is left."""

    fd: int
    size: int
    handles: int = 1
    mappings: int = 0


@dataclass
class _Mapping:
    memory: _Memory
    size: int
    access: int = _NONE


@dataclass
class _Event:
    """``after``: so many copies of the stream's queue."""

    stream: int = -1
    after: int = 0
    at_s: float = 0.0


@dataclass
class FakeCuda(IpcFake):
    """One process's view of a machine with ``devices`` GPUs of ``memory_bytes`` each."""

    devices: int = 1
    memory_bytes: int = 1 << 30
    granule: int = 4096
    attributes: dict[int, int] = field(default_factory=lambda: {102: 1, 103: 1})
    read_only: bool = True  # whether access without writing is known
    late: bool = False
    calls: list[str] = field(default_factory=list)

    CUdevice_attribute = CUdevice_attribute
    CUmemAllocationType = CUmemAllocationType
    CUmemLocationType = CUmemLocationType
    CUmemAllocationHandleType = CUmemAllocationHandleType
    CUmemAllocationGranularity_flags = CUmemAllocationGranularity_flags
    CUmemAccess_flags = CUmemAccess_flags
    CUmemAllocationProp = CUmemAllocationProp
    CUmemAccessDesc = CUmemAccessDesc

    def __post_init__(self) -> None:
        self.started = False
        self.context: int | None = None
        self.retained: Counter[int] = Counter()
        self.reserved: dict[int, int] = {}
        self.mappings: dict[int, _Mapping] = {}
        self._at: dict[int, int] = {}  # granule -> start of the mapping that covers it
        self.handles: dict[int, _Memory] = {}
        self.running: dict[int, list[tuple[int, int]]] = {}  # stream -> (address, size) that its kernels touch
        self.events: dict[int, _Event] = {}
        self._queued: dict[int, list[tuple[int, int, int]]] = {}  # stream -> (destination, source, size) to be copied
        self._numbers = itertools.count(1000)
        self._failures: dict[str, tuple[int, CUresult]] = {}
        self.used = 0
        self.start_ipc()

    # -- for tests ----------------------------------------------------------------------------------------------------

    def fail(self, name: str, result: CUresult, after: int = 0) -> None:
        """The call of that name fails once, after so many that do not."""
        self._failures[name] = (after, result)

    def launch(self, stream: int, address: int, size: int) -> None:
        """A kernel on ``stream`` that touches these addresses begins, and runs until somebody waits for it."""
        self.running.setdefault(stream, []).append((address, size))

    def leaks(self) -> dict[str, int]:
        """What has not been given back."""
        left = {
            "addresses": len(self.reserved),
            "mappings": len(self.mappings),
            "handles": len(self.handles),
            "contexts": sum(self.retained.values()),
            "events": len(self.events) + len(self.shared_events),
            "bytes": self.used,
            "shared": len(self.shared),
        }
        return {what: count for what, count in left.items() if count}

    # -- helpers ------------------------------------------------------------------------------------------------------

    def _enter(self, name: str, *, needs_context: bool = True) -> CUresult:
        self.calls.append(name)
        assert name == "cuInit" or self.started, f"{name} before cuInit"
        assert not needs_context or self.context is not None, f"{name} without a current context"
        if name in self._failures:
            after, result = self._failures.pop(name)
            if not after:
                return result
            self._failures[name] = (after - 1, result)
        return CUresult.CUDA_SUCCESS

    def _within(self, address: int, size: int) -> None:
        assert any(a <= address and address + size <= a + n for a, n in self.reserved.items()), (
            f"{address:#x} + {size} is not reserved"
        )

    def _granules(self, address: int, size: int) -> range:
        return range(address // self.granule, (address + size) // self.granule)

    def _covered(self, address: int, size: int) -> list[tuple[int, _Mapping]]:
        """The mappings that make up exactly this range."""
        found, at = [], address
        while at < address + size:
            assert at in self.mappings, f"{at:#x} is no start of a mapping"
            found.append((at, self.mappings[at]))
            at += self.mappings[at].size
        assert at == address + size, "the range ends inside a mapping"
        return found

    def _check_location(self, location: Any) -> None:
        assert location.type == CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        assert 0 <= location.id < self.devices, f"no device {location.id}"

    def _drop(self, memory: _Memory) -> None:
        if not memory.handles and not memory.mappings:
            os.close(memory.fd)
            self.used -= memory.size

    # -- the driver ---------------------------------------------------------------------------------------------------

    def cuInit(self, flags: int) -> tuple[Any]:  # noqa: N802 - the driver's names
        self.started = True
        return (self._enter("cuInit", needs_context=False),)

    def cuGetErrorName(self, result: Any) -> tuple[Any, bytes]:  # noqa: N802
        return CUresult.CUDA_SUCCESS, CUresult(result).name.encode()

    def cuGetErrorString(self, result: Any) -> tuple[Any, bytes]:  # noqa: N802
        return CUresult.CUDA_SUCCESS, CUresult(result).name.lower().replace("_", " ").encode()

    def cuDeviceGetCount(self) -> tuple[Any, int]:  # noqa: N802
        return self._enter("cuDeviceGetCount", needs_context=False), self.devices

    def cuDeviceGet(self, index: int) -> tuple[Any, int]:  # noqa: N802
        return self._enter("cuDeviceGet", needs_context=False), index

    def cuDeviceGetAttribute(self, which: int, device: int) -> tuple[Any, int]:  # noqa: N802
        return self._enter("cuDeviceGetAttribute", needs_context=False), self.attributes.get(int(which), 0)

    def cuDevicePrimaryCtxRetain(self, device: int) -> tuple[Any, int]:  # noqa: N802
        self.retained[device] += 1
        return self._enter("cuDevicePrimaryCtxRetain", needs_context=False), 77 + device

    def cuDevicePrimaryCtxRelease(self, device: int) -> tuple[Any]:  # noqa: N802
        assert self.retained[device] > 0, "a context is released that nobody retained"
        self.retained[device] -= 1
        if not self.retained[device]:
            self.context = None
        return (self._enter("cuDevicePrimaryCtxRelease", needs_context=False),)

    def cuCtxSetCurrent(self, context: int) -> tuple[Any]:  # noqa: N802
        self.context = context
        return (self._enter("cuCtxSetCurrent", needs_context=False),)

    def cuMemGetAllocationGranularity(self, prop: Any, option: Any) -> tuple[Any, int]:  # noqa: N802
        return self._enter("cuMemGetAllocationGranularity"), self.granule

    def cuMemGetInfo(self) -> tuple[Any, int, int]:  # noqa: N802
        return self._enter("cuMemGetInfo"), self.memory_bytes - self.used, self.memory_bytes

    def cuMemAddressReserve(self, size: int, alignment: int, address: int, flags: int) -> tuple[Any, int]:  # noqa: N802
        result = self._enter("cuMemAddressReserve")
        assert size > 0, "no addresses were asked for"
        assert size % self.granule == 0, "addresses come in multiples of the granule"
        assert flags == 0
        if result:
            return result, 0
        start = int(_libc.mmap(None, size, _NONE, _PRIVATE | _ANONYMOUS | _NORESERVE, -1, 0))
        self.reserved[start] = size
        return result, start

    def cuMemAddressFree(self, address: int, size: int) -> tuple[Any]:  # noqa: N802
        result = self._enter("cuMemAddressFree")
        assert self.reserved.get(address) == size, "addresses are freed whole, as they were reserved"
        assert not [at for at in self.mappings if address <= at < address + size], "addresses with mappings are freed"
        if not result:
            del self.reserved[address]
            _libc.munmap(address, size)
        return (result,)

    def cuMemCreate(self, size: int, prop: Any, flags: int) -> tuple[Any, int]:  # noqa: N802
        result = self._enter("cuMemCreate")
        assert size % self.granule == 0, "memory comes in multiples of the granule"
        assert prop.type == CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        assert prop.requestedHandleTypes == CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
        assert flags == 0
        self._check_location(prop.location)
        if result:
            return result, 0
        if self.used + size > self.memory_bytes:
            return CUresult.CUDA_ERROR_OUT_OF_MEMORY, 0
        fd = os.memfd_create("fake-cuda", os.MFD_CLOEXEC)
        os.ftruncate(fd, size)
        self.used += size
        return result, self._new_handle(_Memory(fd, size))

    def _new_handle(self, memory: _Memory) -> int:
        number = next(self._numbers)
        self.handles[number] = memory
        return number

    def cuMemRelease(self, handle: int) -> tuple[Any]:  # noqa: N802
        result = self._enter("cuMemRelease")
        assert handle in self.handles, f"handle {handle} is released that does not exist"
        if not result:
            memory = self.handles.pop(handle)
            memory.handles -= 1
            self._drop(memory)
        return (result,)

    def cuMemMap(self, address: int, size: int, offset: int, handle: int, flags: int) -> tuple[Any]:  # noqa: N802
        result = self._enter("cuMemMap")
        assert handle in self.handles, f"handle {handle} is mapped that does not exist"
        memory = self.handles[handle]
        assert (offset, flags) == (0, 0), "only whole handles can be mapped"
        assert size == memory.size, "only whole handles can be mapped"
        assert address % self.granule == 0
        self._within(address, size)
        assert not any(granule in self._at for granule in self._granules(address, size)), "mapped twice"
        if not result:
            _libc.mmap(address, size, _NONE, _SHARED | _FIXED, memory.fd, 0)
            self.mappings[address] = _Mapping(memory, size)
            self._at |= dict.fromkeys(self._granules(address, size), address)
            memory.mappings += 1
        return (result,)

    def cuMemSetAccess(self, address: int, size: int, descriptors: list[Any], count: int) -> tuple[Any]:  # noqa: N802
        result = self._enter("cuMemSetAccess")
        assert count == len(descriptors) == 1
        self._check_location(descriptors[0].location)
        covered = self._covered(address, size)
        flags = int(descriptors[0].flags)
        if not result and flags == _READ and not self.read_only:
            return (CUresult.CUDA_ERROR_NOT_SUPPORTED,)
        if not result:
            for at, mapping in covered:
                mapping.access = flags
                assert _libc.mprotect(at, mapping.size, flags) == 0, os.strerror(ctypes.get_errno())
        return (result,)

    def cuMemUnmap(self, address: int, size: int) -> tuple[Any]:  # noqa: N802
        result = self._enter("cuMemUnmap")
        covered = self._covered(address, size)
        busy = [
            stream
            for stream, touched in self.running.items()
            if any(a < address + size and address < a + n for a, n in touched)
        ]
        assert not busy, f"unmapped while kernels of stream {busy} may still touch it"
        if not result:
            _libc.mmap(address, size, _NONE, _PRIVATE | _ANONYMOUS | _NORESERVE | _FIXED, -1, 0)
            for at, mapping in covered:
                del self.mappings[at]
                for granule in self._granules(at, mapping.size):
                    del self._at[granule]
                mapping.memory.mappings -= 1
                self._drop(mapping.memory)
        return (result,)

    def cuMemExportToShareableHandle(self, handle: int, kind: Any, flags: int) -> tuple[Any, int]:  # noqa: N802
        result = self._enter("cuMemExportToShareableHandle")
        assert kind == CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
        assert handle in self.handles, f"handle {handle} is exported that does not exist"
        return result, -1 if result else os.dup(self.handles[handle].fd)

    def cuMemImportFromShareableHandle(self, fd: int, kind: Any) -> tuple[Any, int]:  # noqa: N802
        result = self._enter("cuMemImportFromShareableHandle")
        assert kind == CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
        if result:
            return result, 0
        same = os.fstat(fd).st_ino
        for memory in {
            id(m): m for m in (*self.handles.values(), *(m.memory for m in self.mappings.values()))
        }.values():
            if os.fstat(memory.fd).st_ino == same:
                memory.handles += 1
                return result, self._new_handle(memory)
        size = os.fstat(fd).st_size  # another process's: it counts there
        self.used += size
        return result, self._new_handle(_Memory(os.dup(fd), size))

    def cuCtxSynchronize(self) -> tuple[Any]:  # noqa: N802
        for stream in list(self._queued):
            self._copy_queued(stream)
        self.running.clear()
        return (self._enter("cuCtxSynchronize"),)

    def cuStreamSynchronize(self, stream: int) -> tuple[Any]:  # noqa: N802
        self._copy_queued(stream)
        self.running.pop(stream, None)
        return (self._enter("cuStreamSynchronize"),)

    def _copy_queued(self, stream: int, count: int | None = None) -> None:
        """The first ``count`` copies of a stream that are still to be done, or all."""
        queue = self._queued.get(stream, [])
        count = len(queue) if count is None else count
        for destination, source, size in queue[:count]:
            ctypes.memmove(destination, source, size)
        del queue[:count]
        for event in self.events.values():
            if event.stream == stream:
                event.after = max(0, event.after - count)

    def cuEventCreate(self, flags: int) -> tuple[Any, int]:  # noqa: N802
        result = self._enter("cuEventCreate")
        if flags:
            return result, 0 if result else self.new_shared_event(flags)
        number = next(self._numbers)
        self.events[number] = _Event()
        return result, number

    def cuEventRecord(self, event: int, stream: int) -> tuple[Any]:  # noqa: N802
        result = self._enter("cuEventRecord")
        if event in self.shared_events:
            self.count_record(event)
            return (result,)
        self.events[event] = _Event(stream, len(self._queued.get(stream, [])), time.perf_counter())
        return (result,)

    def cuStreamWaitEvent(self, stream: int, event: int, flags: int) -> tuple[Any]:  # noqa: N802
        """What comes next on ``stream`` is run by the test, at once: so what it waits for is done now. The host did not wait."""
        result = self._enter("cuStreamWaitEvent")
        assert flags == 0
        if event in self.shared_events:
            self.require_record(event)
            return (result,)
        found = self.events[event]
        assert found.stream >= 0, "an event is waited for that was never recorded"
        assert found.stream != stream, "a stream waits for itself"
        self._copy_queued(found.stream, found.after)
        return (result,)

    def cuEventElapsedTime(self, first: int, last: int) -> tuple[Any, float]:  # noqa: N802
        """Milliseconds."""
        a, b = self.events[first], self.events[last]
        assert a.stream >= 0 <= b.stream, "an event is timed that was never recorded"
        assert not a.after + b.after, "an event is timed that has not happened"
        return self._enter("cuEventElapsedTime"), (b.at_s - a.at_s) * 1000

    def cuEventDestroy(self, event: int) -> tuple[Any]:  # noqa: N802
        result = self._enter("cuEventDestroy")
        if event in self.shared_events:
            self.give_up_event(event)
        else:
            del self.events[event]
        return (result,)

    def cuMemcpyDtoDAsync(self, destination: int, source: int, size: int, stream: int) -> tuple[Any]:  # noqa: N802
        """Copied at once, or ``late``; its addresses count as touched until the stream is waited for."""
        result = self._enter("cuMemcpyDtoDAsync")
        self._allowed(source, size, _READ)
        self._allowed(destination, size, _RW)
        if not result:
            self._queued.setdefault(stream, []).append((destination, source, size))
            if not self.late:
                self._copy_queued(stream)
            self.launch(stream, source, size)
            self.launch(stream, destination, size)
        return (result,)

    def _allowed(self, address: int, size: int, access: int) -> None:
        at = address
        while at < address + size:
            start = self._at.get(at // self.granule)
            assert start is not None, f"{at:#x} is copied and not mapped"
            mapping = self.mappings[start]
            assert mapping.access & access == access, f"{at:#x} has no access rights for this copy"
            at = start + mapping.size

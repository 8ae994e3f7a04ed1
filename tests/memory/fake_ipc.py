"""The fake driver's memory and events between processes, real ones too: a handle names a descriptor of the process that made it.

    memory of a handle    | what was allocated | a page: int64 number of those that have it open |
    event                 | int64 how often it was recorded | int64 number of those that have it open |

Streams of the fake driver do everything at once, so an event that was recorded has happened. Refused (AssertionError) is what the
documentation leaves undefined: freeing what another process has open, a handle in the process that made it, an event followed
that nobody has recorded (a driver would not wait, and that is never meant).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

_MAGIC = 0x47594745
_MEMORY, _EVENT = 1, 2
_PAGE = mmap.PAGESIZE


class CUipcMem_flags(IntEnum):  # noqa: N801 - cuda.h's names
    CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS = 1


class CUevent_flags(IntEnum):  # noqa: N801
    CU_EVENT_DISABLE_TIMING = 2
    CU_EVENT_INTERPROCESS = 4


class CUipcMemHandle:
    def __init__(self) -> None:
        self._data = ctypes.create_string_buffer(64)

    def getPtr(self) -> int:  # noqa: N802 - the bindings' name
        return ctypes.addressof(self._data)


class CUipcEventHandle(CUipcMemHandle):
    pass


@dataclass
class _Shared:
    """A memfd that several have mapped, and where in it the count of those that opened it is."""

    fd: int
    size: int
    opened_at: int
    owned: bool
    map: mmap.mmap = field(init=False)

    def __post_init__(self) -> None:
        self.map = mmap.mmap(self.fd, os.fstat(self.fd).st_size)

    @property
    def address(self) -> int:
        return ctypes.addressof(ctypes.c_char.from_buffer(self.map))

    def number(self, at: int) -> ctypes.c_int64:
        return ctypes.c_int64.from_buffer(self.map, at)

    def openers(self, change: int = 0) -> int:
        """Under a lock between processes; within one, the interpreter's."""
        os.lockf(self.fd, os.F_LOCK, 0)
        try:
            self.number(self.opened_at).value += change
            return self.number(self.opened_at).value
        finally:
            os.lockf(self.fd, os.F_ULOCK, 0)


class IpcFake:
    """Part of FakeCuda."""

    CUipcMem_flags, CUevent_flags = CUipcMem_flags, CUevent_flags
    CUipcMemHandle, CUipcEventHandle = CUipcMemHandle, CUipcEventHandle

    def start_ipc(self) -> None:
        self.shared: dict[int, _Shared] = {}  # address -> allocated or opened
        self.shared_events: dict[int, _Shared] = {}

    def cuMemAlloc(self, size: int) -> tuple[Any, int]:  # noqa: N802
        result = self._enter("cuMemAlloc")
        assert size > 0, "no memory was asked for"
        if result:
            return result, 0
        if self.used + size > self.memory_bytes:
            return type(result).CUDA_ERROR_OUT_OF_MEMORY, 0
        whole = -(-size // _PAGE) * _PAGE
        fd = os.memfd_create("fake-cuda-shared", os.MFD_CLOEXEC)
        os.ftruncate(fd, whole + _PAGE)
        made = _Shared(fd, size, whole, owned=True)
        self.used += size
        self.shared[made.address] = made
        return result, made.address

    def cuMemFree(self, address: int) -> tuple[Any]:  # noqa: N802
        result = self._enter("cuMemFree")
        assert address in self.shared, f"{address:#x} is freed that was not allocated"
        assert self.shared[address].owned, "another process's memory is freed"
        self._untouched(address, "freed")
        assert not self.shared[address].openers(), "memory is freed that another process has open"
        if not result:
            self.used -= self.shared[address].size
            os.close(self.shared.pop(address).fd)
        return (result,)

    def _untouched(self, address: int, what: str) -> None:
        end = address + self.shared[address].size
        busy = [s for s, touched in self.running.items() if any(a < end and address < a + n for a, n in touched)]
        assert not busy, f"memory is {what} while kernels of stream {busy} may still touch it"

    def cuIpcGetMemHandle(self, address: int) -> tuple[Any, Any]:  # noqa: N802
        result = self._enter("cuIpcGetMemHandle")
        assert address in self.shared, f"a handle of {address:#x}, which is no start of what cuMemAlloc gave"
        assert self.shared[address].owned, "a handle of another process's memory"
        return result, None if result else self._handle(CUipcMemHandle, _MEMORY, self.shared[address])

    def cuIpcOpenMemHandle(self, handle: Any, flags: int) -> tuple[Any, int]:  # noqa: N802
        result = self._enter("cuIpcOpenMemHandle")
        assert flags == CUipcMem_flags.CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS
        if result:
            return result, 0
        opened = self._open(handle, CUipcMemHandle, _MEMORY)
        self.shared[opened.address] = opened
        return result, opened.address

    def cuIpcCloseMemHandle(self, address: int) -> tuple[Any]:  # noqa: N802
        result = self._enter("cuIpcCloseMemHandle")
        assert address in self.shared, f"{address:#x} is closed that is not open"
        assert not self.shared[address].owned, "one's own memory is closed"
        self._untouched(address, "closed")
        if not result:
            self.shared[address].openers(-1)
            os.close(self.shared.pop(address).fd)
        return (result,)

    def _handle(self, kind: Any, what: int, shared: _Shared) -> Any:
        handle = kind()
        data = struct.pack("<6q", _MAGIC, what, os.getpid(), shared.fd, id(self), shared.size)
        ctypes.memmove(handle.getPtr(), data, len(data))
        return handle

    def _open(self, handle: Any, kind: Any, what: int) -> _Shared:
        assert isinstance(handle, kind), f"a handle of another kind: {type(handle).__name__}"
        magic, is_a, pid, fd, maker, size = struct.unpack("<6q", ctypes.string_at(handle.getPtr(), 48))
        assert (magic, is_a) == (_MAGIC, what), "a handle of nothing known"
        assert (pid, maker) != (os.getpid(), id(self)), "a handle is opened by the process that made it"
        own = os.open(f"/proc/{pid}/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
        opened_at = 8 if what == _EVENT else -(-size // _PAGE) * _PAGE
        opened = _Shared(own, size, opened_at, owned=False)
        opened.openers(1)
        return opened

    # -- events: the calls that other events have too are FakeCuda's ----------------------------------------------------

    def new_shared_event(self, flags: int) -> int:
        assert flags == CUevent_flags.CU_EVENT_INTERPROCESS | CUevent_flags.CU_EVENT_DISABLE_TIMING, (
            "events between processes have no timing, and others have it"
        )
        fd = os.memfd_create("fake-cuda-event", os.MFD_CLOEXEC)
        os.ftruncate(fd, _PAGE)
        return self._enter_event(_Shared(fd, 8, 8, owned=True))

    def _enter_event(self, event: _Shared) -> int:
        number = next(self._numbers)
        self.shared_events[number] = event
        return number

    def give_up_event(self, event: int) -> None:
        found = self.shared_events[event]
        if found.owned:
            assert not found.openers(), "an event is destroyed that another process has open"
        else:
            found.openers(-1)
        os.close(self.shared_events.pop(event).fd)

    def count_record(self, event: int) -> None:
        self.shared_events[event].number(0).value += 1

    def require_record(self, event: int) -> None:
        assert self.shared_events[event].number(0).value > 0, "an event is followed that nobody has recorded"

    def cuIpcGetEventHandle(self, event: int) -> tuple[Any, Any]:  # noqa: N802
        result = self._enter("cuIpcGetEventHandle")
        assert event in self.shared_events, f"event {event} was not made for other processes"
        found = self.shared_events[event]
        assert found.owned, "a handle of another process's event"
        return result, None if result else self._handle(CUipcEventHandle, _EVENT, found)

    def cuIpcOpenEventHandle(self, handle: Any) -> tuple[Any, int]:  # noqa: N802
        result = self._enter("cuIpcOpenEventHandle")
        return result, 0 if result else self._enter_event(self._open(handle, CUipcEventHandle, _EVENT))

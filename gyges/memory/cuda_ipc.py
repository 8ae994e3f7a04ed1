"""Memory and events that other processes open by handles of 64 bytes (CUDA IPC): the part of CudaDriver that peers on GPUs need.

A handle can be opened in every process but the one that made it. Whoever has opened it closes it before its owner frees what
is behind it: NVIDIA's documentation leaves the other order undefined. The pool's pages (cuMemCreate) have no such handles, so
this is memory beside the pool. Not yet run on hardware (docs/cuda.md).
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from gyges.config import format_bytes

HANDLE_BYTES = 64
# The driver cuts small allocations from blocks of this size, and a handle shares the whole block.
BLOCK_BYTES = 2 << 20


class IpcCalls:
    """Addresses and sizes in bytes; events are the driver's handles, opaque."""

    if TYPE_CHECKING:
        api: Any

        def _call(self, name: str, *arguments: Any, about: str = "") -> Any: ...

    # -- memory -------------------------------------------------------------------------------------------------------

    def allocate(self, size: int) -> int:
        return int(self._call("cuMemAlloc", size, about=format_bytes(size)))

    def free(self, address: int) -> None:
        """Nobody reads it any more, and no other process has it open."""
        self._call("cuMemFree", address, about=f"{address:#x}")

    def memory_handle(self, address: int) -> bytes:
        """Of what :meth:`allocate` gave."""
        return _bytes_of(self._call("cuIpcGetMemHandle", address, about=f"{address:#x}"))

    def open_memory(self, handle: bytes) -> int:
        """Its address in this process. On another GPU, access between the two is switched on."""
        opened = _handle_of(self.api.CUipcMemHandle, handle)
        lazy = self.api.CUipcMem_flags.CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS
        return int(self._call("cuIpcOpenMemHandle", opened, int(lazy)))

    def close_memory(self, address: int) -> None:
        """What :meth:`open_memory` gave; no kernel of this process is reading it."""
        self._call("cuIpcCloseMemHandle", address, about=f"{address:#x}")

    # -- events -------------------------------------------------------------------------------------------------------

    def shared_event(self) -> Any:
        flags = self.api.CUevent_flags
        return self._call("cuEventCreate", int(flags.CU_EVENT_INTERPROCESS) | int(flags.CU_EVENT_DISABLE_TIMING))

    def event_handle(self, event: Any) -> bytes:
        """Of what :meth:`shared_event` gave."""
        return _bytes_of(self._call("cuIpcGetEventHandle", event))

    def open_event(self, handle: bytes) -> Any:
        return self._call("cuIpcOpenEventHandle", _handle_of(self.api.CUipcEventHandle, handle))

    def mark(self, event: Any, stream: Any) -> None:
        """The event happens when everything given to the stream so far is done. What it stood for before is forgotten."""
        self._call("cuEventRecord", event, stream)


# Newer bindings do not show a handle's bytes as an attribute; its address is what all of them give.


def _bytes_of(handle: Any) -> bytes:
    return ctypes.string_at(handle.getPtr(), HANDLE_BYTES)


def _handle_of(kind: Any, data: bytes) -> Any:
    assert len(data) == HANDLE_BYTES, f"a handle of {len(data)} bytes"
    handle = kind()
    ctypes.memmove(handle.getPtr(), data, HANDLE_BYTES)
    return handle

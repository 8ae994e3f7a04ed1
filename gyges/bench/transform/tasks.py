"""What the benchmark asks of a worker process, and what it answers. MessagePack, tagged by type, one answer to each task."""

from __future__ import annotations

from typing import Any

import msgspec

from gyges.bench.transform.shapes import Sizing
from gyges.core import ModelGeometry
from gyges.transform.host import HostShape
from gyges.transform.ops import AnyOp


class Task(msgspec.Struct, array_like=True, tag=True, frozen=True):
    """Base of all tasks."""


class Open(Task):
    """Pages for a device; what was open is closed. The answer is followed by the descriptors of the pages."""

    page_bytes: int
    device_pages: int


class Meet(Task):
    """The descriptors of all workers' pages follow, in the order of the workers."""


class MemCopy(Task):
    """Copies a buffer to another with numpy, ``times`` times, together with ``members``; the others wait for nothing."""

    members: tuple[int, ...]
    buffer_bytes: int
    times: int


class Case(msgspec.Struct, frozen=True):
    """One combination of what is compared, on ``degree`` workers. The model is cut already."""

    model: ModelGeometry
    page_bytes: int
    device_pages: int
    degree: int
    layout: str
    padding: bool

    def host(self) -> HostShape:
        return Sizing(self.model, self.page_bytes, self.device_pages).host(
            self.degree, self.layout, padding=self.padding
        )


class Prepare(Task):
    """Become a TP1 instance with these blocks (int32 ids) in its KV cache, everything written."""

    case: Case
    blocks: bytes
    seed: int


class Run(Task):
    """Carry a program out, beginning when all workers are there. Answers with seconds and gyges.transform.device.Spent."""

    ops: list[AnyOp]


class Check(Task):
    """Compare the KV blocks (int32 ids by narrow instance), ``sample`` of each in full, and the FFN units with what was
    written. Answers how many are wrong."""

    blocks: list[tuple[int, bytes]]
    sample: int


AnyTask = Open | Meet | MemCopy | Prepare | Run | Check


class Answer(msgspec.Struct, frozen=True):
    """``error``: an exception's text; the worker exits after it."""

    result: dict[str, Any] = {}
    error: str = ""


encode = msgspec.msgpack.Encoder().encode
decode_task = msgspec.msgpack.Decoder(AnyTask).decode
decode_answer = msgspec.msgpack.Decoder(Answer).decode

"""Frozen configuration. Derived values are properties; nothing here touches the machine or a file.

Unknown keys are refused where a configuration is read from a mapping (:func:`EngineConfig.from_dict`).
"""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from gyges.errors import UnknownNameError, UserError

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
_UNITS = {"": 1, "B": 1, "KIB": KIB, "MIB": MIB, "GIB": GIB, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def parse_bytes(text: str | int) -> int:
    """``"256MiB"`` -> 268435456. Accepts B, KiB, MiB, GiB, KB, MB, GB; a bare number is bytes."""
    if isinstance(text, int):
        return text
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    if not match or match[2].upper() not in _UNITS:
        raise UserError(f"cannot read {text!r} as a size; write for example 256MiB or 2GiB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def format_bytes(count: float) -> str:
    """1536 -> "1.5 KiB"; for people, three significant digits or so."""
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def parse_instances(text: str) -> tuple[int, ...]:
    """``"tp1,tp1,tp2"`` or ``"2xtp1,tp2"`` -> TP degrees (1, 1, 2). Devices are given out in this order."""
    degrees: list[int] = []
    for part in text.replace("+", ",").split(","):
        match = re.fullmatch(r"\s*(?:(\d+)\s*[x*])?\s*tp(\d+)\s*", part.lower())
        if not match or int(match[2]) < 1 or int(match[1] or 1) < 1:
            raise UserError(f"cannot read instance {part!r} in {text!r}; write for example tp1,tp1,tp2 or 4xtp1")
        degrees += [int(match[2])] * int(match[1] or 1)
    return tuple(degrees)


def format_instances(degrees: tuple[int, ...]) -> str:
    return ",".join(f"tp{degree}" for degree in degrees)


def available_cores() -> int:
    """Cores this process may run on (affinity, not what the machine has)."""
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Everything an engine needs to start. Sizes in bytes, lengths in tokens, times in seconds.

    model: preset name, checkpoint folder or hub id.   dtype: "auto" (the checkpoint's; on GPUs bfloat16), "float32" or
        "bfloat16".
    device: what a device is: "cpu" (memory and cores of this machine) or "cuda" (workers may share a GPU).
    collectives: how the workers of an instance sum (gyges.parallel.collectives); "auto": on CPU devices shared memory, on GPUs
        NCCL where every worker has one of its own, peer memory where they share.
    instances: the TP degree of each instance; an instance of degree d takes the next d devices.
    tp_degrees: degrees that the host may take while it runs; "shards" are cut for all of them. Empty: those in
        ``instances``.
    device_memory: hard budget of each device for weights and KV cache together.
    page_bytes: physical page; 0 chooses. CUDA's granule is 2 MiB; on the CPU a page may be smaller, and since a page of
        `shard-pages` is one shard of one block, the choice is the smallest power of two from 16 KiB to 2 MiB in which
        such a block has at least 16 tokens.
    layout: KV layout, see gyges.kv_cache.layouts.   padding: FFN shards start and end on a page.
    overlap: a transformation goes on between serving steps; off: stop, transform, go on.
    pages_per_step: KV pages (and FFN pages) that a worker moves between two steps with the overlap on; 0 chooses: a 64th of
        the device.
    block_size: tokens of a KV block; 0 lets the layout choose (16, or what fills a page of `shard-pages`).
    max_batch_tokens: token budget of one step (chunked prefill).   max_seqs: requests of one step.
    max_context: longest prompt + output, 0 for what the model allows.
    threads: per worker; 0 shares the machine's cores evenly.
    start_timeout / step_timeout / transform_timeout: deadlines of the long waits.
    """

    model: str = "tiny"
    revision: str | None = None
    dtype: str = "auto"
    seed: int = 0
    device: str = "cpu"
    collectives: str = "auto"
    instances: tuple[int, ...] = (1,)
    tp_degrees: tuple[int, ...] = ()
    device_memory: int = 64 * MIB
    page_bytes: int = 0
    layout: str = "shard-pages"
    padding: bool = True
    overlap: bool = True
    pages_per_step: int = 0
    block_size: int = 0
    max_batch_tokens: int = 512
    max_seqs: int = 64
    max_context: int = 0
    threads: int = 0
    start_timeout: float = 120.0
    step_timeout: float = 60.0
    transform_timeout: float = 120.0

    def __post_init__(self) -> None:
        from gyges.kv_cache.layouts import LAYOUTS
        from gyges.parallel.collectives import COLLECTIVES

        LAYOUTS.get(self.layout)
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise UnknownNameError("dtype", self.dtype, ("auto", "float32", "bfloat16"))
        if self.device not in ("cpu", "cuda"):
            raise UnknownNameError("device", self.device, ("cpu", "cuda"))
        if self.collectives != "auto" and COLLECTIVES.get(self.collectives).device != self.device:
            fitting = ", ".join(name for name, way in COLLECTIVES.items() if way.device == self.device)
            raise UserError(
                f"collectives {self.collectives!r} do not work on {self.device} devices; these do: {fitting}"
            )
        if not self.instances:
            raise UserError("an engine needs at least one instance, for example --instances tp1")
        if any(degree < 1 for degree in self.instances + self.tp_degrees):
            raise UserError(f"TP degrees are at least 1, got {self.instances + self.tp_degrees}")
        os_page = os.sysconf("SC_PAGE_SIZE")
        if self.page_bytes < 0 or self.page_bytes % os_page:
            raise UserError(f"page_bytes must be a multiple of this system's {os_page} bytes, got {self.page_bytes}")
        for name in ("max_batch_tokens", "max_seqs", "device_memory"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("block_size", "max_context", "threads", "pages_per_step"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must be 0 (choose) or positive, got {getattr(self, name)}")

    @property
    def num_devices(self) -> int:
        return sum(self.instances)

    @property
    def transforms(self) -> bool:
        """Whether instances may change their TP degree while they run."""
        return len(self.candidate_degrees) > 1

    @property
    def candidate_degrees(self) -> tuple[int, ...]:
        """Every TP degree that an instance of this host may ever have, sorted."""
        return tuple(sorted(set(self.instances) | set(self.tp_degrees)))

    @property
    def worker_threads(self) -> int:
        return self.threads or max(1, available_cores() // self.num_devices)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EngineConfig:
        known = [f.name for f in fields(cls)]
        for name in values:
            if name not in known:
                raise UnknownNameError("engine option", name, known)
        listed = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**listed)

    def with_(self, **changes: Any) -> EngineConfig:
        return replace(self, **changes)

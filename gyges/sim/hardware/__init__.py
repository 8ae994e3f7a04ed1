"""Hardware descriptions: one YAML file per kind of device, every figure with its source. An extension is one more file.

``h20`` is one of them on its own host; ``h20x8`` is 8 of them on one host; a path ending in .yaml is a file of the user's.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from gyges.errors import UnknownNameError, UserError

_EFFICIENCIES = ("compute", "memory", "link")
_OVERHEADS = ("step_s", "layer_s", "all_reduce_s", "kernel_gap_s", "launch_gap_s")
_NUMBERS = (
    "devices_per_host", "memory_bytes", "memory_bytes_per_s", "link_bytes_per_s", "memory_utilization", "reserve_bytes",
)  # fmt: skip
_FIELDS = {*_NUMBERS, "description", "flops", "efficiency", "overhead", "transform", "sources"}
_SOURCED = (*_NUMBERS[1:], "flops", "efficiency", "overhead", "transform")


@dataclass(frozen=True, slots=True)
class TransformCosts:
    """What changing the TP degree costs beside bytes over the link. Seconds and bytes/s, of one device.

    copy_bytes_per_s: from peers, while all devices of a transformation copy at once.   local_bytes_per_s: within a device.
    descriptor_s: more for each contiguous copy.   map_s, unmap_s: of a physical page; range_s: more for each range of
    neighbouring pages that is mapped or unmapped in one call.   sync_s: one rendezvous of the workers concerned.
    communicator_s: until the new group can talk.   graph_s: until CUDA graphs of the new degree can be launched.
    beside: the share of the time of copies by which steps beside them take longer.
    host_bytes_per_s: to or from host memory.   start_s: from nothing to serving, but for the weights.
    """

    copy_bytes_per_s: float
    local_bytes_per_s: float
    descriptor_s: float
    map_s: float
    unmap_s: float
    range_s: float
    sync_s: float
    communicator_s: float
    graph_s: float
    beside: float
    host_bytes_per_s: float
    start_s: float


@dataclass(frozen=True, slots=True)
class Hardware:
    """One kind of device. Bytes, bytes/s, FLOP/s (dense) and seconds, of one device.

    flops: by dtype ("bfloat16", "float32").   link_bytes_per_s: one direction, to all peers of the host together.
    *_efficiency: the share of the figure before it that kernels reach.
    step_s, layer_s: time of a step and of a layer that no roofline has.   all_reduce_s: least time of one all-reduce.
    kernel_gap_s, launch_gap_s: so long a device idles between two kernels, in a CUDA graph and outside one; measured tables hold
    the kernels alone.
    memory_utilization: the share of memory_bytes that an engine takes.   reserve_bytes: what of it is neither
    weights nor KV cache.   transform: see TransformCosts.
    """

    name: str
    description: str
    devices_per_host: int
    memory_bytes: float
    memory_bytes_per_s: float
    flops: dict[str, float]
    link_bytes_per_s: float
    compute_efficiency: float
    memory_efficiency: float
    link_efficiency: float
    step_s: float
    layer_s: float
    all_reduce_s: float
    kernel_gap_s: float
    launch_gap_s: float
    memory_utilization: float
    reserve_bytes: float
    transform: TransformCosts
    sources: dict[str, str]

    def flops_of(self, item_size: int) -> float:
        """FLOP/s of the dtype with this item size in bytes (4: fp32, 2: bf16)."""
        dtype = {2: "bfloat16", 4: "float32"}[item_size]
        if dtype not in self.flops:
            raise UserError(
                f"hardware {self.name!r} has no flops for {dtype}; add it to its file, or choose another dtype"
            )
        return self.flops[dtype]


def hardware_named(text: str) -> str | None:
    """The bundled description that ``text`` ("RTXPRO6000") names, up to case and punctuation; None if none does."""
    plain = re.sub(r"[^a-z0-9]", "", text.lower())
    return next((name for name in known_hardware() if name.replace("-", "") == plain), None)


def known_hardware() -> list[str]:
    """Names of the bundled descriptions."""
    return sorted(
        entry.name.removesuffix(".yaml") for entry in files(__name__).iterdir() if entry.name.endswith(".yaml")
    )


def load_hardware(name: str) -> tuple[Hardware, int]:
    """``h20``, ``h20x8`` or a file ``./card.yaml`` -> the device, and how many of them one host has.

    Without a count it is the file's ``devices_per_host``. Raises UserError: unknown name (lists the known ones), a field that is
    missing, unknown or no positive number, a figure without a source.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name).expanduser()
        if not path.is_file():
            raise UserError(f"there is no hardware file {name}; bundled: {', '.join(known_hardware())}")
        hardware = parse_hardware(path.stem, path.read_text(encoding="utf-8"))
        return hardware, hardware.devices_per_host
    known = known_hardware()
    match = re.fullmatch(r"(.+?)x(\d+)", name)
    if name not in known and match and match[1] in known:
        count = int(match[2])
        if count < 1:
            raise UserError(f"hardware {name!r}: a host has at least one device, e.g. {match[1]}x8")
        return _bundled(match[1]), count
    if name not in known:
        raise UnknownNameError("hardware", name, known, "Add xN for N devices a host (h20x8), or name a .yaml file")
    hardware = _bundled(name)
    return hardware, hardware.devices_per_host


@cache
def _bundled(name: str) -> Hardware:
    return parse_hardware(name, (files(__name__) / f"{name}.yaml").read_text(encoding="utf-8"))


def parse_hardware(name: str, text: str) -> Hardware:
    """The YAML of one device. Raises UserError that names the field."""
    import yaml

    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"hardware {name!r} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"hardware {name!r} must be a YAML mapping with the fields {', '.join(sorted(_FIELDS))}")
    for wrong, what in ((values.keys() - _FIELDS, "unknown"), (_FIELDS - values.keys(), "missing")):
        if wrong:
            raise UserError(f"hardware {name!r}: {what} field {', '.join(sorted(map(str, wrong)))}")
    flops = _mapping(name, values, "flops")
    efficiency, overhead = _mapping(name, values, "efficiency"), _mapping(name, values, "overhead")
    transform = _mapping(name, values, "transform")
    sources = values["sources"]
    unsourced = [field for field in _SOURCED if not isinstance(sources, dict) or not sources.get(field)]
    if unsourced:
        raise UserError(
            f"hardware {name!r}: no source is given for {', '.join(unsourced)}; say where each figure comes from"
        )
    numbers = {field: _number(name, field, values[field]) for field in _NUMBERS}
    for share in _EFFICIENCIES:
        if _number(name, f"efficiency.{share}", efficiency.get(share)) > 1:
            raise UserError(f"hardware {name!r}: efficiency.{share} is a share, at most 1")
    return Hardware(
        name=name,
        description=str(values["description"]),
        devices_per_host=int(numbers.pop("devices_per_host")),
        flops={str(dtype): _number(name, f"flops.{dtype}", value) for dtype, value in flops.items()},
        **{f"{share}_efficiency": float(efficiency[share]) for share in _EFFICIENCIES},
        **{part: _number(name, f"overhead.{part}", overhead.get(part), least=0.0) for part in _OVERHEADS},
        transform=_transform(name, transform),
        sources={str(field): str(source) for field, source in sources.items()},
        **numbers,
    )


def _transform(name: str, values: dict[str, Any]) -> TransformCosts:
    known = [each.name for each in fields(TransformCosts)]
    if wrong := sorted(map(str, values.keys() ^ set(known))):
        raise UserError(
            f"hardware {name!r}: transform has the fields {', '.join(known)}; missing or unknown: {', '.join(wrong)}"
        )
    return TransformCosts(
        **{
            part: _number(name, f"transform.{part}", values[part], least=None if part.endswith("_per_s") else 0.0)
            for part in known
        }
    )


def _mapping(name: str, values: dict[str, Any], field: str) -> dict[str, Any]:
    if not isinstance(values[field], dict):
        raise UserError(f"hardware {name!r}: {field} must be a mapping")
    return dict(values[field])


def _number(name: str, field: str, value: Any, least: float | None = None) -> float:
    fine = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not fine or (value <= 0 if least is None else value < least):
        raise UserError(
            f"hardware {name!r}: {field} must be a positive number, got {value!r} (write 4.0e+12, with the sign)"
        )
    return float(value)

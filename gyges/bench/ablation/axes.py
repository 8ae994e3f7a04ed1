"""What the cells of an ablation may differ in, as data. A new axis is one ``AXES.add``.

A setting is an axis's value in canonical text ("on", "16777216", "tp1,tp1,tp2"): it can be hashed, shown, and put in a file name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gyges.config import EngineConfig, format_bytes, parse_bytes, parse_instances
from gyges.errors import UserError
from gyges.registry import Registry

Settings = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Axis:
    """One thing that may differ.

    of: "engine" (a field of EngineConfig), "scheduler", or "trace" (the caller makes the requests from it).
    read: from what a person writes to the value; raises UserError.   field: of EngineConfig.
    on, off: the two settings of a toggle; None: not one.   meaning: for people.
    """

    name: str
    of: Literal["engine", "scheduler", "trace"]
    read: Callable[[str], Any]
    meaning: str
    field: str = ""
    on: str | None = None
    off: str | None = None
    show: Callable[[Any], str] = str

    @property
    def is_toggle(self) -> bool:
        return self.on is not None

    def canonical(self, text: str) -> str:
        """One spelling per value. Raises UserError for what cannot be read."""
        return self.show(self.read(text.strip()))


def _switch(text: str) -> bool:
    known = {"on": True, "off": False, "true": True, "false": False, "yes": True, "no": False}
    if text.lower() not in known:
        raise UserError(f"{text!r} is neither on nor off")
    return known[text.lower()]


def _shown_switch(value: bool) -> str:
    return "on" if value else "off"


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UserError(f"{text!r} is not a whole number") from None


def _devices(text: str) -> tuple[int, ...]:
    count = _whole(text)
    if count < 1:
        raise UserError(f"an engine needs at least one device, got {text}")
    return (1,) * count


def _degrees(text: str) -> tuple[int, ...]:
    return tuple(_whole(part) for part in text.split("+"))


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise UserError(f"{text!r} is not a positive number")
    return value


def _share(text: str) -> float:
    value = _positive(text) if text not in ("0", "0.0") else 0.0
    if value > 1:
        raise UserError(f"a share lies between 0 and 1, got {text}")
    return value


def _layout(text: str) -> str:
    from gyges.kv_cache.layouts import LAYOUTS

    LAYOUTS.get(text)
    return text


def _scheduler(text: str) -> str:
    from gyges.scheduling.specification import make_policy

    make_policy(text)
    return text


def _number(value: float) -> str:
    return f"{value:g}"


def _size(value: int) -> str:
    """Short where that is exact."""
    short = format_bytes(value).replace(" ", "").replace(".0", "").replace(".00", "")
    return short if parse_bytes(short) == value else str(value)


def _listed(value: tuple[int, ...]) -> str:
    # No comma: it separates the values of an axis.
    return "+".join(f"tp{degree}" for degree in value)


AXES: Registry[Axis] = Registry("axis of an ablation")


def _add(name: str, *args: Any, **more: Any) -> None:
    AXES.add(name, Axis(name, *args, **more))


_add("layout", "engine", _layout, "KV layout", field="layout", on="shard-pages", off="token-first")
_add(
    "padding", "engine", _switch, "FFN shards padded to pages", field="padding", on="on", off="off", show=_shown_switch
)
_add(
    "overlap", "engine", _switch, "transformations between steps, not in one stop", field="overlap", on="on", off="off",
    show=_shown_switch,
)  # fmt: skip
_add("scheduler", "scheduler", _scheduler, "who decides about merges and splits", on="gyges", off="llf")

_add("model", "engine", str, "preset or checkpoint", field="model")
_add("devices", "engine", _devices, "TP1 instances at first", field="instances", show=lambda value: str(len(value)))
_add("instances", "engine", parse_instances, "instances at first, as tp1+tp1+tp2", field="instances", show=_listed)
_add(
    "tp-degrees", "engine", _degrees, "degrees of the host, as 1+2+4", field="tp_degrees",
    show=lambda value: "+".join(map(str, value)),
)  # fmt: skip
_add("device-memory", "engine", parse_bytes, "of each device", field="device_memory", show=_size)
_add("page-size", "engine", parse_bytes, "of physical memory", field="page_bytes", show=_size)
_add("block-size", "engine", _whole, "tokens of a KV block", field="block_size")
_add("threads", "engine", _whole, "of each device", field="threads")
_add("pages-per-step", "engine", _whole, "that a device moves between two steps", field="pages_per_step")
_add("max-batch-tokens", "engine", _whole, "token budget of a step", field="max_batch_tokens")
_add("max-seqs", "engine", _whole, "sequences of a step", field="max_seqs")

_add("trace", "trace", str, "what is replayed")
_add("seed", "trace", _whole, "of the trace and its prompts")
_add("rate", "trace", _positive, "requests/s, by the gaps between arrivals", show=_number)
_add("long-share", "trace", _share, "share of requests that do not fit the lowest TP degree", show=_number)
_add("time-scale", "trace", _positive, "of gaps between arrivals", show=_number)
_add("length-scale", "trace", _positive, "of prompts and outputs", show=_number)
_add("limit", "trace", _whole, "requests", show=str)
_add("duration", "trace", _positive, "seconds of the trace", show=_number)


def toggles() -> list[Axis]:
    """The axes that are on or off, in the order in which they are shown."""
    return [axis for _, axis in AXES.items() if axis.is_toggle]


def engine_config(base: EngineConfig, settings: Settings) -> EngineConfig:
    """``base`` with the engine's axes of ``settings``. Raises UserError for what cannot work."""
    changes = {
        axis.field: axis.read(settings[name]) for name, axis in AXES.items() if axis.of == "engine" and name in settings
    }
    return base.with_(**changes)


def parse_set(text: str) -> tuple[str, tuple[str, ...]]:
    """``"rate=1,2"`` -> ("rate", ("1", "2")). Raises UserError; an unknown axis lists the known ones."""
    name, equals, values = (part.strip() for part in text.partition("="))
    axis = AXES.get(name)
    if not equals or not values:
        raise UserError(f"cannot read --set {text!r}; write for example --set {name}=VALUE,VALUE")
    try:
        found = tuple(axis.canonical(value) for value in values.split(","))
    except UserError as error:
        raise UserError(f"--set {text}: {error}") from None
    if len(set(found)) < len(found):
        raise UserError(f"--set {text} names a value twice; keep one of them")
    return name, found

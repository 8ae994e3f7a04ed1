"""Spec strings: ``synthetic:poisson?rate=2&prompt=1000&output=200&duration=60``, several joined by ``+``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from gyges.errors import UnknownNameError, UserError
from workloads.schema import Trace
from workloads.synthetic.lengths import parse_lengths
from workloads.synthetic.mixes import MIXES, Stream, generate
from workloads.synthetic.shapes import SHAPES

PREFIX = "synthetic:"
_STREAM_DEFAULTS = {"prompt": "1000", "output": "200", "duration": "60"}


def load_synthetic(spec: str, seed: int, *, duration_s: float | None = None) -> Trace:
    """The trace of a spec: parts joined by ``+``, each a load shape or a named mix with ``?key=value&...``.

    duration_s: of parts that do not give theirs; None: 60 s for a shape, a mix's own for a mix.
    """
    streams: list[Stream] = []
    for part in spec.removeprefix(PREFIX).split("+"):
        name, given = _parse_part(part)
        if duration_s is not None and (name in SHAPES or name in MIXES):
            given = {"duration": str(duration_s), **given}
        if name in SHAPES and (name not in MIXES or {"prompt", "output"} & set(given)):
            streams.append(_shape_stream(name, given))
        elif name in MIXES:
            streams.extend(_mix_streams(name, given))
        else:
            raise UnknownNameError("synthetic trace", name, {*SHAPES.names(), *MIXES.names()})
    name = spec.removeprefix(PREFIX)
    return generate(spec if spec.startswith(PREFIX) else PREFIX + spec, name, streams, seed)


def _parse_part(part: str) -> tuple[str, dict[str, str]]:
    name, _, query = part.strip().partition("?")
    given: dict[str, str] = {}
    for pair in filter(None, query.split("&")):
        key, separator, value = pair.partition("=")
        if not separator or not value:
            raise UserError(f"cannot read {pair!r} in {part!r}; write ?key=value&key=value")
        if key in given:
            raise UserError(f"{key!r} is given twice in {part!r}")
        given[key] = value
    return name, given


def _shape_stream(name: str, given: Mapping[str, str]) -> Stream:
    kind = SHAPES.get(name)
    own = [each.name for each in fields(kind)]
    _refuse_unknown(name, given, [*own, *_STREAM_DEFAULTS])
    shape = kind(**{key: _number(key, value) for key, value in given.items() if key in own})
    rest = {**_STREAM_DEFAULTS, **given}
    duration = _positive("duration", rest["duration"])
    return Stream(shape, parse_lengths(rest["prompt"]), parse_lengths(rest["output"]), duration)


def _mix_streams(name: str, given: Mapping[str, str]) -> list[Stream]:
    mix = MIXES.get(name)
    _refuse_unknown(name, given, list(mix.defaults))
    return mix.streams({**mix.defaults, **{key: _positive(key, value) for key, value in given.items()}})


def _refuse_unknown(name: str, given: Mapping[str, str], known: list[str]) -> None:
    for key in given:
        if key not in known:
            raise UnknownNameError(f"parameter of {name}", key, known)


def _number(key: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise UserError(f"{key}={value!r} is not a number") from None


def _positive(key: str, value: str) -> float:
    number = _number(key, value)
    if not 0 < number < float("inf"):
        raise UserError(f"{key} must be a positive number, got {value}")
    return number

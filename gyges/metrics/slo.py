"""Service-level objectives: ``ttft=10,tpot=100ms`` -> limits in seconds."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from gyges.errors import UnknownNameError, UserError

SLO_KEYS = {
    "ttft": "time to first token",
    "tpot": "time per output token after the first",
    "e2e": "arrival to end",
}
_UNITS = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6}
_EXAMPLE = "write for example ttft=10,tpot=100ms (seconds, or with s, ms, us)"


@dataclass(frozen=True, slots=True)
class Slo:
    """Upper limits in seconds; None sets no limit. A latency equal to its limit is within it."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None

    def to_dict(self) -> dict[str, float]:
        """Only the limits that are set, by field name, in seconds."""
        limits = {f"{key}_s": getattr(self, f"{key}_s") for key in SLO_KEYS}
        return {name: limit for name, limit in limits.items() if limit is not None}

    def __str__(self) -> str:
        return ",".join(f"{name.removesuffix('_s')}={limit:g}" for name, limit in self.to_dict().items())


def parse_slo(text: str) -> Slo:
    """Read the value of ``--slo``. Raises :class:`gyges.errors.UserError`; an unknown key lists the known ones."""
    limits: dict[str, float] = {}
    for part in text.split(","):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not key:
            raise UserError(f"cannot read {part.strip()!r} in --slo {text!r}; known: {', '.join(SLO_KEYS)}; {_EXAMPLE}")
        key = key.lower()
        if key not in SLO_KEYS:
            raise UnknownNameError("SLO key", key, SLO_KEYS, hint=_EXAMPLE)
        if f"{key}_s" in limits:
            raise UserError(f"{key} is given twice in --slo {text!r}; keep one of them")
        limits[f"{key}_s"] = _parse_seconds(key, value)
    return Slo(**limits)


def _parse_seconds(key: str, value: str) -> float:
    match = re.fullmatch(r"([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?|[0-9]+\.)\s*([a-z]*)", value.lower())
    if not match or match[2] not in _UNITS:
        raise UserError(f"cannot read {value!r} as the limit of {key} in --slo; {_EXAMPLE}")
    seconds = float(match[1]) * _UNITS[match[2]]
    if not 0 < seconds < math.inf:
        raise UserError(f"the limit of {key} in --slo must be positive and finite, got {value!r}; {_EXAMPLE}")
    return seconds

"""Failures of devices and hosts, as a person writes them: ``120s:host3``, ``60s:host0.dev2``, ``60s:host0.dev2:30s``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from gyges.errors import UserError

_EXAMPLE = "write for example 120s:host3, 60s:host0.dev2, or 60s:host0.dev2:30s for one that is back 30 s later"
_UNITS = {"": 1.0, "s": 1.0, "ms": 1e-3, "m": 60.0, "h": 3600.0}
_TIME = r"([0-9]+(?:\.[0-9]+)?|\.[0-9]+)(ms|s|m|h|)"
_PATTERN = re.compile(rf"\s*{_TIME}\s*:\s*host(\d{{1,6}})(?:\.dev(\d{{1,6}}))?\s*(?::\s*{_TIME}\s*)?")


@dataclass(frozen=True, slots=True)
class Failure:
    """``at_s``: from the run's start.   device: of that host; None: all of it.   back_s: when it serves again; None: never."""

    at_s: float
    host: int
    device: int | None = None
    back_s: float | None = None

    def __str__(self) -> str:
        what = f"host{self.host}" + ("" if self.device is None else f".dev{self.device}")
        return f"{self.at_s:g}s:{what}" + ("" if self.back_s is None else f":{self.back_s - self.at_s:g}s")


def parse_failure(text: str) -> Failure:
    """Raises UserError that says how it is written."""
    match = _PATTERN.fullmatch(text.lower())
    if not match:
        raise UserError(f"cannot read --fail {text!r}; {_EXAMPLE}")
    at_s = float(match[1]) * _UNITS[match[2]]
    back_s = at_s + float(match[5]) * _UNITS[match[6]] if match[5] is not None else None
    if back_s == at_s:
        raise UserError(f"--fail {text!r} is back at once; {_EXAMPLE}")
    return Failure(at_s, int(match[3]), int(match[4]) if match[4] is not None else None, back_s)


def check_failures(failures: Sequence[Failure], hosts: int, devices: int) -> None:
    """UserError for a host or device that there is not, and for one that fails again before it is back."""
    down: dict[tuple[int, int | None], Failure] = {}
    for failure in sorted(failures, key=lambda f: f.at_s):
        if failure.host >= hosts:
            raise UserError(
                f"--fail {failure}: the last of {hosts} hosts is host{hosts - 1}; name another, or more --hosts"
            )
        if failure.device is not None and failure.device >= devices:
            raise UserError(f"--fail {failure}: the last of {devices} devices of a host is dev{devices - 1}")
        for key in {(failure.host, failure.device), (failure.host, None)}:
            earlier = down.get(key)
            if earlier is not None and (earlier.back_s is None or earlier.back_s > failure.at_s):
                raise UserError(f"--fail {failure}: it is down already, since {earlier}; leave one of them out")
        down[failure.host, failure.device] = failure

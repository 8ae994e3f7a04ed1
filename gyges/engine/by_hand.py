"""Transformations that a person asks for, each at a time of a replay: ``5s merge 0,1,2,3``, ``12s split 0-3 tp2,tp2``.

A command waits for an earlier one on the same devices. What cannot be done yet (a request that only the wide instance can
hold still runs, another transformation is under way) is tried again until it works or the run ends.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Protocol

from gyges.config import EngineConfig, format_instances, parse_instances
from gyges.engine.transformer import TransformationReport
from gyges.errors import EngineError, UserError
from gyges.transform.plan import PlanImpossible

_EXAMPLE = "write for example '5s merge 0,1,2,3' or '12s split 0,1,2,3 tp2,tp2' (seconds after the replay's start)"
_UNITS = {"": 1.0, "s": 1.0, "ms": 1e-3, "m": 60.0}
_RETRY_S = 0.1
_GRACE_S = 10.0  # beyond the engine's own deadline, which a transformation that hangs meets first


@dataclass(frozen=True, slots=True)
class HandCommand:
    """``at_s``: seconds after the replay's start.   ``degrees``: of the instances there will be on ``devices``."""

    at_s: float
    kind: Literal["merge", "split"]
    devices: tuple[int, ...]
    degrees: tuple[int, ...]

    def __str__(self) -> str:
        devices = ",".join(map(str, self.devices))
        into = f" {format_instances(self.degrees)}" if self.kind == "split" else ""
        return f"{self.at_s:g}s {self.kind} {devices}{into}"


@dataclass(slots=True)
class HandOutcome:
    """What came of a command. Times: seconds after the replay's start, None where it was not carried out.

    state: ``done``; ``refused``, it made no sense then; ``failed``, it broke on the way; ``not done``, the run ended first.
    attempts: how often the engine was asked.   reason: why it was not done, or not at the first attempt.
    """

    command: str
    state: Literal["done", "refused", "failed", "not done"] = "not done"
    attempts: int = 0
    reason: str = ""
    start_s: float | None = None
    end_s: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def parse_command(text: str) -> HandCommand:
    """Reads one ``--transform``. Raises UserError that says what is wrong and how it is written."""
    words = text.split()
    if len(words) not in (3, 4):
        raise UserError(f"cannot read --transform {text!r}: {len(words)} words; {_EXAMPLE}")
    at_s, kind, devices = _seconds(words[0], text), words[1].lower(), _devices(words[2], text)
    if kind == "merge":
        if len(words) == 4:
            raise UserError(f"--transform {text!r}: a merge makes one instance; leave out {words[3]!r}, or say split")
        return HandCommand(at_s, "merge", devices, (len(devices),))
    if kind != "split":
        raise UserError(f"--transform {text!r}: {words[1]!r} is neither merge nor split; {_EXAMPLE}")
    if len(words) == 3:
        raise UserError(f"--transform {text!r}: into what? Add TP degrees, for example {_singles(devices)}")
    degrees = parse_instances(words[3])
    if sum(degrees) != len(devices):
        raise UserError(
            f"--transform {text!r}: {words[3]} takes {sum(degrees)} devices, and {words[2]} names {len(devices)}; "
            f"write for example {_singles(devices)}"
        )
    if len(degrees) < 2:
        raise UserError(f"--transform {text!r}: a split makes several instances, for example {_singles(devices)}")
    return HandCommand(at_s, "split", devices, degrees)


def _singles(devices: Sequence[int]) -> str:
    return format_instances((1,) * len(devices))


def _seconds(word: str, text: str) -> float:
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?|\.[0-9]+)([a-z]*)", word.lower())
    if not match or match[2] not in _UNITS:
        raise UserError(f"--transform {text!r}: {word!r} is no time; {_EXAMPLE}")
    return float(match[1]) * _UNITS[match[2]]


def _devices(word: str, text: str) -> tuple[int, ...]:
    found: list[int] = []
    for part in word.split(","):
        match = re.fullmatch(r"([0-9]{1,6})(?:-([0-9]{1,6}))?", part)
        if not match:
            raise UserError(f"--transform {text!r}: {part!r} is no device; {_EXAMPLE}")
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    if len(set(found)) != len(found):
        raise UserError(f"--transform {text!r}: {word} names a device twice; name each once")
    if len(found) < 2:
        raise UserError(f"--transform {text!r}: {word} names fewer than two devices; {_EXAMPLE}")
    return tuple(found)


def check_devices(commands: Sequence[HandCommand], num_devices: int) -> None:
    """UserError if one names a device that there is not."""
    for command in commands:
        last = max(command.devices)
        if last >= num_devices:
            raise UserError(
                f"--transform '{command}' names device {last}, and the last one is {num_devices - 1}: "
                f"name others, or give --devices {last + 1}"
            )


def check_degrees(commands: Sequence[HandCommand], config: EngineConfig) -> None:
    """UserError if one needs a degree that this host cannot take. ``config``: the engine's own, its degrees settled."""
    for command in commands:
        missing = [degree for degree in command.degrees if degree not in config.candidate_degrees]
        if missing:
            wanted = sorted({*config.candidate_degrees, *missing})
            raise UserError(
                f"--transform '{command}' needs TP{missing[0]}, which is not among the degrees of this host "
                f"({_named(config.candidate_degrees)}); give --tp-degrees {','.join(map(str, wanted))}"
            )


def _named(degrees: Sequence[int]) -> str:
    return ", ".join(f"TP{degree}" for degree in degrees)


def degrees_of(commands: Sequence[HandCommand]) -> tuple[int, ...]:
    """Every TP degree that the commands lead to: what the host must be able to take."""
    return tuple(sorted({degree for command in commands for degree in command.degrees}))


class Transforms(Protocol):
    """What is needed of an engine."""

    def merge(self, devices: Sequence[int], cause: str = ...) -> Future[TransformationReport]: ...

    def split(
        self, devices: Sequence[int], degrees: Sequence[int], cause: str = ...
    ) -> Future[TransformationReport]: ...


class _Attempts:
    """A command, and the attempts at it so far."""

    def __init__(self, command: HandCommand) -> None:
        self.command, self.outcome = command, HandOutcome(str(command))
        self.next_s = command.at_s
        self.deadline_s = 0.0
        self.future: Future[TransformationReport] | None = None


class ByHand:
    """Carries commands out on a thread of its own, from :meth:`start` to :meth:`stop`.

    ``timeout``: the engine's deadline of a transformation, in seconds; no attempt is waited for much longer.
    """

    def __init__(self, engine: Transforms, commands: Sequence[HandCommand], timeout: float) -> None:
        self._engine, self._timeout = engine, timeout
        self._all = [_Attempts(command) for command in sorted(commands, key=lambda c: c.at_s)]
        self._open = list(self._all)
        self._zero = 0.0
        self._ending = self._leaving = False
        self._news = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gyges-by-hand", daemon=True)

    def start(self, zero: float) -> None:
        """``zero``: the replay's start, monotonic seconds."""
        self._zero = zero
        if self._all:
            self._thread.start()

    def stop(self, *, wait: bool) -> None:
        """Asks for nothing more; ``wait``: for what is under way, up to its deadline. Idempotent."""
        self._ending, self._leaving = True, not wait
        self._news.set()
        if self._thread.ident is not None:
            self._thread.join()

    def outcomes(self) -> list[HandOutcome]:
        """One per command, by time; once stopped."""
        return [self._outcome(each) for each in self._all]

    def _outcome(self, each: _Attempts) -> HandOutcome:
        outcome = each.outcome
        if each not in self._open:
            return outcome
        reason = "the run ended before its turn"
        if each.future is not None:
            reason = "the run was ended while it was under way"
        elif outcome.attempts:
            reason = f"not possible in {outcome.attempts} attempts until the run ended: {outcome.reason}"
        return replace(outcome, reason=reason)

    def _now(self) -> float:
        return time.monotonic() - self._zero

    def _run(self) -> None:
        while self._open:
            busy: set[int] = set()
            wait = self._timeout
            for each in list(self._open):
                if each.future is None and not busy & set(each.command.devices) and not self._ending:
                    if each.next_s <= self._now():
                        self._ask(each)
                    else:
                        wait = min(wait, each.next_s - self._now())
                if each.future is not None:
                    if each.future.done() or each.deadline_s <= self._now():
                        self._settle(each, each.future)
                        wait = 0.0
                    else:
                        wait = min(wait, each.deadline_s - self._now())
                busy |= set(each.command.devices)
            if self._leaving or (self._ending and all(each.future is None for each in self._open)):
                return
            self._news.wait(max(0.0, wait))
            self._news.clear()

    def _ask(self, each: _Attempts) -> None:
        command = each.command
        each.outcome.attempts += 1
        each.deadline_s = self._now() + self._timeout + _GRACE_S
        try:
            if command.kind == "merge":
                each.future = self._engine.merge(command.devices)
            else:
                each.future = self._engine.split(command.devices, command.degrees)
        except EngineError as error:  # the engine has failed or is closed
            each.future = Future()
            each.future.set_exception(error)
        each.future.add_done_callback(lambda _: self._news.set())

    def _settle(self, each: _Attempts, future: Future[TransformationReport]) -> None:
        outcome, each.future = each.outcome, None
        error = future.exception() if future.done() else EngineError(f"no answer within {self._timeout + _GRACE_S:g} s")
        if isinstance(error, PlanImpossible):
            outcome.reason = str(error)
            each.next_s = self._now() + _RETRY_S
            return
        if error is None:
            report = future.result()
            outcome.state = "done"
            outcome.start_s, outcome.end_s = report.start_s - self._zero, report.end_s - self._zero
        else:
            outcome.state = "refused" if isinstance(error, UserError) else "failed"
            outcome.reason = str(error)
        self._open.remove(each)

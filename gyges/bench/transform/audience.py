"""Requests that run while instances are transformed, as somebody sees them who only reads their tokens."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Iterable, Sequence
from itertools import pairwise

from gyges.core import RequestOutput
from gyges.errors import EngineError


class Audience:
    """``deliver`` takes a request's outputs, on the engine's thread; the rest is for the caller's."""

    def __init__(self) -> None:
        self.tokens: dict[str, list[int]] = {}
        self.times: dict[str, list[float]] = {}  # monotonic seconds
        self.ended: dict[str, RequestOutput] = {}
        self._lock = threading.Lock()
        self._awaited: dict[str, int] = {}  # request -> tokens it must have
        self._there = threading.Event()

    def deliver(self, output: RequestOutput) -> None:
        name = output.request_id
        with self._lock:
            tokens = self.tokens.setdefault(name, [])
            tokens += output.token_ids
            self.times.setdefault(name, []).extend(output.token_times)
            if output.finished:
                self.ended[name] = output
            if name in self._awaited and (output.finished or len(tokens) >= self._awaited[name]):
                del self._awaited[name]
                if not self._awaited:
                    self._there.set()

    def wait_for(self, names: Iterable[str], more: int, timeout_s: float) -> None:
        """Until each of these requests has ``more`` tokens beyond those it has now. Raises EngineError if one ends before, or
        ``timeout_s`` seconds pass."""
        names = list(names)
        with self._lock:
            wanted = {name: len(self.tokens.get(name, ())) + more for name in names}
            self._awaited = {name: count for name, count in wanted.items() if more and name not in self.ended}
            self._there.clear()
            if not self._awaited:
                self._there.set()
        if not self._there.wait(timeout_s):
            raise EngineError(f"{len(self._awaited)} requests did not get {more} tokens within {timeout_s:.0f} s")
        for name in names:
            if name in self.ended and len(self.tokens[name]) < wanted[name]:
                output = self.ended[name]
                raise EngineError(f"request {name} ended in the middle: {output.finish_reason} {output.error or ''}")

    def wait_for_end(self, names: Iterable[str], timeout_s: float) -> None:
        """Until each of these has ended, however."""
        with self._lock:
            self._awaited = {name: 1 << 60 for name in names if name not in self.ended}
            self._there.clear()
            if not self._awaited:
                self._there.set()
        if not self._there.wait(timeout_s):
            raise EngineError(f"{len(self._awaited)} requests did not end within {timeout_s:.0f} s")


def gaps_between(times: Sequence[float], start_s: float, end_s: float) -> list[float]:
    """Seconds between neighbouring tokens, of the gaps that touch the time from ``start_s`` to ``end_s``."""
    return [b - a for a, b in pairwise(times) if b > start_s and a < end_s]


def typical_gap(
    requests: Iterable[Sequence[float]], *, until_s: float | None = None, since_s: float | None = None, count: int
) -> float:
    """Median over all requests: of the last ``count`` gaps over by ``until_s``, or of the first since ``since_s``."""
    gaps: list[float] = []
    for times in requests:
        if until_s is not None:
            gaps += [b - a for a, b in pairwise(times) if b <= until_s][-count:]
        elif since_s is not None:
            gaps += [b - a for a, b in pairwise(times) if a >= since_s][:count]
    return statistics.median(gaps)


def same_prefix(tokens: Sequence[int], reference: Sequence[int]) -> tuple[int, int]:
    """(tokens before the first difference, tokens that both have)."""
    common = min(len(tokens), len(reference))
    at = next((i for i in range(common) if tokens[i] != reference[i]), common)
    return at, common

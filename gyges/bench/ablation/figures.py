"""The figures of a cell's run, as data. Definitions of latencies: gyges.metrics.definitions.

A request is *long* where prompt and output together do not fit an instance of the lowest TP degree; both kinds are
reported apart, since what helps one may cost the other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from gyges.metrics import definitions as d
from gyges.metrics.records import RequestRecord, TimelineSample, TransformationEvent
from gyges.metrics.slo import Slo
from gyges.metrics.tables import read_requests, read_timeline

Unit = Literal["tok/s", "%", "s", "ms", "", "MiB"]
SCALES: dict[Unit, float] = {"ms": 1e3, "%": 100.0, "MiB": 1 / (1 << 20)}


@dataclass(frozen=True)
class Run:
    """One replay, read from its folder; ``records`` in the order of their ids, ``long``: which of them are.

    invalid: why its figures must not be trusted: the replayer fell behind.
    """

    records: list[RequestRecord]
    samples: list[TimelineSample]
    events: list[TransformationEvent]
    long: np.ndarray
    invalid: str | None = None

    @classmethod
    def read(cls, folder: Path, long_over: int | None) -> Run:
        """``long_over``: tokens above which a request is long; None: none is."""
        records = sorted(read_requests(folder / "requests.parquet"), key=lambda r: r.request_id)
        samples, events = read_timeline(folder / "timeline.parquet")
        replay = json.loads((folder / "summary.json").read_text())["replay"]
        return cls(records, samples, events, is_long(records, long_over), None if replay["valid"] else replay["reason"])


def is_long(records: Sequence[RequestRecord], long_over: int | None) -> np.ndarray:
    """Of each record."""
    limit = math.inf if long_over is None else long_over
    return np.array([r.prompt_tokens + r.target_output_tokens > limit for r in records], dtype=bool)


@dataclass(frozen=True, slots=True)
class RunFigure:
    """One number of a whole run. ``value``: in SI units, None where it is undefined.   unit: in which it is shown."""

    key: str
    label: str
    unit: Unit
    least: bool
    value: Callable[[Run, Slo | None], float | None]
    group: str = ""

    @property
    def scale(self) -> float:
        return SCALES.get(self.unit, 1.0)


@dataclass(frozen=True, slots=True)
class LatencyFigure:
    """The ``p``-th percentile of a latency over the short or the long requests. Less is better."""

    key: str
    label: str
    unit: Unit
    latency: Callable[[RequestRecord], float | None]
    p: float
    group: Literal["short", "long"]

    least = True

    @property
    def scale(self) -> float:
        return SCALES.get(self.unit, 1.0)

    def values(self, run: Run) -> np.ndarray:
        """Of every request of the run, seconds; infinite where it failed, NaN where undefined or of the other kind."""
        found = [self.latency(r) for r in run.records]
        values = np.array([math.nan if v is None else v for v in found], dtype=np.float64)
        values[run.long != (self.group == "long")] = math.nan
        return values


def _rate(run: Run, slo: Slo | None) -> float | None:
    return d.per_second(sum(d.delivered_output_tokens(r) for r in run.records), d.window_s(run.records))


def _goodput(run: Run, slo: Slo | None) -> float | None:
    return sum(d.meets(r, slo) for r in run.records) / len(run.records) if slo and run.records else None


def _lost(run: Run, slo: Slo | None) -> float:
    return float(sum(r.status != "completed" for r in run.records))


def _carried_out(run: Run) -> list[TransformationEvent]:
    return [event for event in run.events if not event.error]


def _count(run: Run, slo: Slo | None) -> float:
    return float(len(_carried_out(run)))


def _time(run: Run, slo: Slo | None) -> float:
    return math.fsum(event.end_s - event.start_s for event in _carried_out(run))


def _pause(run: Run, slo: Slo | None) -> float | None:
    return max((event.pause_s for event in _carried_out(run)), default=None)


def _extra(run: Run, slo: Slo | None) -> float | None:
    return max((float(e.extra_bytes) for e in _carried_out(run) if e.extra_bytes is not None), default=None)


RUN_FIGURES: tuple[RunFigure, ...] = (
    RunFigure("output_tokens_per_s", "throughput", "tok/s", False, _rate),
    RunFigure("goodput", "goodput", "%", False, _goodput),
    RunFigure("not_completed", "rejected or failed", "", True, _lost),
    RunFigure("transformations", "count", "", True, _count, "transformations"),
    RunFigure("transformation_s", "total time", "ms", True, _time, "transformations"),
    RunFigure("pause_max_s", "longest pause", "ms", True, _pause, "transformations"),
    RunFigure("extra_bytes_max", "peak extra memory", "MiB", True, _extra, "transformations"),
)


def _latencies() -> tuple[LatencyFigure, ...]:
    found = []
    groups: tuple[Literal["short", "long"], ...] = ("short", "long")
    for group in groups:
        for name, latency in (("ttft", d.ttft_s), ("tpot", d.tpot_s)):
            for p in (50, 99):
                found.append(LatencyFigure(f"{group}_{name}_p{p}_s", f"{name.upper()} p{p}", "ms", latency, p, group))
    return tuple(found)


LATENCY_FIGURES = _latencies()
Figure = RunFigure | LatencyFigure
_ALL: tuple[Figure, ...] = (*RUN_FIGURES, *LATENCY_FIGURES)
FIGURES: dict[str, Figure] = {figure.key: figure for figure in _ALL}
# What the change against the reference is shown for; ablation.json has it for every figure.
HEADLINES = ("output_tokens_per_s", "short_ttft_p99_s", "long_ttft_p99_s")

"""State over time, rebuilt from samples: a sample holds until the next one of its instance, or until another instance
is seen on one of its devices (a merge or split took place). Pure functions; the order of the samples does not matter.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby, pairwise

from gyges.metrics.records import TimelineSample


@dataclass(slots=True)
class FleetSeries:
    """Sums over all instances at each moment ``t_s`` (seconds): requests running and waiting, KV blocks."""

    t_s: list[float] = field(default_factory=list)
    running: list[int] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)
    kv_used_blocks: list[int] = field(default_factory=list)
    kv_total_blocks: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Segment:
    """One instance that kept its devices and TP degree from ``start_s`` to ``end_s`` (seconds)."""

    instance: str
    devices: tuple[int, ...]
    tp: int
    start_s: float
    end_s: float


class _Fleet:
    """Which instances live, by what the samples so far imply."""

    def __init__(self) -> None:
        self.alive: dict[str, TimelineSample] = {}
        self._owner: dict[int, str] = {}

    def take(self, sample: TimelineSample) -> list[TimelineSample]:
        """Apply one sample; returns the last samples of the instances that it replaces, itself included."""
        names = {self._owner[device] for device in sample.devices if device in self._owner}
        names |= {sample.instance} & self.alive.keys()
        gone = [self.alive.pop(name) for name in names]
        for old in gone:
            for device in old.devices:
                del self._owner[device]
        self.alive[sample.instance] = sample
        self._owner.update(dict.fromkeys(sample.devices, sample.instance))
        return gone


def _moments(samples: Iterable[TimelineSample]) -> Iterator[tuple[float, list[TimelineSample]]]:
    ordered = sorted(samples, key=lambda s: (s.t_s, s.instance, s.devices))
    for t_s, group in groupby(ordered, key=lambda s: s.t_s):
        yield t_s, list(group)


def fleet_series(samples: Iterable[TimelineSample]) -> FleetSeries:
    """Totals over the instances that live at each sampled moment."""
    fleet, series = _Fleet(), FleetSeries()
    sums = [0, 0, 0, 0]
    columns = (series.running, series.waiting, series.kv_used_blocks, series.kv_total_blocks)
    for t_s, group in _moments(samples):
        for sample in group:
            for old in fleet.take(sample):
                sums = [a - b for a, b in zip(sums, _counts(old), strict=True)]
            sums = [a + b for a, b in zip(sums, _counts(sample), strict=True)]
        series.t_s.append(t_s)
        for column, total in zip(columns, sums, strict=True):
            column.append(total)
    return series


def _counts(sample: TimelineSample) -> tuple[int, int, int, int]:
    return sample.running, sample.waiting, sample.kv_used_blocks, sample.kv_total_blocks


def device_segments(samples: Iterable[TimelineSample], end_s: float) -> list[Segment]:
    """What each device was part of, as stretches of one instance, devices and TP degree; open ones end at end_s."""
    fleet, started, segments = _Fleet(), dict[str, float](), list[Segment]()
    for t_s, group in _moments(samples):
        for sample in group:
            start = t_s
            for old in fleet.take(sample):
                if (old.instance, old.devices, old.tp) == (sample.instance, sample.devices, sample.tp):
                    start = started[old.instance]
                else:
                    segments.append(Segment(old.instance, old.devices, old.tp, started[old.instance], t_s))
            started[sample.instance] = start
    for last in fleet.alive.values():
        segments.append(Segment(last.instance, last.devices, last.tp, started[last.instance], max(end_s, last.t_s)))
    return sorted(segments, key=lambda s: (s.start_s, s.devices))


def device_kv_use(samples: Iterable[TimelineSample]) -> dict[int, dict[str, float]]:
    """Per device: time-weighted mean and maximum of KV use, fractions 0 to 1.

    mean = sum u_i (t_{i+1} - t_i) / (t_last - t_first): a sample holds until the next one of the same device, the last
    one has no weight; with no time between first and last, the plain mean of the samples.
    """
    seen: defaultdict[int, list[tuple[float, float]]] = defaultdict(list)
    for t_s, group in _moments(samples):
        for sample in group:
            for device in sample.devices:
                seen[device].append((t_s, sample.kv_use))
    return {
        device: {"mean": _held_mean(seen[device]), "max": max(u for _, u in seen[device])} for device in sorted(seen)
    }


def _held_mean(points: list[tuple[float, float]]) -> float:
    span = points[-1][0] - points[0][0]
    if span <= 0:
        return sum(u for _, u in points) / len(points)
    return sum(u * (after - t) for (t, u), (after, _) in pairwise(points)) / span

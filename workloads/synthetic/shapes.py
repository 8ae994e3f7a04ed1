"""Load shapes: when requests arrive. One class per shape; all times seconds, all rates requests per second."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from gyges.errors import UserError
from gyges.registry import Registry

Times = NDArray[np.float64]
MAX_REQUESTS = 5_000_000  # a slip of the pen in a rate should not fill the memory

SHAPES: Registry[type[Shape]] = Registry("load shape")


@dataclass(frozen=True, slots=True)
class Shape(ABC):
    """A process of arrivals. Parameters are the dataclass fields; every one is a number that a spec may set."""

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            lowest = 0.0 if each.name in ("rate_off", "start", "amplitude", "rate_start", "rate_end", "phase") else None
            if not math.isfinite(value) or (value <= 0 if lowest is None else value < lowest):
                wanted = "positive" if lowest is None else "0 or positive"
                raise UserError(f"{each.name} of a load shape must be {wanted}, got {value}")

    @property
    @abstractmethod
    def peak_rate(self) -> float:
        """The highest rate at any time, requests/s."""

    @abstractmethod
    def arrivals(self, duration_s: float, rng: np.random.Generator) -> Times:
        """Sorted arrival times in [0, duration_s)."""

    def check(self, duration_s: float) -> None:
        if self.peak_rate * duration_s > MAX_REQUESTS:
            raise UserError(f"{self.peak_rate:g} requests/s for {duration_s:g} s is over {MAX_REQUESTS:,} requests")


@SHAPES.register("poisson")
@dataclass(frozen=True, slots=True)
class Poisson(Shape):
    """Independent users: exponential gaps with mean 1/rate (CV 1)."""

    rate: float = 1.0

    @property
    def peak_rate(self) -> float:
        return self.rate

    def arrivals(self, duration_s: float, rng: np.random.Generator) -> Times:
        return _renewal(lambda count: rng.exponential(1 / self.rate, count), self.rate, duration_s)


@SHAPES.register("gamma")
@dataclass(frozen=True, slots=True)
class Gamma(Shape):
    """Gamma gaps with mean 1/rate and coefficient of variation ``cv``: above 1 bursty, below 1 regular."""

    rate: float = 1.0
    cv: float = 2.0

    @property
    def peak_rate(self) -> float:
        return self.rate

    def arrivals(self, duration_s: float, rng: np.random.Generator) -> Times:
        shape, scale = 1 / self.cv**2, self.cv**2 / self.rate
        return _renewal(lambda count: rng.gamma(shape, scale, count), self.rate, duration_s)


@SHAPES.register("constant")
@dataclass(frozen=True, slots=True)
class Constant(Shape):
    """One request every 1/rate seconds, the first at ``start``."""

    rate: float = 1.0
    start: float = 0.0

    @property
    def peak_rate(self) -> float:
        return self.rate

    def arrivals(self, duration_s: float, rng: np.random.Generator) -> Times:
        count = max(0, math.ceil((duration_s - self.start) * self.rate))
        times = self.start + np.arange(count) / self.rate
        return times[times < duration_s]


@SHAPES.register("ramp")
@dataclass(frozen=True, slots=True)
class Ramp(Shape):
    """Poisson arrivals whose rate moves evenly from ``rate_start`` to ``rate_end`` over the duration."""

    rate_start: float = 0.0
    rate_end: float = 2.0

    @property
    def peak_rate(self) -> float:
        return max(self.rate_start, self.rate_end)

    def arrivals(self, duration_s: float, rng: np.random.Generator) -> Times:
        times = _thinnable(self.peak_rate, duration_s, rng)
        rates = self.rate_start + (self.rate_end - self.rate_start) * times / duration_s
        return _thinned(times, rates, self.peak_rate, rng)


@SHAPES.register("on-off")
@dataclass(frozen=True, slots=True)
class OnOff(Shape):
    """Bursts: Poisson at ``rate`` for ``on`` seconds, then at ``rate_off`` for ``off`` seconds, and again."""

    rate: float = 4.0
    rate_off: float = 0.0
    on: float = 5.0
    off: float = 15.0

    @property
    def peak_rate(self) -> float:
        return max(self.rate, self.rate_off)

    def arrivals(self, duration_s: float, rng: np.random.Generator) -> Times:
        times = _thinnable(self.peak_rate, duration_s, rng)
        rates = np.where(times % (self.on + self.off) < self.on, self.rate, self.rate_off)
        return _thinned(times, rates, self.peak_rate, rng)


@SHAPES.register("diurnal")
@dataclass(frozen=True, slots=True)
class Diurnal(Shape):
    """Poisson arrivals whose rate swings as a sine of ``period`` seconds around ``rate``, by ``amplitude`` (0 to 1) of
    it. It starts at the lowest point; ``phase`` (a fraction of the period) later where given: 0.5 starts at the peak.
    """

    rate: float = 1.0
    amplitude: float = 0.8
    period: float = 86_400.0
    phase: float = 0.0

    @property
    def peak_rate(self) -> float:
        return self.rate * (1 + self.amplitude)

    def arrivals(self, duration_s: float, rng: np.random.Generator) -> Times:
        if self.amplitude > 1:
            raise UserError(f"amplitude of a diurnal load is at most 1, got {self.amplitude}")
        times = _thinnable(self.peak_rate, duration_s, rng)
        rates = self.rate * (1 - self.amplitude * np.cos(2 * np.pi * (times / self.period + self.phase)))
        return _thinned(times, rates, self.peak_rate, rng)


def _renewal(gaps: Callable[[int], Times], rate: float, duration_s: float) -> Times:
    """Sums of independent gaps up to the end; drawn in chunks of a size that depends on nothing random."""
    chunk = math.ceil(rate * duration_s * 1.2) + 32
    times = np.cumsum(gaps(chunk))
    while times[-1] < duration_s:
        times = np.concatenate([times, times[-1] + np.cumsum(gaps(chunk))])
    return times[times < duration_s]


def _thinnable(peak: float, duration_s: float, rng: np.random.Generator) -> Times:
    if peak <= 0:
        raise UserError("a load shape needs a rate above 0 somewhere")
    return _renewal(lambda count: rng.exponential(1 / peak, count), peak, duration_s)


def _thinned(times: Times, rates: Times, peak: float, rng: np.random.Generator) -> Times:
    """Lewis and Shedler: keep each arrival of the peak process with probability rate(t) / peak; exact, no grid."""
    return times[rng.random(len(times)) * peak < rates]

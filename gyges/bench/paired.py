"""Differences of two runs that replayed the same requests, with 95 % intervals. Plain numpy; seeded, so that they repeat.

Per request: latencies are an array of (repeats, requests). The bootstrap draws repeats and then requests with
replacement, the same ones on both sides: what a request or a moment has in common with its partner cancels out.
Percentile interval.
Per run: figures such as throughput are one number per repeat; Student's t of their paired differences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
DRAWS = 1000
_LEAST_DRAWS, _MOST_NUMBERS = 200, 20_000_000  # fewer draws where there are very many requests
_CHUNK = 4_000_000  # numbers drawn at a time
# 97.5 % quantiles of Student's t by degrees of freedom (any table of it); beyond, 1.96 + 2.4 / n is right to 0.1 %.
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and what 95 % of such experiments would find it between; the bounds are None where nothing tells (one repeat)."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def clear(self) -> bool:
        """Whether zero is outside."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    def scaled(self, factor: float) -> Interval:
        """``factor`` > 0."""
        low, high = (None if bound is None else bound * factor for bound in (self.low, self.high))
        return Interval(self.value * factor, low, high)


def percentile(p: float) -> Statistic:
    """Row-wise; infinite values take part, as in gyges.metrics.definitions.percentile."""

    def of_rows(rows: Floats) -> Floats:
        ascending = np.sort(rows, axis=1)
        rank = (rows.shape[1] - 1) * p / 100
        below = math.floor(rank)
        low: Floats = ascending[:, below]
        if rank == below:
            return low
        high = ascending[:, below + 1]
        with np.errstate(invalid="ignore"):
            return np.where(np.isinf(high), np.inf, np.minimum(high, low + (high - low) * (rank - below)))

    return of_rows


def mean(rows: Floats) -> Floats:
    """Row-wise."""
    return rows.mean(axis=1)


def own_interval(values: Floats, statistic: Statistic, seed: int = 0) -> Interval | None:
    """Of one side. ``values``: (repeats, requests); requests with an undefined value (NaN) are left out. None of nothing."""
    kept = values[:, ~np.isnan(values).any(axis=0)]
    if not kept.size:
        return None
    draws = np.concatenate([statistic(rows) for (rows,) in _resampled((kept,), seed)])
    return Interval(float(statistic(kept.reshape(1, -1))[0]), *_bounds(draws))


def paired_change(a: Floats, b: Floats, statistic: Statistic, seed: int = 0) -> tuple[Interval, Interval] | None:
    """(b - a, b / a - 1) of a statistic of each side. ``a``, ``b``: (repeats, requests), the same requests in the same order.

    Infinite where a side is; None where no request is defined on both sides, or both are infinite.
    """
    assert a.shape == b.shape, "paired: the same repeats of the same requests"
    known = ~(np.isnan(a) | np.isnan(b)).any(axis=0)
    a, b = a[:, known], b[:, known]
    if not a.size:
        return None
    pairs = [(statistic(x), statistic(y)) for x, y in _resampled((a, b), seed)]
    x, y = (np.concatenate(side) for side in zip(*pairs, strict=True))
    mine, theirs = float(statistic(a.reshape(1, -1))[0]), float(statistic(b.reshape(1, -1))[0])
    with np.errstate(invalid="ignore", divide="ignore"):
        difference, ratio = y - x, y / x - 1
        found = (np.subtract(theirs, mine), np.float64(theirs) / np.float64(mine) - 1)
    if any(math.isnan(float(value)) for value in found):
        return None
    return Interval(float(found[0]), *_bounds(difference)), Interval(float(found[1]), *_bounds(ratio))


def _draws(values: Floats) -> int:
    return max(_LEAST_DRAWS, min(DRAWS, _MOST_NUMBERS // values.size))


def _resampled(sides: tuple[Floats, ...], seed: int):  # type: ignore[no-untyped-def]
    """Chunks of the draws: for each side (draws, repeats x requests), drawn alike."""
    repeats, requests = sides[0].shape
    rng = np.random.default_rng([seed, 0xB007])
    left = _draws(sides[0])
    while left:
        count = max(1, min(left, _CHUNK // (repeats * requests)))
        rows = rng.integers(repeats, size=(count, repeats, 1))
        columns = rng.integers(requests, size=(count, 1, requests))
        yield tuple(side[rows, columns].reshape(count, -1) for side in sides)
        left -= count


def _bounds(draws: Floats) -> tuple[float | None, float | None]:
    if np.isnan(draws).any():
        return None, None  # an infinite value against an infinite one says nothing
    ascending = np.sort(draws)
    # Nearest ranks: no arithmetic with infinities.
    low, high = (float(ascending[round(q * (len(draws) - 1))]) for q in (0.025, 0.975))
    return low, high


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean of at least one value, Student's t."""
    found = np.asarray(values, dtype=np.float64)
    middle = float(found.mean())
    if len(found) < 2 or not np.isfinite(found).all():
        return Interval(middle)
    freedom = len(found) - 1
    t = _T[freedom - 1] if freedom <= len(_T) else 1.96 + 2.4 / freedom
    half = t * float(found.std(ddof=1)) / math.sqrt(len(found))
    return Interval(middle, middle - half, middle + half)


def per_run_change(a: Sequence[float], b: Sequence[float]) -> tuple[Interval, Interval | None]:
    """(b - a, that as a share of a's mean) of figures with one value per repeat; the share is None where that mean is 0."""
    difference = mean_interval([y - x for x, y in zip(a, b, strict=True)])
    base = float(np.mean(a))
    return difference, difference.scaled(1 / base) if base > 0 else None

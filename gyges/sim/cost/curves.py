"""Piecewise linear curves, evaluated one value at a time and many at once, with the same result to the last bit."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np


class Curve:
    """y over x through measured points. Below the first point: its y. Beyond the last: the mean slope of the upper half.

    The upper half (from half of the last x on), because a slope between the last two points is mostly noise.
    """

    __slots__ = ("_arrays", "_slopes", "xs", "ys")

    def __init__(self, xs: Sequence[float], ys: Sequence[float]) -> None:
        assert xs
        assert len(xs) == len(ys)
        assert all(a < b for a, b in pairwise(xs)), "points ascend"
        self.xs, self.ys = [float(x) for x in xs], [float(y) for y in ys]
        rises = range(len(self.xs) - 1)
        self._slopes = [(self.ys[i + 1] - self.ys[i]) / (self.xs[i + 1] - self.xs[i]) for i in rises]
        half = min(bisect_left(self.xs, self.xs[-1] / 2), len(self.xs) - 2)
        beyond = (self.ys[-1] - self.ys[half]) / (self.xs[-1] - self.xs[half]) if len(self.xs) > 1 else 0.0
        self._slopes.append(max(beyond, 0.0))
        self._arrays: tuple[np.ndarray[Any, Any], ...] | None = None

    def __call__(self, x: float) -> float:
        if x < self.xs[0]:
            return self.ys[0]
        i = bisect_right(self.xs, x) - 1
        return self.ys[i] + (x - self.xs[i]) * self._slopes[i]

    def many(self, x: np.ndarray) -> np.ndarray:
        """float64 of the shape of ``x``; bit for bit what calling the curve with each of them gives."""
        if self._arrays is None:
            self._arrays = np.array(self.xs), np.array(self.ys), np.array(self._slopes)
        xs, ys, slopes = self._arrays
        x = np.maximum(x, xs[0])
        i = np.searchsorted(xs, x, side="right") - 1
        values: np.ndarray[Any, Any] = ys[i] + (x - xs[i]) * slopes[i]
        return values


def weighted_sum(parts: Iterable[tuple[float, Curve]]) -> Curve:
    """The curve ``sum(weight * curve)``, with the points of all of them."""
    parts = list(parts)
    xs = sorted({x for _, curve in parts for x in curve.xs})
    return Curve(xs, [sum(weight * curve(x) for weight, curve in parts) for x in xs])


def bracket(points: Sequence[int], x: float) -> tuple[int, int, float]:
    """(lower point, upper point, weight of the upper) around ``x``; the nearest point alone outside of them."""
    i = bisect_right(points, x)
    if i == 0:
        return points[0], points[0], 0.0
    if i == len(points):
        return points[-1], points[-1], 0.0
    return points[i - 1], points[i], (x - points[i - 1]) / (points[i] - points[i - 1])

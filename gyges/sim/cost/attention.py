"""Attention of one layer from measured points: prefill chunks, decodes, and both in one call."""

from __future__ import annotations

from bisect import bisect_left

import numpy as np

from gyges.sim.cost.bundle import AttentionPoints, Skew
from gyges.sim.cost.curves import Curve, bracket, weighted_sum


class AttentionTable:
    """Microseconds on one device, linear between measured points along each of the four axes.

    Decodes of unequal context cost ``t(mean) + alpha (t(longest) - t(mean))``; alpha is the bundle's, by bucket. The shortest
    context is not known here and taken as 0 for the bucket's skew rate, (mean - shortest) / (longest - shortest).

    Several prefills in one step: the one with the longest chunk is looked up together with the decodes; each other adds what it
    takes alone, less the least time of a call, since all go into one.
    """

    def __init__(self, points: AttentionPoints, skew: Skew | None) -> None:
        self._points, self._skew = points, skew
        self._chunks = [chunk for chunk in points if chunk > 0]
        self._decodes = [n for n in points[0][0] if n > 0]
        # Where decodes were measured beside a prefill, and where a prefill alone was: the grids may differ.
        self._mixed = {chunk: _having(by_before, 1) for chunk, by_before in points.items() if chunk}
        self._alone = {chunk: _having(by_before, 0) for chunk, by_before in points.items() if chunk}
        self.longest_chunk = self._chunks[-1]
        self.most_decodes = self._decodes[-1]
        self.most_before = max(max(by_before) for by_before in points.values())
        self.longest_context = max(curve.xs[-1] for curve in points[0][0].values())
        self._least = min(curve.ys[0] for by_n in points[self._chunks[0]].values() for curve in by_n.values())
        self._curves: dict[int, Curve] = {}
        self._alphas: dict[tuple[int, int, int], np.ndarray] = {}

    def decode_us(self, decodes: int, context: int, longest: int) -> float:
        """``context``: sum over the decodes; ``longest``: the largest of them."""
        return self._blend(self._decode_curve(decodes), context / decodes, longest, self._alpha_of(0, decodes, 0))

    def decode_many_us(self, decodes: int, context: np.ndarray, longest: np.ndarray) -> np.ndarray:
        """The same for many steps of as many decodes, to the last bit."""
        curve, mean = self._decode_curve(decodes), context / decodes
        at_mean = curve.many(mean)
        table = self._alpha_of(0, decodes, 0)
        if table is None:
            return at_mean
        assert self._skew is not None
        rates, longs = self._skew.labels["skew_rate"][0], self._skew.labels["kv_big"][0]
        i = np.minimum(np.searchsorted(rates, mean / longest, side="left"), len(rates) - 1)
        j = np.minimum(np.searchsorted(longs, longest, side="left"), len(longs) - 1)
        blended = at_mean + table[i, j] * (curve.many(longest) - at_mean)
        return np.where(longest > mean, np.maximum(blended, 0.0), at_mean)

    def mixed_us(self, prefills: tuple[tuple[int, int], ...], decodes: int, context: int, longest: int) -> float:
        """``prefills``: (tokens of the chunk, tokens before it) of each, at least one."""
        first = max(range(len(prefills)), key=lambda i: prefills[i])
        time = self._with_decodes(*prefills[first], decodes, context, longest)
        for i, (chunk, before) in enumerate(prefills):
            if i != first:
                time += max(self._with_decodes(chunk, before, 0, 0, 0) - self._least, 0.0)
        return time

    def _with_decodes(self, chunk: int, before: int, decodes: int, context: int, longest: int) -> float:
        mean = context / decodes if decodes else 0.0
        at_mean = self._lookup(chunk, before, decodes, mean)
        if decodes < 2 or longest <= mean:
            return at_mean
        table = self._alpha_of(chunk, decodes, before)
        if table is None:
            return at_mean
        alpha = self._pick(table, mean, longest)
        return max(at_mean + alpha * (self._lookup(chunk, before, decodes, longest) - at_mean), 0.0)

    def _lookup(self, chunk: int, before: int, decodes: int, context: float) -> float:
        low, high, weight = bracket(self._chunks_with(decodes), chunk)
        time = self._at_chunk(low, before, decodes, context)
        if weight:
            time += weight * (self._at_chunk(high, before, decodes, context) - time)
        elif chunk > high:  # beyond the grid: as if the rest were a second call's work
            time *= chunk / high
        return time

    def _chunks_with(self, decodes: int) -> list[int]:
        grid = self._mixed if decodes else self._alone
        return [chunk for chunk in self._chunks if grid[chunk]]

    def _at_chunk(self, chunk: int, before: int, decodes: int, context: float) -> float:
        by_before = self._points[chunk]
        low, high, weight = bracket((self._mixed if decodes else self._alone)[chunk], before)
        time = self._at_before(by_before[low], decodes, context)
        if weight:
            time += weight * (self._at_before(by_before[high], decodes, context) - time)
        elif before > high:
            time *= before / high
        return time

    def _at_before(self, by_decodes: dict[int, Curve], decodes: int, context: float) -> float:
        if not decodes:
            return by_decodes[0](0.0)
        low, high, weight = bracket([n for n in by_decodes if n], decodes)
        time = by_decodes[low](context)
        if weight:
            time += weight * (by_decodes[high](context) - time)
        elif decodes > high:
            time *= decodes / high
        return time

    def _decode_curve(self, decodes: int) -> Curve:
        if (known := self._curves.get(decodes)) is None:
            low, high, weight = bracket(self._decodes, decodes)
            by_n = self._points[0][0]
            known = weighted_sum([(1.0 - weight, by_n[low]), (weight, by_n[high])] if weight else [(1.0, by_n[low])])
            if decodes > high:
                known = weighted_sum([(decodes / high, known)])
            self._curves[decodes] = known
        return known

    def _blend(self, curve: Curve, mean: float, longest: int, table: np.ndarray | None) -> float:
        at_mean = curve(mean)
        if table is None or longest <= mean:
            return at_mean
        return max(at_mean + self._pick(table, mean, longest) * (curve(longest) - at_mean), 0.0)

    def _pick(self, table: np.ndarray, mean: float, longest: int) -> float:
        assert self._skew is not None
        rates, longs = self._skew.labels["skew_rate"][0], self._skew.labels["kv_big"][0]
        i = min(bisect_left(rates, mean / longest), len(rates) - 1)
        j = min(bisect_left(longs, longest), len(longs) - 1)
        return float(table[i, j])

    def _alpha_of(self, chunk: int, decodes: int, before: int) -> np.ndarray | None:
        """float64 [skew rate bucket, longest bucket]. The chunk is the nearest that was measured."""
        skew = self._skew
        if skew is None or decodes < 2:
            return None
        nearest = min(skew.chunks, key=lambda c: (abs(c - chunk), c)) if chunk else 0
        (n_bounds, n_labels), (kp_bounds, kp_labels) = skew.labels["n"], skew.labels["kp"]
        n = min(bisect_left(n_bounds, decodes), len(n_labels) - 1)
        kp = min(bisect_left(kp_bounds, before), len(kp_labels) - 1)
        key = nearest, n, kp
        if (known := self._alphas.get(key)) is None:
            known = self._alphas[key] = np.array(
                [
                    [skew.alphas.get((nearest, n_labels[n], rate, long, kp_labels[kp]), skew.default)
                     for long in skew.labels["kv_big"][1]]
                    for rate in skew.labels["skew_rate"][1]
                ]
            )  # fmt: skip
        return known


def _having(by_before: dict[int, dict[int, Curve]], decodes: int) -> list[int]:
    """Tokens before a chunk for which there are points without decodes (0) or with at least one (1)."""
    return [before for before, by_n in by_before.items() if (0 in by_n if not decodes else any(by_n))]

"""Signed errors of a simulation against what was measured: simulated / measured - 1. What both validations share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gyges.sim.pipelined import Served

STATISTICS = ("mean", "p50", "p90", "p99")
_BIN_S = 1.0

Floats = np.ndarray[Any, Any]


def compare(
    measured: Sequence[Served], simulated: Sequence[Served], outputs: Sequence[int], goals: Mapping[str, float]
) -> dict[str, Any]:
    """Both by the same index; ``outputs``: output tokens; ``goals``: name -> largest error of the mean, a share.

    ``latencies``: name -> statistic -> ``measured``, ``simulated`` (seconds), ``error`` (None where measured is 0).
    ``throughput`` (output tokens/s) and ``duration_s``: the same three.   ``goals``: name -> limit, error, met.
    ``over_time``: per second, ``measured_tokens_per_s`` and ``simulated_tokens_per_s``.
    """
    tokens = np.array(outputs)
    theirs, ours = latencies(measured, tokens), latencies(simulated, tokens)
    compared = {
        name: {s: pair(_statistic(theirs[name], s), _statistic(ours[name], s)) for s in STATISTICS} for name in theirs
    }
    spans = [max(s.last_token_s for s in those) - min(s.queued_s for s in those) for those in (measured, simulated)]
    throughput = pair(float(tokens.sum()) / spans[0], float(tokens.sum()) / spans[1])
    errors = {name: values["mean"]["error"] for name, values in compared.items()} | {"throughput": throughput["error"]}
    return {
        "latencies": compared,
        "throughput": throughput,
        "duration_s": pair(*spans),
        "goals": {
            name: {"limit": limit, "error": error, "met": abs(error) <= limit}
            for name, limit in goals.items()
            if (error := errors[name]) is not None
        },
        "over_time": _over_time(measured, simulated, outputs),
    }


def latencies(served: Sequence[Served], outputs: Floats) -> dict[str, Floats]:
    """Seconds of each request. TPOT of requests with at least two output tokens (docs/metrics.md)."""
    queued, first, last = (
        np.array([getattr(s, name) for s in served]) for name in ("queued_s", "first_token_s", "last_token_s")
    )
    more = outputs > 1
    return {
        "ttft_s": first - queued,
        "tpot_s": (last - first)[more] / (outputs[more] - 1),
        "e2e_s": last - queued,
        "queue_s": np.array([s.scheduled_s for s in served]) - queued,
    }


def pair(measured: float, simulated: float) -> dict[str, float | None]:
    return {
        "measured": float(measured),
        "simulated": float(simulated),
        "error": float(simulated / measured - 1) if measured else None,
    }


def _statistic(values: Floats, name: str) -> float:
    if not len(values):
        return 0.0
    return float(values.mean() if name == "mean" else np.percentile(values, float(name[1:])))


def _over_time(measured: Sequence[Served], simulated: Sequence[Served], outputs: Sequence[int]) -> dict[str, Any]:
    """Only the first and the last token of a request are known in both: those between are spread evenly."""
    start = min(each.queued_s for each in (*measured, *simulated))
    end = max(each.last_token_s for each in (*measured, *simulated))
    edges = np.arange(start, end + _BIN_S, _BIN_S)
    document: dict[str, Any] = {"bin_s": _BIN_S}
    for name, those in (("measured", measured), ("simulated", simulated)):
        counts = np.zeros(len(edges) - 1)
        for tokens, each in zip(outputs, those, strict=True):
            counts += np.histogram(np.linspace(each.first_token_s, each.last_token_s, tokens), edges)[0]
        document[f"{name}_tokens_per_s"] = (counts / _BIN_S).tolist()
    return document

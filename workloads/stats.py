"""What a trace is like: counts, lengths, gaps, sharing. Seconds, tokens, requests per second."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from workloads.schema import Trace

PERCENTILES = (50, 90, 95, 99)
CONTEXT_STEPS = (4096, 8192, 16384, 32768, 65536)


def trace_stats(trace: Trace) -> dict[str, Any]:
    """Figures of a trace as a JSON-able dict.

    ``share_over`` is the share of requests whose prompt + output exceeds 4k (4096), 8k ... tokens. ``gaps_s.cv`` is the
    coefficient of variation of the gaps between arrivals: 1 for Poisson, more is burstier; None for fewer than three
    requests or where all arrive at once. ``prefix_reuse`` is the share of prompt blocks whose hash, at its place after
    the same hashes, came before; None without hashes.
    """
    requests = trace.requests
    prompt = np.array([request.prompt_tokens for request in requests])
    output = np.array([request.output_tokens for request in requests])
    arrivals = np.array([request.arrival_s for request in requests])
    total = prompt + output
    gaps = np.diff(arrivals)
    duration = trace.duration_s
    sessions = {request.session for request in requests} - {None}
    return {
        "name": trace.name,
        "requests": len(requests),
        "duration_s": duration,
        "requests_per_s": (len(requests) - 1) / duration if duration > 0 else None,
        "peak_requests_per_s": _peak_rate(arrivals),
        "prompt_tokens": _lengths(prompt),
        "output_tokens": _lengths(output),
        "total_tokens": _lengths(total),
        "share_over": {f"{step // 1024}k": float(np.mean(total > step)) for step in CONTEXT_STEPS},
        "gaps_s": _gaps(gaps),
        "distinct_times": len(np.unique(arrivals)),
        "sessions": len(sessions),
        "prefix_reuse": prefix_reuse(trace),
    }


def prefix_reuse(trace: Trace) -> float | None:
    """Share of hashed prompt blocks that an unbounded prefix cache would have held already; None without hashes."""
    seen: set[tuple[int, int]] = set()
    blocks = reused = 0
    for request in trace.requests:
        inside = True
        for place, value in enumerate(request.prefix_hashes or ()):
            blocks += 1
            # A block can only be reused while all before it are: it is the prefix that is shared.
            inside = inside and (place, value) in seen
            reused += inside
            seen.add((place, value))
    return reused / blocks if blocks else None


def _lengths(values: NDArray[np.int64]) -> dict[str, float]:
    row = {"sum": int(values.sum()), "mean": float(values.mean()), "min": int(values.min())}
    row |= {f"p{each}": float(np.percentile(values, each)) for each in PERCENTILES}
    return {**row, "max": int(values.max())}


def _gaps(gaps: NDArray[np.float64]) -> dict[str, float | None]:
    if not len(gaps):
        return {"mean": None, "cv": None, "max": None, **{f"p{each}": None for each in PERCENTILES}}
    mean = float(gaps.mean())
    row: dict[str, float | None] = {
        "mean": mean,
        "cv": float(gaps.std()) / mean if mean > 0 and len(gaps) > 1 else None,
        "max": float(gaps.max()),
    }
    return row | {f"p{each}": float(np.percentile(gaps, each)) for each in PERCENTILES}


def _peak_rate(arrivals: NDArray[np.float64]) -> float:
    """Most arrivals in any second that begins with an arrival."""
    ends = np.searchsorted(arrivals, arrivals + 1.0, side="left")
    return float((ends - np.arange(len(arrivals))).max())

"""The figures of a run as one plain dict, which becomes summary.json. Definitions: gyges.metrics.definitions.

JSON knows no infinity: an infinite figure is None here. Each distribution says how many values were infinite
(``infinite``), so None with ``infinite`` > 0 is "infinite" and None without is "undefined, nothing to measure".
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from gyges.errors import UnknownNameError
from gyges.metrics import definitions as d
from gyges.metrics.records import STATUSES, RequestRecord, TimelineSample, TransformationEvent
from gyges.metrics.slo import Slo
from gyges.metrics.timeline import device_kv_use

# Lower edges of the prompt-length buckets, tokens; each bucket reaches up to, and excludes, the next edge.
BUCKET_EDGES = (0, 256, 1024, 4096, 8192, 16384, 32768, 65536)

REPLAY_MODES = {
    "open": "arrivals follow a schedule (timestamps or a rate); send lag applies",
    "closed": "a fixed number of requests in flight; a request is due when its predecessor ends, so lag does not apply",
    "asap": "everything as fast as possible; lag does not apply",
}

_PER_REQUEST = {
    "ttft_s": d.ttft_s,
    "ttft_from_send_s": d.ttft_from_send_s,
    "tpot_s": d.tpot_s,
    "e2e_s": d.e2e_s,
    "e2e_from_send_s": d.e2e_from_send_s,
    "queue_s": d.queue_s,
    "queue_from_send_s": d.queue_from_send_s,
}


def summarize(
    records: Sequence[RequestRecord],
    samples: Sequence[TimelineSample] = (),
    events: Sequence[TransformationEvent] = (),
    *,
    slo: Slo | None = None,
    replay_mode: str = "open",
    duration_s: float | None = None,
    edges: Sequence[int] = BUCKET_EDGES,
    partial: bool = False,
    simulated: bool = False,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """All figures of a run. The order of the inputs does not matter.

    records: one per *offered* request, failed and rejected ones included.   duration_s: the run's wall time, reported
    beside the throughput window, never divided by.   partial: the run was interrupted.   notes: what a reader must
    know beside the figures (say, that CPU devices outnumber cores).
    """
    if replay_mode not in REPLAY_MODES:
        raise UnknownNameError("replay mode", replay_mode, REPLAY_MODES)
    window = d.window_s(records)
    columns = _Columns.of(records, slo)
    return {
        "partial": partial or any(r.status == "partial" for r in records),
        "simulated": simulated,
        "notes": list(notes),
        "window_s": window,
        "duration_s": duration_s,
        **_figures(columns, window),
        "replay": _replay(records, replay_mode),
        "transformations": _transformations(events),
        "kv": {str(device): use for device, use in device_kv_use(samples).items()},
        "slo": slo.to_dict() if slo else None,
        "buckets": _buckets(columns, window, edges),
    }


def distribution(values: Sequence[float] | d.Floats) -> dict[str, float | int | None]:
    """mean, p50, p90, p99, max of values that may be infinite; the mean is over the ``count`` finite ones only."""
    ascending = np.sort(np.asarray(values, dtype=np.float64))  # sorted, so that the mean does not depend on the order
    assert not np.isnan(ascending).any(), "a latency is a number or infinite, never NaN"
    finite = ascending[np.isfinite(ascending)]
    return {
        "mean": float(finite.mean()) if len(finite) else None,
        "p50": finite_or_none(d.percentile_sorted(ascending, 50)),
        "p90": finite_or_none(d.percentile_sorted(ascending, 90)),
        "p99": finite_or_none(d.percentile_sorted(ascending, 99)),
        "max": finite_or_none(d.percentile_sorted(ascending, 100)),
        "count": len(finite),
        "infinite": len(ascending) - len(finite),
    }


def finite_or_none(value: float | None) -> float | None:
    """A number that JSON can hold, or None."""
    return value if value is not None and math.isfinite(value) else None


def bucket_label(lower: int, upper: int | None) -> str:
    """(256, 1024) -> "256-1k"; an open end -> "64k+". Powers of 1024 are shortened where nothing is lost."""

    def short(tokens: int) -> str:
        return f"{tokens // 1024}k" if tokens and tokens % 1024 == 0 else str(tokens)

    return f"{short(lower)}+" if upper is None else f"{short(lower)}-{short(upper)}"


def bucketed(
    records: Sequence[RequestRecord], edges: Sequence[int] = BUCKET_EDGES
) -> list[tuple[int, int | None, list[RequestRecord]]]:
    """(lower, upper, records) of each prompt-length bucket that is not empty: lower <= prompt tokens < upper."""
    return [(low, high, [records[i] for i in indices]) for low, high, indices in bucket_indices(records, edges)]


def bucket_indices(
    records: Sequence[RequestRecord], edges: Sequence[int] = BUCKET_EDGES
) -> list[tuple[int, int | None, list[int]]]:
    """:func:`bucketed`, with the places of the records among all of them."""
    assert all(a < b for a, b in pairwise(edges)), f"bucket edges must ascend, got {edges}"
    assert all(r.prompt_tokens >= edges[0] for r in records), "the first edge must not be above any prompt"
    groups: list[list[int]] = [[] for _ in edges]
    bins = np.searchsorted(edges, [r.prompt_tokens for r in records], side="right")
    for place, index in enumerate(bins.tolist()):
        groups[index - 1].append(place)
    uppers = (*edges[1:], None)
    return [(low, high, group) for low, high, group in zip(edges, uppers, groups, strict=True) if group]


@dataclass(frozen=True)
class _Columns:
    """Every figure of every request, computed once: the run and its buckets are selections of them."""

    records: Sequence[RequestRecord]
    latencies: Mapping[str, Sequence[float | None]]
    token_gaps: Sequence[d.Floats]
    chunk_gaps: Sequence[d.Floats]
    good: Sequence[bool] | None

    @classmethod
    def of(cls, records: Sequence[RequestRecord], slo: Slo | None) -> _Columns:
        return cls(
            records,
            {name: [figure(r) for r in records] for name, figure in _PER_REQUEST.items()},
            [d.token_gaps_s(r) for r in records],
            [d.chunk_gaps_s(r) for r in records],
            [d.meets(r, slo) for r in records] if slo else None,
        )

    def at(self, places: Sequence[int]) -> _Columns:
        """Those of the requests at these places."""
        return _Columns(
            [self.records[i] for i in places],
            {name: [values[i] for i in places] for name, values in self.latencies.items()},
            [self.token_gaps[i] for i in places],
            [self.chunk_gaps[i] for i in places],
            [self.good[i] for i in places] if self.good is not None else None,
        )


def _buckets(columns: _Columns, window: float, edges: Sequence[int]) -> dict[str, dict[str, Any]]:
    return {
        bucket_label(low, high): {
            "prompt_tokens": {"from": low, "below": high},
            **_figures(columns.at(places), window),
        }
        for low, high, places in bucket_indices(columns.records, edges)
    }


def _figures(columns: _Columns, window: float) -> dict[str, Any]:
    """What is reported both overall and per bucket. The window is the run's, so that buckets add up to the whole."""
    records = columns.records
    counts = Counter(r.status for r in records)
    output = sum(d.delivered_output_tokens(r) for r in records)
    prompt = sum(d.delivered_prompt_tokens(r) for r in records)
    token_gaps = _joined(columns.token_gaps)
    good = None if columns.good is None else sum(columns.good)
    return {
        "requests": {"offered": len(records), **{status: counts[status] for status in STATUSES}},
        "tokens": {"prompt": prompt, "output": output},
        "throughput": {
            "output_tokens_per_s": d.per_second(output, window),
            "total_tokens_per_s": d.per_second(prompt + output, window),
            "requests_per_s": d.per_second(counts["completed"], window),
        },
        **{
            name: distribution([value for value in values if value is not None])
            for name, values in columns.latencies.items()
        },
        "itl_s": distribution(token_gaps),
        "chunk_gap_s": distribution(_joined(columns.chunk_gaps)),
        "max_token_gap_s": d.largest_gap_s(token_gaps),
        "preemptions": sum(r.preemptions for r in records),
        "goodput": {
            "fraction": None if good is None or not records else good / len(records),
            "requests_per_s": None if good is None else d.per_second(good, window),
        },
    }


def _joined(arrays: Sequence[d.Floats]) -> d.Floats:
    return np.concatenate(arrays) if arrays else np.empty(0)


def _replay(records: Sequence[RequestRecord], mode: str) -> dict[str, Any]:
    applies = mode == "open"
    run_end = max((r.last_seen_s for r in records), default=0.0)
    lags = [lag for r in records if applies and (lag := d.send_lag_s(r, run_end)) is not None]
    lag_p99 = d.percentile(lags, 99)
    reason = None
    if applies and lag_p99 is None:
        reason = "no request was sent"
    elif lag_p99 is not None:
        median = d.percentile([value for r in records if (value := d.ttft_s(r)) is not None], 50)
        reason = d.lag_verdict(lag_p99, median)
    return {
        "valid": reason is None,
        "reason": reason,
        "mode": mode,
        "lag_p99_s": lag_p99,
        "lag_max_s": max(lags, default=None),
    }


def _transformations(events: Sequence[TransformationEvent]) -> dict[str, Any]:
    failed, events = [e for e in events if e.error], [e for e in events if not e.error]
    kinds = Counter(e.kind for e in events)
    return {
        "merges": kinds["merge"],
        "splits": kinds["split"],
        "failed": len(failed),
        "bytes_moved": sum(e.bytes_moved for e in events),
        "time_total_s": math.fsum(e.end_s - e.start_s for e in events),
        "pause_total_s": math.fsum(e.pause_s for e in events),
        "pause_max_s": max((e.pause_s for e in events), default=None),
        "extra_bytes_max": max((e.extra_bytes for e in events if e.extra_bytes is not None), default=None),
    }

"""One pure function per figure. Symbols as in docs/metrics.md: s scheduled arrival, d send, q first scheduled,
k_1..k_n token times, c_1..c_m deliveries, e end, n output tokens, P prompt tokens; all times are seconds
from the run's start.

A latency is one of three things: a number; ``inf``, when what it waits for never came (the request failed, was
rejected, or had not got there when the run ended); ``None``, when it is undefined or was not observed, and then the
request is left out of that figure. Infinite values take part in percentiles, so failing slow requests improves nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from gyges.metrics.records import RequestRecord
from gyges.metrics.slo import Slo

Floats = npt.NDArray[np.float64]
LAG_LIMIT_S = 0.010
LAG_LIMIT_OF_TTFT = 0.05
_NO_GAPS: Floats = np.empty(0)


def percentile(values: Iterable[float], p: float) -> float | None:
    """The p-th percentile (0..100) of values that may be infinite; None of nothing.

    Linear interpolation between order statistics, x = (N - 1) p / 100, as numpy's default; where the upper neighbour
    is infinite and x is not whole, the result is infinite: half way to infinity is infinity.
    """
    return percentile_sorted(np.sort(np.asarray(list(values), dtype=np.float64)), p)


def percentile_sorted(ascending: Floats, p: float) -> float | None:
    """:func:`percentile` of an array that is already ascending."""
    assert 0 <= p <= 100, f"a percentile lies in 0..100, got {p}"
    if not len(ascending):
        return None
    rank = (len(ascending) - 1) * p / 100
    below = math.floor(rank)
    low = float(ascending[below])
    if rank == below:
        return low
    high = float(ascending[below + 1])
    return math.inf if math.isinf(high) else min(high, low + (high - low) * (rank - below))


def _since(record: RequestRecord, origin: float | None, moment: float | None) -> float | None:
    """moment - origin, seconds, with the rules of this module for what never came and what was not observed."""
    if record.status in ("failed", "rejected"):
        return math.inf
    if origin is None or moment is None:
        return None if record.status == "completed" else math.inf
    return moment - origin


def _completion_s(record: RequestRecord) -> float | None:
    """e; a request that the end of the run cut off has not completed, whenever it was cut off."""
    return record.end_s if record.status == "completed" else None


def ttft_s(record: RequestRecord) -> float | None:
    """Time to first token, seconds: k_1 - s (c_1 - s where token times are not known)."""
    return _since(record, record.scheduled_s, record.first_token_s)


def ttft_from_send_s(record: RequestRecord) -> float | None:
    """Time to first token from the send, seconds: k_1 - d."""
    return _since(record, record.sent_s, record.first_token_s)


def e2e_s(record: RequestRecord) -> float | None:
    """Arrival to end, seconds: e - s."""
    return _since(record, record.scheduled_s, _completion_s(record))


def e2e_from_send_s(record: RequestRecord) -> float | None:
    """Send to end, seconds: e - d."""
    return _since(record, record.sent_s, _completion_s(record))


def queue_s(record: RequestRecord) -> float | None:
    """Queueing delay, seconds: q - s."""
    return _since(record, record.scheduled_s, record.first_scheduled_s)


def queue_from_send_s(record: RequestRecord) -> float | None:
    """Queueing delay from the send, seconds: q - d."""
    return _since(record, record.sent_s, record.first_scheduled_s)


def tpot_s(record: RequestRecord) -> float | None:
    """Time per output token after the first, seconds: (e - k_1) / (n - 1); undefined for one token."""
    if record.status != "completed":
        return math.inf if record.target_output_tokens > 1 else None
    first = record.first_token_s
    if record.output_tokens <= 1 or first is None or record.end_s is None:
        return None
    return (record.end_s - first) / (record.output_tokens - 1)


def _gaps(record: RequestRecord, times: Sequence[float]) -> Floats:
    if len(times) < 2 and record.status == "completed":
        return _NO_GAPS
    gaps = np.diff(np.asarray(times, dtype=np.float64))
    if record.status != "completed" and record.target_output_tokens > 1:
        return np.append(gaps, math.inf)
    return gaps


def token_gaps_s(record: RequestRecord) -> Floats:
    """Inter-token gaps (ITL), seconds: k_{i+1} - k_i; a request that did not complete adds one infinite gap.

    One, not one per missing token: how many were missing is only an upper bound where a model may stop by itself.
    """
    return _gaps(record, record.token_times)


def chunk_gaps_s(record: RequestRecord) -> Floats:
    """Gaps between deliveries at the client, seconds: c_{i+1} - c_i; incomplete requests as in token_gaps_s."""
    return _gaps(record, record.chunk_times)


def largest_gap_s(gaps: Floats) -> float | None:
    """The largest gap that was seen to end, seconds: the longest that a running request stood still."""
    seen = gaps[np.isfinite(gaps)]
    return float(seen.max()) if len(seen) else None


def window_s(records: Sequence[RequestRecord]) -> float:
    """The throughput window W, seconds: last end minus first scheduled arrival; 0 of nothing.

    A request that never ended counts with the last moment it was heard of.
    """
    if not records:
        return 0.0
    return max(r.last_seen_s for r in records) - min(r.scheduled_s for r in records)


def delivered_output_tokens(record: RequestRecord) -> int:
    """Output tokens that count as throughput: those of requests that completed or were still being served at the end.

    What a failed request had received is lost work, not throughput.
    """
    return record.output_tokens if record.status in ("completed", "partial") else 0


def delivered_prompt_tokens(record: RequestRecord) -> int:
    """Prompt tokens that count as throughput: once the first token is out, the prompt was computed. Recomputation
    after a preemption does not count again."""
    if record.status == "completed" or (record.status == "partial" and record.first_token_s is not None):
        return record.prompt_tokens
    return 0


def per_second(count: float, window: float) -> float | None:
    """count / W, 1/s; None of an empty window."""
    return count / window if window > 0 else None


def meets(record: RequestRecord, slo: Slo) -> bool:
    """Completed, and every limited latency is at or under its limit. An undefined TPOT (one token) is within any."""
    if record.status != "completed":
        return False
    pairs = ((slo.ttft_s, ttft_s), (slo.tpot_s, tpot_s), (slo.e2e_s, e2e_s))
    for limit, figure in pairs:
        if limit is None:
            continue
        value = figure(record)
        if value is None and figure is not tpot_s:
            return False  # not observed is not within a limit
        if value is not None and value > limit:
            return False
    return True


def send_lag_s(record: RequestRecord, run_end_s: float) -> float | None:
    """How late the replayer sent it, seconds: d - s; early counts as 0.

    A request that was due but not sent when the run ended is at least (run end - s) late, and counts with that.
    """
    if record.sent_s is not None:
        return max(0.0, record.sent_s - record.scheduled_s)
    return max(0.0, run_end_s - record.scheduled_s) if record.status == "partial" else None


def lag_verdict(lag_p99_s: float, median_ttft_s: float | None) -> str | None:
    """Why a replay with this p99 send lag (seconds) is invalid, or None. Both limits must hold.

    An infinite or undefined median TTFT sets no limit; the absolute one still does.
    """
    if lag_p99_s > LAG_LIMIT_S:
        return f"p99 send lag {lag_p99_s * 1e3:.3g} ms is over {LAG_LIMIT_S * 1e3:g} ms: the replayer fell behind"
    if median_ttft_s is not None and lag_p99_s > LAG_LIMIT_OF_TTFT * median_ttft_s:
        share = f"{LAG_LIMIT_OF_TTFT:.0%} of median TTFT ({median_ttft_s * 1e3:.3g} ms)"
        return f"p99 send lag {lag_p99_s * 1e3:.3g} ms is over {share}: the replayer fell behind"
    return None

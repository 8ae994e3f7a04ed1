"""A comparison as one plain dict, which becomes compare.json. Times in seconds; intervals are 95 %, as in gyges.bench.paired.

With repeats on both sides, a request's latency is its mean over them; it is compared where it completed in all of both.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gyges.bench.compare.nearness import LOST, NEARNESS, nearness
from gyges.bench.compare.sides import Pair, Side
from gyges.bench.paired import Interval, mean, paired_change
from gyges.errors import UnknownNameError
from gyges.metrics import definitions as d
from gyges.metrics.records import RequestRecord
from gyges.metrics.summary import bucket_label, bucketed, distribution

Document = dict[str, Any]
Latency = Callable[[RequestRecord], float | None]
METRICS: Mapping[str, Latency] = {"ttft": d.ttft_s, "tpot": d.tpot_s, "e2e": d.e2e_s}
WORSE = 0.05  # a request is slower or faster if its latency differs by more than this share
_WORST = 10


@dataclass(frozen=True)
class _Twin:
    """One request on both sides. ``a``, ``b``: one record per repeat."""

    name: str
    a: list[RequestRecord]
    b: list[RequestRecord]
    near: str

    def values(self, latency: Latency) -> tuple[np.ndarray, np.ndarray]:
        """Of each repeat; NaN where undefined, infinite where it failed."""
        a, b = (np.array([math.nan if (v := latency(r)) is None else v for r in side]) for side in (self.a, self.b))
        return a, b


def compare(pairs: Sequence[Pair], metric: str = "e2e", *, seed: int = 0) -> Document:
    """``metric``: by which buckets, nearness and the worst requests are told: ttft, tpot or e2e."""
    if metric not in METRICS:
        raise UnknownNameError("metric", metric, METRICS)
    return {"metric": metric, "worse_share": WORSE, "comparisons": [_compare(pair, metric, seed) for pair in pairs]}


def _compare(pair: Pair, metric: str, seed: int) -> Document:
    twins, unpaired = _twins(pair)
    latency = METRICS[metric]
    lost = {
        side: [t.name for t in twins if any(r.status != "completed" for r in records(t))]
        for side, records in _SIDES.items()
    }
    return {
        "name": pair.name,
        "a": _about(pair.a),
        "b": _about(pair.b),
        "requests": {
            "paired": len(twins),
            "unpaired": unpaired,
            "not_completed_a": len(lost["a"]),
            "not_completed_b": len(lost["b"]),
            "lost_in_b": sorted(set(lost["b"]) - set(lost["a"])),
            "gained_in_b": sorted(set(lost["a"]) - set(lost["b"])),
            "different_outputs": sum(_differ(twin) for twin in twins),
        },
        "metrics": {name: _metric(twins, each, seed) for name, each in METRICS.items()},
        "buckets": _buckets(twins, latency, seed),
        "nearness": [
            {"nearness": near, **_difference([t for t in twins if t.near == near], latency, seed)}
            for near in NEARNESS
            if any(t.near == near for t in twins)
        ],
        "worst": _worst(twins, latency),
        "points": _points(twins, latency),
    }


_SIDES: Mapping[str, Callable[[_Twin], list[RequestRecord]]] = {"a": lambda t: t.a, "b": lambda t: t.b}


def _about(side: Side) -> Document:
    return {
        "name": side.name,
        "path": str(side.path),
        "scheduler": side.scheduler,
        "trace_sha256": side.trace_sha256,
        "repeats": len(side.replays),
        "transformations": [len(replay.events) for replay in side.replays],
    }


def _twins(pair: Pair) -> tuple[list[_Twin], int]:
    """Requests with the same id and lengths on both sides, in as many repeats as both have; how many have no partner."""
    repeats = min(len(pair.a.replays), len(pair.b.replays))
    ours, theirs = pair.a.replays[:repeats], pair.b.replays[:repeats]
    names = set.intersection(*(set(replay.records) for replay in (*ours, *theirs)))
    found = []
    for name in sorted(names, key=lambda n: (ours[0].records[n].scheduled_s, n)):
        a, b = ([replay.records[name] for replay in side] for side in (ours, theirs))
        if len({(r.prompt_tokens, r.target_output_tokens) for r in (*a, *b)}) == 1:
            nears = {nearness(record, replay) for record, replay in zip(b, theirs, strict=True)}
            found.append(_Twin(name, a, b, min(nears, key=NEARNESS.index)))
    every = set.union(*(set(replay.records) for replay in (*ours, *theirs)))
    return found, len(every) - len(found)


def _differ(twin: _Twin) -> bool:
    digests = {r.tokens_digest for r in (*twin.a, *twin.b) if r.status == "completed"}
    return len(digests - {None}) > 1


def _finite(twins: Sequence[_Twin], latency: Latency) -> tuple[np.ndarray, np.ndarray, list[_Twin]]:
    """(repeats, requests) of both sides, for the requests with a finite value in every repeat of both."""
    kept, columns = [], []
    for twin in twins:
        a, b = twin.values(latency)
        if np.isfinite(a).all() and np.isfinite(b).all():
            kept.append(twin)
            columns.append((a, b))
    if not columns:
        return np.empty((1, 0)), np.empty((1, 0)), []
    return np.array([a for a, _ in columns]).T, np.array([b for _, b in columns]).T, kept


def _difference(twins: Sequence[_Twin], latency: Latency, seed: int) -> Document:
    """Mean difference b - a per request, and how many got slower or faster."""
    a, b, kept = _finite(twins, latency)
    found = paired_change(a, b, mean, seed) if kept else None
    means_a, means_b = a.mean(axis=0), b.mean(axis=0)
    return {
        "requests": len(twins),
        "compared": len(kept),
        "difference_s": _interval(found[0]) if found else None,
        "slower": int((means_b > (1 + WORSE) * means_a).sum()) if kept else 0,
        "faster": int((means_b < (1 - WORSE) * means_a).sum()) if kept else 0,
    }


def _interval(interval: Interval) -> Document:
    return {"value": interval.value, "low": interval.low, "high": interval.high, "clear": interval.clear}


def _metric(twins: Sequence[_Twin], latency: Latency, seed: int) -> Document:
    found = _difference(twins, latency, seed)
    for side, records in _SIDES.items():
        values = [v for t in twins for r in records(t) if (v := latency(r)) is not None]
        found[f"{side}_s"] = distribution(values)
    return found


def _buckets(twins: Sequence[_Twin], latency: Latency, seed: int) -> list[Document]:
    of = {twin.name: twin for twin in twins}
    found = []
    for low, high, records in bucketed([twin.a[0] for twin in twins]):
        group = [of[record.request_id] for record in records]
        nears = Counter(t.near for t in group)
        found.append({"bucket": bucket_label(low, high), **_difference(group, latency, seed), "nearness": dict(nears)})
    return found


def _points(twins: Sequence[_Twin], latency: Latency) -> list[Document]:
    """Every compared request: its latency on both sides."""
    a, b, kept = _finite(twins, latency)
    return [
        {
            "request": twin.name,
            "prompt_tokens": twin.a[0].prompt_tokens,
            "a_s": float(x),
            "b_s": float(y),
            "nearness": twin.near,
        }
        for twin, x, y in zip(kept, a.mean(axis=0), b.mean(axis=0), strict=True)
    ]


def _worst(twins: Sequence[_Twin], latency: Latency) -> list[Document]:
    """Requests that b lost, then those that got slowest by the clock; at most ten."""
    gone = [
        {"request": t.name, "prompt_tokens": t.a[0].prompt_tokens, "a_s": None, "b_s": None, "nearness": LOST}
        for t in twins
        if t.near == LOST and all(r.status == "completed" for r in t.a)
    ]
    points = [p for p in _points(twins, latency) if p["b_s"] > (1 + WORSE) * p["a_s"]]
    points.sort(key=lambda p: p["a_s"] - p["b_s"])
    return [*gone, *points][:_WORST]

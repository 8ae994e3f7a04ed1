"""What ``gyges sim bench`` measures: how fast this simulator is, on a real trace, and with up to a million requests on a cluster.

Each measurement is a process of its own, so that its peak memory is that of the simulation and of the interpreter, of nothing
before it. Garbage is collected as always.
"""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gyges.errors import EngineError, UserError
from gyges.sim.setup import SimSetup, prepare
from gyges.sim.simulator import SimRequest

Progress = Callable[[str], None]
Document = dict[str, Any]
Lengths = Sequence[tuple[float, int, int]]

LOOP_S, COMMAND_S, SCALE_S, SCALE_BYTES, EXPONENT = 2.0, 5.0, 120.0, 4 << 30, 1.1
_SHARES = (16, 8, 4, 2, 1)  # of the requests of the largest run
_TIMEOUT_S = 1800.0


@dataclass(frozen=True, slots=True)
class SimBenchConfig:
    """``host``: what serves the trace.   cluster: what serves the many requests.   requests: of the largest run.
    requests_per_device_s: that arrive.   repeats: of the trace."""

    host: SimSetup = field(default_factory=lambda: SimSetup(hardware="h20x4", policy="static"))
    cluster: SimSetup = field(default_factory=lambda: SimSetup(hardware="h20x8", policy="static", hosts=128))
    requests: int = 1_000_000
    requests_per_device_s: float = 1.2
    repeats: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.requests < max(_SHARES):
            raise UserError(f"at least {max(_SHARES)} requests are needed to see how time grows, got {self.requests}")
        if self.repeats < 1:
            raise UserError(f"repeats must be at least 1, got {self.repeats}")


def bench_loop(config: SimBenchConfig, trace: Lengths, progress: Progress) -> Document:
    """``trace``: (arrival in seconds, prompt, output tokens). ``loop_s``: of each repeat."""
    progress(f"{len(trace):,} requests on {config.host.hardware}")
    return _alone(_loops, config.host, list(trace), config.repeats)


def bench_scale(config: SimBenchConfig, trace: Lengths, progress: Progress) -> Document:
    """Runs of more and more requests on the cluster, with lengths drawn from the trace's. ``runs``: of each, requests, seconds in
    all (arrivals, simulation, records, latencies) and of the loop, peak bytes of the process, what was simulated.   ``fit``: of
    seconds over requests, see :func:`fit`."""
    lengths = np.array([row[1:] for row in trace], dtype=np.int64)
    runs = []
    for share in _SHARES:
        count = config.requests // share
        progress(f"{count:,} requests on {config.cluster.hosts} x {config.cluster.hardware}")
        runs.append(_alone(_scale, config, lengths, count))
    return {"runs": runs, "fit": fit([(run["requests"], run["wall_s"]) for run in runs])}


def fit(points: Sequence[tuple[float, float]]) -> Document:
    """Of (requests, seconds): ``exponent`` of the power law through them, ``seconds_per_request``, ``start_s`` and ``r2`` of the
    straight line."""
    x, y = (np.array(column, dtype=np.float64) for column in zip(*points, strict=True))
    exponent = float(np.polyfit(np.log(x), np.log(y), 1)[0])
    slope, start = (float(value) for value in np.polyfit(x, y, 1))
    rest = y - (slope * x + start)
    spread = float(((y - y.mean()) ** 2).sum())
    r2 = 1 - float((rest**2).sum()) / spread if spread else 1.0
    return {"exponent": exponent, "seconds_per_request": slope, "start_s": start, "r2": r2}


def goals(document: Document) -> list[Document]:
    """``name``, ``limit``, ``unit``, ``reached`` (None: not measured), ``met``."""
    loop, command, scale = (document.get(name) for name in ("loop", "command", "scale"))
    largest = scale["runs"][-1] if scale else None
    rows = [
        ("event loop of the trace", LOOP_S, "s", min(loop["loop_s"]) if loop else None),
        ("whole command of the trace", COMMAND_S, "s", min(command["wall_s"]) if command else None),
        ("largest run, in all", SCALE_S, "s", largest["wall_s"] if largest else None),
        ("largest run, peak memory", float(SCALE_BYTES), "bytes", largest["peak_bytes"] if largest else None),
        ("exponent of time over requests", EXPONENT, "count", scale["fit"]["exponent"] if scale else None),
    ]
    return [
        {"name": name, "limit": limit, "unit": unit, "reached": value, "met": None if value is None else value <= limit}
        for name, limit, unit, value in rows
    ]


def _alone(function: Callable[..., Document], *arguments: Any) -> Document:
    """In a fresh process. Raises EngineError where it dies or takes for ever."""
    pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    try:
        return pool.submit(function, *arguments).result(_TIMEOUT_S)
    except BrokenProcessPool as error:
        raise EngineError("a measuring process died; out of memory? Give fewer --requests") from error
    except TimeoutError as error:
        for process in list(pool._processes.values()):
            process.kill()
        raise EngineError(f"a measurement took more than {_TIMEOUT_S:g} s; give fewer --requests") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _loops(setup: SimSetup, trace: Lengths, repeats: int) -> Document:
    prepared = prepare(setup)
    requests = [SimRequest(*row) for row in trace]
    results = [prepared.simulator().run(requests) for _ in range(repeats)]
    first = results[0]
    done = sum(record.status == "completed" for record in first.records)
    return {
        "requests": len(requests),
        "completed": done,
        "steps": first.steps,
        "events": first.events,
        "simulated_s": first.end_s,
        "loop_s": [result.loop_s for result in results],
        "peak_bytes": _peak_bytes(),
    }


def _scale(config: SimBenchConfig, lengths: np.ndarray[Any, Any], count: int) -> Document:
    started = time.perf_counter()
    prepared = prepare(config.cluster)
    devices = prepared.facts["devices"] * config.cluster.hosts
    random = np.random.default_rng(config.seed)
    arrivals = np.cumsum(random.exponential(1 / (config.requests_per_device_s * devices), count))
    drawn = lengths[random.integers(0, len(lengths), count)]
    requests = [SimRequest(*row) for row in zip(arrivals.tolist(), *drawn.T.tolist(), strict=True)]
    result = prepared.simulator().run(requests)
    records = [record for record in result.records if record.status == "completed"]
    first = np.array([record.token_times[0] - record.scheduled_s for record in records])
    more = [record for record in records if record.output_tokens > 1]
    each = np.array([(r.token_times[-1] - r.token_times[0]) / (r.output_tokens - 1) for r in more])
    return {
        "requests": count,
        "devices": devices,
        "completed": len(records),
        "wall_s": time.perf_counter() - started,
        "loop_s": result.loop_s,
        "steps": result.steps,
        "events": result.events,
        "simulated_s": result.end_s,
        "transformations": len(result.transformations),
        "ttft_s": {name: float(np.percentile(first, p)) for name, p in (("p50", 50), ("p99", 99))},
        "tpot_s": {name: float(np.percentile(each, p)) for name, p in (("p50", 50), ("p99", 99))},
        "peak_bytes": _peak_bytes(),
    }


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

"""Profiles the engine at some TP degrees, and writes the bundle (gyges.sim.cost.bundle says what that is)."""

from __future__ import annotations

import csv
import os
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from gyges.bench.child import Child
from gyges.config import EngineConfig
from gyges.core import Request, SamplingParams
from gyges.engine.engine import Engine
from gyges.errors import UserError
from gyges.parallel.arena import SharedArena
from gyges.profile.grid import Limits, Point, attention_points, dense_points
from gyges.sim.cost.base import StepShape
from gyges.sim.cost.bundle import ATTENTION_COLUMNS, PER_LAYER, read_bundle
from gyges.sim.cost.curves import Curve
from gyges.sim.cost.tables import TableCost

Progress = Callable[[str], None]
Times = list[tuple[Point, dict[str, float]]]

_START_S, _POINTS_S = 180.0, 900.0
_SEQUENCES = (1, 2, 4, 8, 16, 32, 64, 128)
_CHUNKS = (64, 128, 256, 512, 1024, 2048)
_WARM, _TOKENS = 4, 84  # output tokens of each request where whole steps are timed; the first ones do not count
_PROMPT, _PREFILLS = 32, 9


@dataclass(frozen=True, slots=True)
class ProfileConfig:
    """``engine``: of one instance; its ``instances`` are replaced by each of ``degrees`` in turn."""

    engine: EngineConfig
    degrees: tuple[int, ...] = (1,)
    repeats: int = 5
    quick: bool = False


def profile(config: ProfileConfig, folder: Path, progress: Progress) -> dict[str, Any]:
    """Writes ``folder``, new or empty, and returns its meta. Raises UserError before anything runs for what cannot work."""
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; name a new folder with --out")
    if not config.degrees or len(set(config.degrees)) < len(config.degrees):
        raise UserError(f"TP degrees to profile must be given once each, got {config.degrees}")
    engines = {
        degree: Engine(config.engine.with_(instances=(degree,), tp_degrees=()), "static") for degree in config.degrees
    }
    folder.mkdir(parents=True, exist_ok=True)
    first = engines[config.degrees[0]]
    meta = _meta(config, first)
    _write_yaml(folder / "meta.yaml", meta)
    for degree, engine in engines.items():
        tables = folder / f"tp{degree}"
        tables.mkdir()
        limits = limits_of(engine)
        progress(f"TP{degree}: operators")
        dense, attention = _run_points(engine, limits, config)
        layers = engine.geometry.num_layers
        write_dense(tables / "dense.csv", dense, layers, degree)
        write_attention(tables / "attention.csv", attention, layers)
        write_per_sequence(tables / "per_sequence.csv", dense, {})
        progress(f"TP{degree}: whole steps of the running engine")
        cost = TableCost(read_bundle(folder), engine.geometry, degree)
        decodes, prefills = step_rests(engine, cost, limits, config.quick)
        write_per_sequence(tables / "per_sequence.csv", dense, decodes)
        write_dense(tables / "dense.csv", dense, layers, degree, prefills)
    progress("done")
    return meta


def limits_of(engine: Engine) -> Limits:
    config, placement = engine.config, engine.placement
    kv = placement.instances[0].max_tokens
    return Limits(config.max_batch_tokens, config.max_seqs, kv, placement.block_size, placement.max_positions)


def _run_points(engine: Engine, limits: Limits, config: ProfileConfig) -> tuple[Times, Times]:
    dense, attention = dense_points(limits), attention_points(limits, config.quick)
    points = [asdict(point) for point in (*dense, *attention)]
    degree, placement = engine.config.num_devices, engine.placement
    g = engine.geometry
    largest = max(limits.max_batch_tokens * g.hidden_size, limits.max_seqs * g.vocab_size) * g.item_size
    with ExitStack() as stack:
        arena = SharedArena.create(degree, largest) if degree > 1 else None
        if arena:
            stack.callback(arena.close)
        threads = engine.config.worker_threads
        spin = {"GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "20000")}  # as the engine's workers
        ranks = [stack.enter_context(Child("gyges.profile.rank:Rank", threads, spin)) for _ in range(degree)]
        pool = stack.enter_context(ThreadPoolExecutor(degree))

        def everywhere(method: str, timeout_s: float, arguments: Callable[[int], dict[str, Any]]) -> list[Any]:
            futures = [pool.submit(child.call, method, timeout_s, **arguments(i)) for i, child in enumerate(ranks)]
            return [future.result() for future in futures]

        def setup(worker: int) -> dict[str, Any]:
            fields = {
                "worker": worker,
                "engine": engine.config.to_dict(),
                "hf_config": engine.model.hf_config,
                "source": asdict(engine.model.source_spec),
                "dtype": engine.dtype,
                "members": list(range(degree)),
                "max_positions": placement.max_positions,
                "arena_bytes": arena.buffer_bytes if arena else 0,
            }
            return {"setup": fields, "arena": f"/proc/{os.getpid()}/fd/{arena.fd}" if arena else ""}

        everywhere("start", _START_S, setup)
        measured = everywhere("measure", _POINTS_S, lambda _: {"points": points, "repeats": config.repeats})[0]
    times = list(zip((*dense, *attention), measured, strict=True))
    return times[: len(dense)], times[len(dense) :]


def step_rests(
    engine: Engine, cost: TableCost, limits: Limits, quick: bool
) -> tuple[dict[int, float], dict[int, float]]:
    """What steps of the running engine take beyond their operators: controller, messages, processes that wake. Seconds;
    negative where operators, timed one by one, take longer than the whole.

    decode steps: sequences -> the mean time between a request's tokens, where the engine serves so many at once.
    prefill steps: tokens -> from when a request is put in a batch to its first token, one request after the other.
    """
    with Engine(engine.config, "static") as running:
        counts = [
            n for n in _SEQUENCES if n <= limits.max_seqs and n * _held(_PROMPT + _TOKENS, limits) <= limits.kv_tokens
        ]
        decodes = {n: _decode_rest(running, cost, n) for n in (counts[::3] if quick else counts)}
        chunks = [n for n in _CHUNKS if n < limits.max_batch_tokens] + [limits.max_batch_tokens]
        chunks = [n for n in chunks if _held(n + 2, limits) <= limits.kv_tokens and n + 2 < limits.max_context]
        prefills = {n: _prefill_rest(running, cost, n) for n in (chunks[::3] if quick else chunks)}
    return decodes, prefills


def _decode_rest(running: Engine, cost: TableCost, n: int) -> float:
    gaps: list[float] = []
    for output in running.generate([_request(f"d{n}-{i}", _PROMPT, _TOKENS) for i in range(n)]):
        times = output.token_times
        gaps += [b - a for a, b in pairwise(times[_WARM:])]
    contexts = [_PROMPT + i for i in range(_WARM, _TOKENS)]
    operators = statistics.fmean(cost.step_s(StepShape(n, n * c, c, (), n)) for c in contexts)
    return statistics.fmean(gaps) - operators


def _prefill_rest(running: Engine, cost: TableCost, n: int) -> float:
    took = []
    for i in range(_PREFILLS):
        (output,) = running.generate([_request(f"p{n}-{i}", n, 2)])
        assert output.scheduled_s is not None
        took.append(output.token_times[0] - output.scheduled_s)
    return statistics.median(took) - cost.step_s(StepShape(prefills=((n, 0),), sampled=1))


def _request(name: str, prompt: int, output: int) -> Request:
    return Request(name, tuple(2 + i % 7 for i in range(prompt)), SamplingParams(max_tokens=output, ignore_eos=True))


def _held(tokens: int, limits: Limits) -> int:
    return -(-tokens // limits.block_size) * limits.block_size


def write_dense(
    path: Path, times: Times, layers: int, degree: int, prefill_rests: Mapping[int, float] | None = None
) -> None:
    """Microseconds of one call. The last norm is part of lm_head here, since only sampled rows pass it. What grows with the
    tokens beside the operators is part of embedding: the worker's arrays, tables, pages, and the rest of a prefill step."""
    rests = Curve(list(prefill_rests), list(prefill_rests.values())) if prefill_rests else Curve([0.0], [0.0])
    rows: list[tuple[str, int, float]] = []
    calls = PER_LAYER | ({"all_reduce": 2} if degree > 1 else {})
    if any("qk_norm" in spent for _, spent in times):
        calls = calls | {"qk_norm": 1}
    for layer, each in calls.items():
        rows += [
            (layer, point.tokens, max(spent.get(layer, 0.0), 0.0) * 1e6 / (layers * each)) for point, spent in times
        ]
    for point, spent in times:
        beside = spent["embedding"] + spent["step"] + (rests(point.tokens) if point.chunk else 0.0)
        rows.append(("embedding", point.tokens, max(beside, 0.0) * 1e6))
    rows += [("final_layernorm", point.tokens, 0.0) for point, _ in times]
    _write_csv(path, ("layer", "tokens", "time_us"), rows)


def write_per_sequence(path: Path, times: Times, rests: Mapping[int, float]) -> None:
    sampled = [(point, spent) for point, spent in times if point.decodes]
    rows = [(layer, point.decodes, spent[layer] * 1e6) for layer in ("lm_head", "sampler") for point, spent in sampled]
    rows += [("step", n, seconds * 1e6) for n, seconds in rests.items()]
    _write_csv(path, ("layer", "sequences", "time_us"), rows)


def write_attention(path: Path, times: Times, layers: int) -> None:
    found: dict[Point, list[float]] = defaultdict(list)
    for point, spent in times:
        found[point].append(spent["attention"] * 1e6 / layers)
    rows = [(p.chunk, p.before, p.decodes, p.context, statistics.median(t)) for p, t in found.items()]
    _write_csv(path, ATTENTION_COLUMNS, rows)


def _meta(config: ProfileConfig, engine: Engine) -> dict[str, Any]:
    from gyges.metrics.manifest import hardware, utc_now, versions

    placement = engine.placement
    return {
        "profiler": "gyges profile",
        "versions": versions(),
        "hardware": "cpu",
        "machine": hardware(),
        "profiled_at": utc_now(),
        "model": config.engine.model,
        "dtype": engine.dtype,
        "tp_degrees": list(config.degrees),
        "engine": {**engine.config.to_dict(), "instances": list(engine.config.instances), "tp_degrees": []},
        "block_size": placement.block_size,
        "measurement_iterations": config.repeats,
        "notes": [
            "final_layernorm is part of lm_head: only rows that sample pass it",
            "embedding holds what a worker does beside the operators (arrays, tables, pages), and the rest of a prefill step",
            "step, rest of a prefill step: time of the step in the running engine, less its operators",
        ],
    }


def _write_yaml(path: Path, document: Mapping[str, Any]) -> None:
    import yaml

    from gyges.metrics.atomic import write_bytes

    write_bytes(path, yaml.safe_dump(dict(document), sort_keys=False).encode())


def _write_csv(path: Path, header: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows((*row[:-1], round(row[-1], 4)) for row in map(tuple, rows))

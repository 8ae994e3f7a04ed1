"""What running requests notice of a merge and a split: the real engine, tokens streaming, the overlap on and off in turn.

One engine for each layout with padding on and off. Its TP1 instances are filled to the highest share of their KV cache with
long-running requests; then merge, split, with the overlap and without, again and again. Some requests are withdrawn, which leaves
the next lower share, and so on: prompts are computed once. All engines get the same requests, and their tokens are compared.

    before_gap_s   median gap between two tokens of a request just before
    max_gap_s      longest gap of any request that touches the time from the wish to the end of the transformation
    pause_s        the difference: what a request waited because of it
    after_gap_s    median gap just after;  merged_gap_s: that of the merged instance (after a merge, before a split)
    *_tokens_per_s throughput before, during (from when the steps stopped, or became common, to the end) and after
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from random import Random
from typing import Any

from gyges.bench.run import spread
from gyges.bench.transform.audience import Audience, gaps_between, same_prefix, typical_gap
from gyges.bench.transform.micro import PARTS
from gyges.config import MIB, EngineConfig
from gyges.core import Request, SamplingParams
from gyges.engine.engine import Engine
from gyges.engine.transformer import TransformationReport
from gyges.errors import EngineError, UserError
from gyges.models.presets import PRESETS
from gyges.transform.plan import PlanImpossible

Progress = Callable[[str], None]
Document = dict[str, Any]

DEVICE_MEMORY = {"tiny": 24 * MIB, "small": 256 * MIB}
_REPEATS = 2  # of one engine
_WINDOW = 8  # gaps of each request that make the medians before and after
_GROWTH = (
    0.03  # of the KV cache, per repeat: a share is meant halfway through its transformations, in which contexts grow
)
_FILL_TIMEOUT_S, _TIMEOUT_S = 600.0, 120.0
_SPECIAL_IDS = 2
_LONGEST = 0.45  # of the KV cache: prompts cost their length squared, and are computed before anything is measured


@dataclass(frozen=True, slots=True)
class PauseConfig:
    """``repeats``: at the highest fill (a new engine every two, as contexts grow); the others are measured once.
    ``device_memory``: bytes; 0 chooses by the preset."""

    model: str
    layouts: tuple[str, ...]
    fills: tuple[float, ...]
    degree: int
    repeats: int
    seed: int
    paddings: tuple[bool, ...] = (True, False)
    device_memory: int = 0

    def __post_init__(self) -> None:
        PRESETS.get(self.model)
        if not all(0 < fill <= 0.92 for fill in self.fills):
            raise UserError(f"KV fills with running requests must lie between 0 and 92 %, got {self.fills}")

    def engine(self, layout: str, *, padding: bool) -> EngineConfig:
        return EngineConfig(
            model=self.model,
            instances=(1,) * self.degree,
            tp_degrees=(1, self.degree),
            device_memory=self.device_memory or DEVICE_MEMORY[self.model],
            layout=layout,
            padding=padding,
        )


@dataclass
class _Run:
    """One engine's part: figures of its transformations by (fill, overlap, kind), tokens by request, or what went wrong."""

    figures: dict[tuple[float, bool, str], list[Document]] = field(default_factory=lambda: defaultdict(list))
    tokens: dict[str, list[int]] = field(default_factory=dict)
    facts: Document = field(default_factory=dict)
    error: str | None = None


def measure_pause(config: PauseConfig, progress: Progress) -> Document:
    """Cells with the median and extremes of their repeats. An engine that fails is reported with its error."""
    runs: dict[tuple[str, bool], _Run] = {}
    room = min(
        _room(config.engine(layout, padding=padding)) for layout in config.layouts for padding in config.paddings
    )
    for layout in config.layouts:
        for padding in config.paddings:
            progress(f"pause: {config.model}, {layout}, padding {'on' if padding else 'off'}")
            run = runs[layout, padding] = _Run()
            try:
                for first in range(0, config.repeats, _REPEATS):
                    repeats = range(first, min(first + _REPEATS, config.repeats))
                    _measure_engine(config, layout, padding, room, repeats, run, progress)
            except EngineError as error:
                run.error = str(error)
                progress(f"pause: {layout}: failed: {error}")
    return {
        "model": config.model,
        "degree": config.degree,
        "engines": [_engine_result(key, run) for key, run in runs.items()],
        "cells": [cell for key, run in runs.items() for cell in _cells(key, run)],
        "same_tokens": _same_tokens(list(runs.values())),
    }


def _engine_result(key: tuple[str, bool], run: _Run) -> Document:
    return {"layout": key[0], "padding": key[1], "error": run.error, **run.facts}


def _room(config: EngineConfig) -> int:
    """Tokens that a request may come to on a TP1 instance so that a split always finds it a home."""
    host = Engine(config).placer.shape  # nothing is started
    return host.max_tokens(1) - (host.kv_geometry(1).blocks_per_group - 1) * host.block_size


def _measure_engine(
    config: PauseConfig, layout: str, padding: bool, room: int, repeats: range, run: _Run, progress: Progress
) -> None:
    """``room``: tokens; the same for all engines, so that all get the same requests."""
    audience = Audience()
    with Engine(config.engine(layout, padding=padding)) as engine:
        run.facts = {
            "device_bytes": engine.config.device_memory,
            "page_bytes": engine.config.page_bytes,
            "max_tokens_tp1": engine.placement.instances[0].max_tokens,
        }
        requests = make_requests(config, room, engine.geometry.vocab_size)
        for request in (r for group in requests.values() for r in group):
            engine.submit(request, audience.deliver)
        running = {r.request_id: fill for fill, group in requests.items() for r in group}
        audience.wait_for(running, 1, _FILL_TIMEOUT_S)
        run.tokens = audience.tokens
        try:
            top = max(config.fills)
            for fill in sorted(config.fills, reverse=True) if repeats.start == 0 else [top]:
                _withdraw(engine, audience, running, fill)
                _measure_fill(config, engine, audience, list(running), fill, repeats if fill == top else range(1), run)
                done = [f for key, figures in run.figures.items() if key[0] == fill for f in figures]
                longest = max(f["max_gap_s"] for f in done)
                progress(f"pause: {fill:.0%} full: {len(done)} transformations, longest gap {longest * 1e3:.0f} ms")
        finally:
            run.facts["preemptions"] = sum(status.preemptions for status in engine.status())


def make_requests(config: PauseConfig, capacity: int, vocab: int) -> dict[float, list[Request]]:
    """Fill -> the requests, one or a few per instance, that make the difference to the next lower fill. ``capacity``: tokens that
    a TP1 instance holds. They are given to the instances in turn, so the longest come first."""
    requests: dict[float, list[Request]] = {}
    shares = sorted(config.fills)
    lowest = dict(zip(shares, [0.0, *shares], strict=False))
    growth = _GROWTH * min(config.repeats, _REPEATS) / len(shares)
    for fill in sorted(shares, key=lambda f: lowest[f] - f):
        tokens = int((fill - lowest[fill] - growth) * capacity)
        if tokens < 1:
            raise UserError(f"KV fills {shares} lie too close together for a device of {capacity} tokens")
        sampling = SamplingParams(max_tokens=capacity - tokens, ignore_eos=True)
        requests[fill] = []
        pieces = ceil((fill - lowest[fill]) / _LONGEST)
        for index in range(config.degree * pieces):
            draw = Random(f"{config.seed}/{fill}/{index}")
            prompt = tuple(draw.randrange(_SPECIAL_IDS, vocab) for _ in range(tokens // pieces))
            requests[fill].append(Request(f"{fill:.2f}/{index}", prompt, sampling))
    return requests


def _withdraw(engine: Engine, audience: Audience, running: dict[str, float], fill: float) -> None:
    """Leaves the requests that make up ``fill``. They are spread evenly: a split deals out the longest first."""
    gone = [name for name, share in running.items() if share > fill]
    for name in gone:
        engine.abort(name)
    audience.wait_for_end(gone, _TIMEOUT_S)
    for name in gone:
        del running[name]


def _measure_fill(
    config: PauseConfig, engine: Engine, audience: Audience, names: list[str], fill: float, repeats: range, run: _Run
) -> None:
    devices = range(config.degree)
    for repeat in repeats:
        for overlap in (True, False) if repeat % 2 == 0 else (False, True):
            for kind in ("merge", "split"):
                audience.wait_for(names, _WINDOW + 1, _TIMEOUT_S)
                used = _fill_of(engine)
                if kind == "merge":
                    future = engine.merge(devices, "benchmark", overlap=overlap)
                else:
                    future = engine.split(devices, (1,) * config.degree, "benchmark", overlap=overlap)
                try:
                    report = future.result(timeout=_TIMEOUT_S + engine.config.transform_timeout)
                except (PlanImpossible, TimeoutError) as error:
                    raise EngineError(f"{kind} at {used:.0%} of KV in use: {error}") from error
                audience.wait_for(names, _WINDOW + 1, _TIMEOUT_S)
                times = {name: audience.times[name][:] for name in names}
                figures = notice(report, times, _WINDOW)
                figures |= _inside(report, engine.config.page_bytes)
                run.figures[fill, overlap, kind].append(figures | {"fill": used})


def _fill_of(engine: Engine) -> float:
    status = engine.status()
    return sum(s.kv_used_blocks for s in status) / max(1, sum(s.kv_total_blocks for s in status))


def notice(report: TransformationReport, times: Mapping[str, Sequence[float]], window: int) -> Document:
    """What requests saw of one transformation, from when their tokens came (monotonic seconds)."""
    before = typical_gap(times.values(), until_s=report.asked_s, count=window)
    after = typical_gap(times.values(), since_s=report.end_s, count=window)
    during = [gap for each in times.values() for gap in gaps_between(each, report.asked_s, report.end_s)]
    longest = max(during, default=0.0)
    lasted = report.end_s - report.start_s
    return {
        "before_gap_s": before,
        "after_gap_s": after,
        "merged_gap_s": after if report.kind == "merge" else before,
        "max_gap_s": longest,
        "pause_s": max(0.0, longest - before),
        "report_pause_s": report.pause_s,
        "lasted_s": lasted,
        "before_tokens_per_s": len(times) / before,
        "after_tokens_per_s": len(times) / after,
        "during_tokens_per_s": report.tokens / lasted if lasted > 0 else 0.0,
        "steps": report.steps,
        "stopped": report.stopped,
    }


def _inside(report: TransformationReport, page_bytes: int) -> Document:
    """What the workers did, from the report."""
    workers = list(report.workers.values())
    found: Document = {
        "parts": {part: statistics.fmean(sum(w[f] for f in fields) for w in workers) for part, fields in PARTS.items()},
        "extra_bytes": report.peak_extra_pages * page_bytes,
    }
    for name in ("kv_peer_bytes", "kv_local_bytes", "weights_peer_bytes", "weights_local_bytes", "kv_descriptors"):
        found[name] = sum(w[name] for w in workers)
    return found


_SPREAD = (
    "fill", "before_gap_s", "after_gap_s", "merged_gap_s", "max_gap_s", "pause_s", "report_pause_s", "lasted_s",
    "before_tokens_per_s", "during_tokens_per_s", "after_tokens_per_s", "steps", "kv_peer_bytes", "kv_local_bytes",
    "weights_peer_bytes", "weights_local_bytes", "kv_descriptors", "extra_bytes",
)  # fmt: skip


def _cells(key: tuple[str, bool], run: _Run) -> list[Document]:
    cells = []
    for (fill, overlap, kind), figures in run.figures.items():
        cell: Document = {"layout": key[0], "padding": key[1], "overlap": overlap, "kind": kind, "asked_fill": fill}
        for name in _SPREAD:
            cell[name] = spread([f[name] for f in figures])
        cell["parts"] = {part: spread([f["parts"][part] for f in figures]) for part in PARTS}
        cell["gap_over_merged"] = spread([f["max_gap_s"] / f["merged_gap_s"] for f in figures])
        # Where it went on in one stop although the overlap was on.
        cell["stopped"] = next((f["stopped"] for f in figures if f["stopped"]), "")
        cells.append(cell)
    return cells


def _same_tokens(runs: Sequence[_Run]) -> Document:
    """Every engine against the first: shares of requests whose tokens are the same as far as both went, and of tokens."""
    if len(runs) < 2:
        return {"engines": len(runs), "requests": None, "tokens": None}
    reference = runs[0].tokens
    pairs = [
        same_prefix(tokens, reference[name])
        for run in runs[1:]
        for name, tokens in run.tokens.items()
        if name in reference
    ]
    total = sum(common for _, common in pairs)
    same = sum(at == common for at, common in pairs)
    return {
        "engines": len(runs),
        "requests": same / len(pairs) if pairs else None,
        "tokens": sum(at for at, _ in pairs) / total if total else None,
    }

"""Measured runs of vLLM, read from files: which requests, when each got its tokens, and how the engine was set.

requests.jsonl   per request: input_toks, output_toks, arrival_time (wall clock, s), queued_ts, scheduled_ts, first_token_ts,
                 last_token_ts (one monotonic clock, s; queueing starts at queued_ts)
meta.json        model, vllm_version, engine_kwargs
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gyges.errors import UserError
from gyges.scheduling.batching import BatchLimits
from gyges.sim.pipelined import PipelinedRequest, Served

_LENGTHS = ("input_toks", "output_toks")
_STAMPS = ("queued_ts", "scheduled_ts", "first_token_ts", "last_token_ts")
_BLOCK = 16  # vLLM's block_size on CUDA
_MOST_GRAPH_TOKENS = 512  # vLLM captures CUDA graphs for at most min(2 x max_num_seqs, 512) tokens (config/vllm.py)
_ASYNC_SINCE = (0, 14)  # asynchronous scheduling is on by default


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """Times in seconds since the first request was queued. ``arrivals`` and ``served`` belong together by index."""

    model: str
    version: str
    degree: int
    dtype: str
    limits: BatchLimits
    depth: int  # steps in flight
    graph_tokens: int
    memory_utilization: float | None
    requests: list[PipelinedRequest]
    served: list[Served]


def read_run(requests_path: Path, meta_path: Path) -> MeasuredRun:
    """Raises UserError that names the file, the line and the field."""
    meta = _meta(meta_path)
    settings = meta["engine_kwargs"]
    rows = _rows(requests_path)
    start = min(row["queued_ts"] for row in rows)
    # Wall clock and monotonic clock agree but for a constant: the least delay from sending to queueing, a millisecond or so.
    stamped = all("arrival_time" in row for row in rows)
    offset = min(row["queued_ts"] - row["arrival_time"] for row in rows) if stamped else 0.0
    arrivals = [row["arrival_time"] + offset if stamped else row["queued_ts"] for row in rows]
    seqs = _setting(meta_path, settings, "max_num_seqs")
    version = str(meta["vllm_version"])
    asynchronous = settings.get("async_scheduling")
    if asynchronous is None:
        asynchronous = _version(meta_path, version) >= _ASYNC_SINCE
    return MeasuredRun(
        model=str(meta["model"]),
        version=version,
        degree=int(settings.get("tensor_parallel_size") or 1),
        dtype=_dtype(settings.get("dtype")),
        limits=BatchLimits(
            _setting(meta_path, settings, "max_num_batched_tokens"), seqs, int(settings.get("block_size") or _BLOCK)
        ),
        depth=2 if asynchronous else 1,
        graph_tokens=0 if settings.get("enforce_eager") else min(2 * seqs, _MOST_GRAPH_TOKENS),
        memory_utilization=settings.get("gpu_memory_utilization"),
        requests=[
            PipelinedRequest(arrival - start, row["input_toks"], row["output_toks"])
            for arrival, row in zip(arrivals, rows, strict=True)
        ],
        served=[Served(*(row[stamp] - start for stamp in _STAMPS)) for row in rows],
    )


def _meta(path: Path) -> dict[str, Any]:
    document = _json(path, _text(path))
    lacking = [name for name in ("model", "vllm_version", "engine_kwargs") if name not in document]
    if lacking:
        raise UserError(f"{path} lacks {', '.join(lacking)}")
    if not isinstance(document["engine_kwargs"], Mapping):
        raise UserError(f"{path}: engine_kwargs must be an object")
    for name in ("data_parallel_size", "pipeline_parallel_size"):
        if (document["engine_kwargs"].get(name) or 1) != 1:
            raise UserError(f"{path}: {name} = {document['engine_kwargs'][name]} is not replayed; one instance is")
    return document


def _setting(path: Path, settings: Mapping[str, Any], name: str) -> int:
    value = settings.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(
            f"{path}: engine_kwargs.{name} must be a positive integer, got {value!r}; defaults differ by version"
        )
    return value


def _version(path: Path, text: str) -> tuple[int, int]:
    match = re.match(r"v?(\d+)\.(\d+)", text)
    if not match:
        raise UserError(f"{path}: vllm_version {text!r} is not understood; expected something like 0.19.0")
    return int(match[1]), int(match[2])


def _dtype(value: Any) -> str:
    return str(value) if value in ("bfloat16", "float32") else "auto"


def _rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        row = _json(path, line, number)
        for name in (*_LENGTHS, *_STAMPS):
            value = row.get(name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise UserError(f"{path}:{number}: {name} must be a number, got {value!r}")
        for name in _LENGTHS:
            if row[name] != int(row[name]) or row[name] < 1:
                raise UserError(f"{path}:{number}: {name} must be a positive whole number, got {row[name]!r}")
        rows.append(row)
    if not rows:
        raise UserError(f"{path} holds no request")
    return rows


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def _json(path: Path, text: str, line: int | None = None) -> dict[str, Any]:
    where = f"{path}:{line}" if line else f"{path}"
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f"{where} is not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{where} must hold a JSON object")
    return value

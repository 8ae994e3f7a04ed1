"""Figures of CPU devices, each beside what this machine can do at most."""

from __future__ import annotations

import statistics
import time
from typing import Any

from gyges.doctor.checks import goal

_WORKERS, _MESSAGE, _CALLS = 4, 16 * 1024, 200
_FILL, _COPY_BYTES = 0.9, 64 << 20
_REQUESTS, _PROMPT, _OUTPUT = 32, 64, 32


def all_reduce() -> dict[str, Any]:
    return _all_reduce("shm", _WORKERS)


def nccl() -> dict[str, Any]:
    """A process for each GPU."""
    import torch

    from gyges.bench.allreduce import NCCL

    return _all_reduce(NCCL, torch.cuda.device_count())


def _all_reduce(backend: str, workers: int) -> dict[str, Any]:
    """The sums are looked at too."""
    from gyges.bench.allreduce import all_reduce_times

    seconds = sorted(all_reduce_times(backend, workers, _MESSAGE, _CALLS, timeout_s=50.0))
    p50, p99 = statistics.median(seconds), seconds[int(0.99 * (len(seconds) - 1))]
    figures = {"backend": backend, "workers": workers, "message_bytes": _MESSAGE, "p50_s": p50, "p99_s": p99}
    text = f"{workers} workers, 16 KiB in {p50 * 1e3:.3f} ms (p50), {p99 * 1e3:.3f} ms (p99)"
    return {"figures": figures, "summary": text}


def copies() -> dict[str, Any]:
    from gyges.bench.rates import Rates
    from gyges.config import available_cores

    rates = Rates()
    rates.load(available_cores(), 768, 2304)
    figures = rates.measure()
    copy, flops = figures["copy_bytes_per_s"], figures["gemm_flops_per_s"]
    return {"figures": figures, "summary": f"{copy / 1e9:.1f} GB/s read and written, {flops / 1e9:.0f} GFLOP/s in fp32"}


def transformations() -> dict[str, Any]:
    """Between real worker processes; what was moved is compared with what was written."""
    from gyges.bench.transform.micro import MicroConfig, find_cell, measure_micro

    config = MicroConfig(("llama3-8b",), ("shard-pages", "token-first"), (_FILL,), (2,), 1, 0, copy_bytes=_COPY_BYTES)
    (result,) = measure_micro(config, lambda text: None)["models"]
    figures: dict[str, Any] = {}
    for layout in config.layouts:
        for kind in ("merge", "split"):
            cell = find_cell(result, layout=layout, padding=True, kind=kind, fill=_FILL)
            assert cell is not None, f"no {kind} of {layout} was measured"
            figures[f"{layout} {kind}"] = {
                name: cell[name]["median"] for name in ("total_s", "kv_s", "weights_s", "kv_bytes_per_s", "of_memcpy")
            }
    share = figures["shard-pages merge"]["of_memcpy"]
    goals = [goal("KV of a merge, shard-pages, 90 % full, against memcpy", "at least 0.6x", 0.6, share, unit="ratio")]
    return {"figures": figures, "goals": goals, "summary": f"KV cache at {share:.0%} of memcpy, llama3-8b, TP1 <-> TP2"}


def serving() -> dict[str, Any]:
    return _serving("tiny", _WORKERS, {})


def serving_on_gpu() -> dict[str, Any]:
    """One worker, so that decode steps are CUDA graphs. Not yet run on hardware."""
    return _serving("small", 1, {"device": "cuda", "device_memory": 4 << 30})


def _serving(model: str, workers: int, options: dict[str, Any]) -> dict[str, Any]:
    from gyges.config import EngineConfig
    from gyges.core import Request, SamplingParams
    from gyges.engine.engine import Engine

    sampling = SamplingParams(max_tokens=_OUTPUT, ignore_eos=True)
    requests = [
        Request(f"r{i}", tuple((31 * i + 7 * j) % 2000 + 3 for j in range(_PROMPT)), sampling) for i in range(_REQUESTS)
    ]
    with Engine(EngineConfig(model=model, instances=(1,) * workers, **options)) as engine:
        list(engine.generate(requests[:4]))
        began = time.perf_counter()
        renamed = [Request(f"again-{r.request_id}", r.prompt, r.sampling) for r in requests]
        outputs = list(engine.generate(renamed))
        seconds = time.perf_counter() - began
        started = engine.start_s
    short = [out.request_id for out in outputs if len(out.token_ids) != _OUTPUT]
    assert not short, f"requests {', '.join(short)} ended early"
    rate = _REQUESTS * _OUTPUT / seconds
    figures = {"output_tokens_per_s": rate, "start_s": started, "requests": _REQUESTS}
    return {"figures": figures, "summary": f"{rate:.0f} output tokens/s, preset {model}; engine up in {started:.1f} s"}

"""This engine as a peer: see peers.py for the contract."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from gyges.bench.child import peak_rss_bytes
from gyges.config import MIB, EngineConfig
from gyges.core import Request, SamplingParams
from gyges.engine.engine import Engine
from gyges.models.hub import resolve_model

_SLACK_BYTES = 32 * MIB


class OwnEngine:
    """One TP1 instance on all cores with the engine's own defaults, and enough memory that nothing is preempted."""

    engine: Engine

    def load(self, folder: str, threads: int, requests: int, kv_tokens: int) -> dict[str, Any]:
        geometry = resolve_model(folder).config.geometry("float32")
        weights = sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))
        # A tenth more weights for padding, and a block of up to 64 tokens begun but not filled for each request.
        need = weights * 11 // 10 + (kv_tokens + 64 * requests) * geometry.kv_bytes_per_token + _SLACK_BYTES
        config = EngineConfig(
            model=folder, dtype="float32", instances=(1,), device_memory=need, threads=threads, start_timeout=180.0
        )
        self.engine = Engine(config.with_(max_seqs=max(config.max_seqs, requests)))
        self.engine.start()
        return {"device_memory_bytes": need}

    def prepare(self, prompts: list[list[int]], outputs: list[int]) -> dict[str, Any]:
        self.run(prompts[:4], [min(8, n) for n in outputs[:4]], {})
        config = self.engine.config
        return {"max_batch_tokens": config.max_batch_tokens, "max_seqs": config.max_seqs, "layout": config.layout}

    def run(self, prompts: list[list[int]], outputs: list[int], settings: dict[str, Any]) -> dict[str, Any]:
        requests = [
            Request(f"r{i}", tuple(prompt), SamplingParams(max_tokens=n, ignore_eos=True))
            for i, (prompt, n) in enumerate(zip(prompts, outputs, strict=True))
        ]
        before = self._counters()
        started = time.perf_counter()
        done = {output.request_id: output for output in self.engine.generate(requests)}
        wall_s = time.perf_counter() - started
        steps, busy_s, compute_s, preemptions = (b - a for a, b in zip(before, self._counters(), strict=True))
        for output in done.values():
            if output.error:
                raise RuntimeError(f"request {output.request_id}: {output.error}")
        return {
            "wall_s": wall_s,
            "tokens": [done[request.request_id].token_ids for request in requests],
            "steps": steps,
            "controller_overhead_per_step_s": busy_s / max(1, steps),
            "worker_share_of_wall": compute_s / wall_s,
            "preemptions": preemptions,
        }

    def close(self) -> dict[str, Any]:
        peaks = [peak_rss_bytes(worker.pid) for worker in self.engine.workers]
        self.engine.close()
        return {"peak_rss_bytes": max((p for p in peaks if p), default=None), "controller_rss_bytes": peak_rss_bytes()}

    def _counters(self) -> tuple[int, float, float, int]:
        """Steps, controller seconds, worker seconds, preemptions so far."""
        status = self.engine.status()[0]
        busy_s = self.engine.controller_overhead_s() * max(1, status.steps)
        return status.steps, busy_s, self.engine.instances[0].compute_s, status.preemptions

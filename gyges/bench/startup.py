"""From constructing an engine to the first token of its first request. Runs in a child process."""

from __future__ import annotations

import queue
import time
from typing import Any

from gyges.bench.child import peak_rss_bytes
from gyges.config import EngineConfig
from gyges.core import Request, RequestOutput, SamplingParams
from gyges.engine.engine import Engine
from gyges.errors import EngineError

_FIRST_TOKEN_TIMEOUT_S = 60.0


class Startup:
    def measure(self, model: str, instances: list[int]) -> dict[str, Any]:
        """``first_token_s`` and, of it, ``ready_s`` until all workers had their weights; peak RSS of each worker, bytes."""
        news: queue.SimpleQueue[RequestOutput] = queue.SimpleQueue()
        started = time.perf_counter()
        with Engine(EngineConfig(model=model, instances=tuple(instances))) as engine:
            ready_s = time.perf_counter() - started
            engine.submit(
                Request("first", tuple(range(2, 18)), SamplingParams(max_tokens=1, ignore_eos=True)), news.put
            )
            try:
                output = news.get(timeout=_FIRST_TOKEN_TIMEOUT_S)
            except queue.Empty:
                raise EngineError(f"no token within {_FIRST_TOKEN_TIMEOUT_S:.0f} s") from None
            first_token_s = time.perf_counter() - started
            if not output.token_ids:
                raise EngineError(output.error or "the first request ended without a token")
            peaks = [peak_rss_bytes(worker.pid) for worker in engine.workers]
        return {"first_token_s": first_token_s, "ready_s": ready_s, "worker_peak_rss_bytes": peaks}

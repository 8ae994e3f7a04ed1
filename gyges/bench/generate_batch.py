"""`transformers` continuous batching as a peer: see peers.py for the contract.

``model.generate_batch`` gives one ``max_new_tokens`` to all requests, so this uses what it wraps: the same manager, with
a limit for each request. Its set-up (the KV cache is allocated anew for every session) is not timed.
"""

from __future__ import annotations

import time
from typing import Any

from gyges.bench.child import peak_rss_bytes
from gyges.bench.generate import open_model

_SILENCE_S = 300.0  # longest wait for any next result


class GenerateBatch:
    model: Any
    kv_tokens: int

    def load(self, folder: str, threads: int, requests: int, kv_tokens: int) -> dict[str, Any]:
        self.model = open_model(folder, threads)
        self.kv_tokens = kv_tokens + 64 * requests
        return {}

    def prepare(self, prompts: list[list[int]], outputs: list[int]) -> dict[str, Any]:
        page = 32
        blocks = -(-self.kv_tokens // page)
        settings = {"page_size": page, "num_blocks": blocks, "max_batch_tokens": 512}
        self.run(prompts[:4], [min(4, n) for n in outputs[:4]], settings)
        return settings

    def run(self, prompts: list[list[int]], outputs: list[int], settings: dict[str, Any]) -> dict[str, Any]:
        from transformers import GenerationConfig
        from transformers.generation import ContinuousBatchingConfig

        session = self.model.continuous_batching_context_manager(
            generation_config=GenerationConfig(
                max_new_tokens=max(outputs), do_sample=False, eos_token_id=-1, pad_token_id=0
            ),
            continuous_batching_config=ContinuousBatchingConfig(**settings),
            timeout=30,
        )
        results: dict[str, Any] = {}
        with session as manager:
            started = time.perf_counter()
            for i, (prompt, count) in enumerate(zip(prompts, outputs, strict=True)):
                manager.add_request(prompt, request_id=f"r{i}", max_new_tokens=count, eos_token_id=-1)
            heard = started
            while len(results) < len(prompts):
                result = manager.get_result(timeout=1)
                if result is not None and result.is_finished():
                    if result.error:
                        raise RuntimeError(f"request {result.request_id}: {result.error}")
                    results[result.request_id] = result
                    heard = time.perf_counter()
                elif not manager.is_running():
                    raise RuntimeError(f"the generation thread ended: {manager.background_thread_status.fatal_error}")
                elif time.perf_counter() - heard > _SILENCE_S:
                    raise TimeoutError(f"no result for {_SILENCE_S:.0f} s")
            wall_s = time.perf_counter() - started
        return {"wall_s": wall_s, "tokens": [results[f"r{i}"].generated_tokens for i in range(len(prompts))]}

    def close(self) -> dict[str, Any]:
        return {"peak_rss_bytes": peak_rss_bytes()}

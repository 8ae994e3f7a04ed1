"""`transformers` `generate` in padded batches as a peer: see peers.py for the contract.

Used as someone who knows it would: requests sorted by prompt length (known beforehand; output lengths are not), padded on
the left, no gradients, sdpa attention, a static KV cache (the default one grows by copying: up to twice as long a step),
the batch size that a short trial found faster. ``generate`` ends a batch as a whole, so each one runs to the longest
output among its requests, and the tokens beyond a request's own length are thrown away and not counted.
"""

from __future__ import annotations

import time
from typing import Any

from gyges.bench.child import peak_rss_bytes

BATCH_SIZES = (16, 64)
_TRIAL_PART = 4  # a trial serves every request with this fraction of its prompt and of its output


def open_model(folder: str, threads: int) -> Any:
    """The causal LM in ``folder`` in fp32 with sdpa attention, on ``threads`` threads, with no end of sequence."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    # generate() falls back to the model's own ids wherever the configuration that it is given has None.
    model.generation_config.eos_token_id = None
    model.config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


class Generate:
    model: Any

    def load(self, folder: str, threads: int, requests: int, kv_tokens: int) -> dict[str, Any]:
        self.model = open_model(folder, threads)
        return {}

    def prepare(self, prompts: list[list[int]], outputs: list[int]) -> dict[str, Any]:
        shorter = [prompt[: max(1, len(prompt) // _TRIAL_PART)] for prompt in prompts]
        fewer = [max(1, n // _TRIAL_PART) for n in outputs]
        self._serve(prompts[:4], [2] * len(prompts[:4]), 4)  # the very first call is slow
        trials: dict[int, float] = {}
        for size in sorted({min(size, len(prompts)) for size in BATCH_SIZES}):
            started = time.perf_counter()
            self._serve(shorter, fewer, size)
            trials[size] = time.perf_counter() - started
        return {
            "batch_size": min(trials, key=lambda size: trials[size]),
            "trial_s": {str(size): s for size, s in trials.items()},
        }

    def run(self, prompts: list[list[int]], outputs: list[int], settings: dict[str, Any]) -> dict[str, Any]:
        started = time.perf_counter()
        tokens, steps = self._serve(prompts, outputs, settings["batch_size"])
        return {"wall_s": time.perf_counter() - started, "tokens": tokens, "steps": steps}

    def close(self) -> dict[str, Any]:
        return {"peak_rss_bytes": peak_rss_bytes()}

    def _serve(self, prompts: list[list[int]], outputs: list[int], batch_size: int) -> tuple[list[list[int]], int]:
        import torch
        from transformers import GenerationConfig

        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        tokens: list[list[int]] = [[] for _ in prompts]
        steps = 0
        for first in range(0, len(order), batch_size):
            batch = order[first : first + batch_size]
            width, longest = max(len(prompts[i]) for i in batch), max(outputs[i] for i in batch)
            ids = torch.zeros(len(batch), width, dtype=torch.int64)
            mask = torch.zeros_like(ids)
            for row, i in enumerate(batch):
                ids[row, width - len(prompts[i]) :] = torch.tensor(prompts[i])
                mask[row, width - len(prompts[i]) :] = 1
            settings = GenerationConfig(
                max_new_tokens=longest,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
                cache_implementation="static",
            )
            out = self.model.generate(ids, attention_mask=mask, generation_config=settings)
            steps += longest
            for row, i in enumerate(batch):
                tokens[i] = out[row, width : width + outputs[i]].tolist()
        return tokens, steps

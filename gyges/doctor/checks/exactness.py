"""Tokens through merges and splits against ``transformers``: every layout, padding on in one and off in the next, both overlaps.

A difference is excused only where transformers itself finds the two tokens closer than rounding (DESIGN.md, section 6).
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gyges.config import EngineConfig
from gyges.core import Request, RequestOutput, SamplingParams
from gyges.engine.engine import Engine
from gyges.errors import EngineError

_PRESET, _WORKERS, _WAIT_S = "tiny", 4, 60.0
_LENGTHS, _OUTPUTS = (3, 40, 17, 90, 150, 8), (40, 30, 36, 24, 20, 44)
_ROUNDING = 1e-4  # of a logit, fp32
_DEVICE_BYTES = {"cpu": 24 << 20, "cuda": 256 << 20}  # a GPU's pages are 2 MiB
_GPU_LAYOUTS = ("shard-pages", "token-first")  # starting four processes on a GPU takes long


def through_transformations() -> dict[str, Any]:
    """Figures: merges and splits carried out, tokens compared, differences excused."""
    from gyges.kv_cache.layouts import LAYOUTS

    return _exactness("cpu", LAYOUTS.names())


def on_gpu() -> dict[str, Any]:
    """The same with four workers on the GPUs there are, one is enough. Not yet run on hardware."""
    return _exactness("cuda", _GPU_LAYOUTS)


def engine_config(device: str, model: str, layout: str, *, padding: bool) -> EngineConfig:
    return EngineConfig(
        model=model, dtype="float32", device=device, instances=(1,) * _WORKERS, tp_degrees=(1, 2, 4), layout=layout,
        padding=padding, device_memory=_DEVICE_BYTES[device], max_batch_tokens=64, threads=1,
    )  # fmt: skip


def _exactness(device: str, layouts: Sequence[str]) -> dict[str, Any]:
    from gyges.models.hub import resolve_model
    from gyges.models.source import save_checkpoint

    figures = {"transformations": 0, "tokens": 0, "excused": 0}
    with tempfile.TemporaryDirectory(prefix="gyges-doctor-") as folder:
        model = resolve_model(_PRESET)
        save_checkpoint(model.source_spec.open(model.config), model.hf_config, folder)
        prompts = [[(17 * i + 7 * j * j + j) % 1000 + 3 for j in range(n)] for i, n in enumerate(_LENGTHS)]
        twin = _Twin(folder)
        wanted = [twin.generate(prompt, count) for prompt, count in zip(prompts, _OUTPUTS, strict=True)]
        for index, layout in enumerate(layouts):
            padding = index % 2 == 0
            got, carried_out = _serve(engine_config(device, folder, layout, padding=padding), prompts)
            figures["transformations"] += carried_out
            where = f"{layout}, padding {'on' if padding else 'off'}"
            for prompt, ours, theirs in zip(prompts, got, wanted, strict=True):
                figures["tokens"] += len(theirs)
                figures["excused"] += twin.compare(prompt, ours, theirs, where)
    changes, tokens = figures["transformations"], figures["tokens"]
    return {"figures": figures, "summary": f"{tokens} tokens equal through {changes} merges and splits"}


def _serve(config: EngineConfig, prompts: Sequence[Sequence[int]]) -> tuple[list[list[int]], int]:
    """Tokens of each prompt, served while the instances merge and split; and how often they did."""
    everyone = range(_WORKERS)
    with Engine(config) as engine:
        running = _Running(engine, prompts)
        carried_out = 0
        for index, (tokens, overlap) in enumerate(((12, True), (60, False))):
            running.wait_for(tokens + 60 * index)
            engine.merge(everyone, overlap=overlap).result(_WAIT_S)
            running.wait_for(tokens + 60 * index + 30)
            engine.split(everyone, (2, 1, 1) if overlap else (1,) * _WORKERS, overlap=overlap).result(_WAIT_S)
            carried_out += 2
        got = running.finish()
        if engine.failure is not None:
            raise EngineError(f"the engine failed: {engine.failure}")
    return got, carried_out


class _Running:
    """Requests that an engine serves; every wait has an end."""

    def __init__(self, engine: Engine, prompts: Sequence[Sequence[int]]) -> None:
        self._changed = threading.Condition()
        self._tokens: dict[str, list[int]] = {f"r{i}": [] for i in range(len(prompts))}
        self._ended: dict[str, RequestOutput] = {}
        for name, prompt, count in zip(self._tokens, prompts, _OUTPUTS, strict=True):
            engine.submit(
                Request(name, tuple(prompt), SamplingParams(max_tokens=count, ignore_eos=True)), self._deliver
            )

    def _deliver(self, output: RequestOutput) -> None:
        with self._changed:
            self._tokens[output.request_id] += output.token_ids
            if output.finished:
                self._ended[output.request_id] = output
            self._changed.notify_all()

    def wait_for(self, tokens: int) -> None:
        """Until so many have come in all, or all have."""
        self._wait(lambda: sum(map(len, self._tokens.values())) >= tokens or len(self._ended) == len(self._tokens))

    def finish(self) -> list[list[int]]:
        self._wait(lambda: len(self._ended) == len(self._tokens))
        for name, end in self._ended.items():
            if end.finish_reason != "length":
                raise EngineError(f"request {name} ended with {end.finish_reason}: {end.error}")
        return list(self._tokens.values())

    def _wait(self, condition: Any) -> None:
        with self._changed:
            if not self._changed.wait_for(condition, _WAIT_S):
                raise EngineError(f"no progress within {_WAIT_S:.0f} s")


class _Twin:
    """transformers on the same checkpoint, fp32, eager attention, one request at a time."""

    def __init__(self, folder: str | Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.set_verbosity_error()
        torch.set_num_threads(1)  # so small a model is faster alone, and far faster beside anything else
        self.torch = torch
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self.model.generation_config.eos_token_id = self.model.config.eos_token_id = None

    def generate(self, prompt: Sequence[int], count: int) -> list[int]:
        ids = self.torch.tensor([list(prompt)])
        with self.torch.no_grad():
            out = self.model.generate(
                ids, attention_mask=self.torch.ones_like(ids), max_new_tokens=count, do_sample=False, pad_token_id=0
            )
        return list(out[0, len(prompt) :].tolist())

    def compare(self, prompt: Sequence[int], ours: Sequence[int], theirs: Sequence[int], where: str) -> int:
        """1 where they part at a near tie, else 0; after it nothing can be compared. Raises AssertionError otherwise."""
        assert len(ours) == len(theirs), f"{where}: {len(ours)} tokens, transformers has {len(theirs)}"
        for at, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            if a != b:
                gap = self._gap([*prompt, *theirs[:at]], a, b)
                assert gap < _ROUNDING, f"{where}: token {at} is {a}, transformers says {b} (logits {gap:.1e} apart)"
                return 1
        return 0

    def _gap(self, tokens: Sequence[int], a: int, b: int) -> float:
        with self.torch.no_grad():
            logits = self.model(self.torch.tensor([list(tokens)])).logits[0, -1]
        return float((logits[a] - logits[b]).abs())

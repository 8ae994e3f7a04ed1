"""The engine's own runner and decoder with a stopwatch around each operator. The arithmetic is theirs, to the last line.

Every moment of a step belongs to exactly one operator, the innermost that is open, so the operators of a step add up to it:

    layernorm        norms before attention and FFN, and the residual additions        2 a layer
    qkv_proj, o_proj, gate_up_proj, act_fn, down_proj, qk_norm                           1 a layer
    rotary_emb       rotation, KV write, and what attention does between its parts       1 a layer
    attention        decode kernel, prefill chunks                                       1 a layer
    all_reduce       waiting for the slowest rank included                               2 a layer
    embedding, lm_head (the last norm and the gathering of columns included), sampler
    step             all else: the batch's arrays, block tables, pages that are mapped, books

This patches functions of the engine's modules, for the process that it is called in alone.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

from gyges.engine import runner as runner_module
from gyges.engine.runner import ModelRunner
from gyges.models import decoder as decoder_module
from gyges.models.decoder import Decoder
from gyges.parallel.comm import Comm


class Stopwatch:
    """Seconds by operator, each without what was opened inside of it, and without the stopwatch's own time.

    Opening and closing costs about as much inside as outside, so each side gives half of it back.
    """

    def __init__(self) -> None:
        self._cost_s = 0.0
        self.spent: defaultdict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = 0.0

    @property
    def inside(self) -> str:
        return self._open[-1] if self._open else ""

    def enter(self, name: str) -> None:
        self._tick()
        self._open.append(name)

    def leave(self) -> None:
        self._tick()
        self.spent[self._open.pop()] -= self._cost_s / 2
        if self._open:
            self.spent[self._open[-1]] -= self._cost_s / 2

    def turn_into(self, name: str) -> None:
        """What is open is called something else from now on."""
        self._tick()
        self._open[-1] = name

    def take(self) -> dict[str, float]:
        spent, self.spent = dict(self.spent), defaultdict(float)
        return spent

    def _tick(self) -> None:
        now = time.perf_counter()
        if self._open:
            self.spent[self._open[-1]] += now - self._since
        self._since = now

    def calibrate(self, calls: int = 2000) -> None:
        """Measures what opening and closing costs."""
        empty = self.around("empty", lambda: None)
        began = time.perf_counter()
        for _ in range(calls):
            empty()
        self._cost_s = (time.perf_counter() - began) / calls
        self.take()

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            self.enter(name)
            try:
                return function(*args, **kwargs)
            finally:
                self.leave()

        return timed


class _Module:
    """A module, some of whose functions are replaced."""

    def __init__(self, module: Any, **replaced: Callable[..., Any]) -> None:
        self._module = module
        self.__dict__.update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class _TimedComm:
    def __init__(self, comm: Comm, watch: Stopwatch) -> None:
        self.rank, self.size, self.barrier = comm.rank, comm.size, comm.barrier
        self.all_reduce = watch.around("all_reduce", comm.all_reduce) if comm.size > 1 else comm.all_reduce
        self.gather_columns = watch.around("lm_head", comm.gather_columns)


class _TimedDecoder(Decoder):
    watch: Stopwatch
    _projections = 0
    _last_norm: torch.Tensor | None = None

    def forward(self, weights: Any, batch: Any, layout: Any, comm: Any) -> torch.Tensor | None:
        self._last_norm = weights.norm
        self.watch.enter("layernorm")
        try:
            return super().forward(weights, batch, layout, comm)
        finally:
            self.watch.leave()

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if weight is self._last_norm:
            self.watch.turn_into("lm_head")  # nothing but the LM head follows
            return super()._norm(x, weight)
        if self.watch.inside != "rotary_emb":
            return super()._norm(x, weight)
        self.watch.enter("qk_norm")
        out = super()._norm(x, weight)
        self.watch.leave()
        return out

    def _attention(self, *args: Any) -> torch.Tensor:
        self._projections = 0
        self.watch.enter("rotary_emb")
        out = super()._attention(*args)
        self.watch.leave()
        return out

    def _ffn(self, *args: Any) -> torch.Tensor:
        self.watch.enter("gate_up_proj")
        out = super()._ffn(*args)
        self.watch.leave()
        return out

    def project(self, original: Callable[..., Any], *args: Any) -> Any:
        """q and k/v, then o; outside of attention the LM head."""
        if self.watch.inside != "rotary_emb":
            return original(*args)
        self._projections += 1
        self.watch.enter("qkv_proj" if self._projections <= 2 else "o_proj")
        out = original(*args)
        self.watch.leave()
        return out


def instrument(runner: ModelRunner) -> Stopwatch:
    """From now on every step of ``runner`` is timed by operator. Once per process."""
    watch = Stopwatch()
    watch.calibrate()
    decoder = runner.decoder
    decoder.__class__ = _TimedDecoder
    assert isinstance(decoder, _TimedDecoder)
    decoder.watch = watch
    runner.comm = _TimedComm(runner.comm, watch)

    patched: Any = decoder_module
    project, functional = patched.project, patched.F

    def silu(x: torch.Tensor) -> torch.Tensor:
        watch.enter("act_fn")
        out: torch.Tensor = functional.silu(x)
        watch.leave()
        watch.turn_into("down_proj")
        return out

    patched.project = lambda *args: decoder.project(project, *args)
    patched.F = _Module(functional, embedding=watch.around("embedding", functional.embedding), silu=silu)
    for name in ("decode_attention", "prefill_attention"):
        setattr(decoder.kernels, name, watch.around("attention", getattr(decoder.kernels, name)))
    other: Any = runner_module
    other.sample = watch.around("sampler", other.sample)
    return watch

"""What the neighbours' papers report, beside what this harness gives in a setting as near to theirs as it can name.

Nothing here is fitted: the systems have the constants of their modules and of the hardware files. ``why`` says where a deviation
comes from. Reports without a setting that could be built here are in docs/neighbours.md only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gyges.scheduling.batching import BatchLimits
from gyges.scheduling.specification import layout_of, make_policy
from gyges.sim.cost.base import StepShape
from gyges.sim.hardware import load_hardware
from gyges.sim.models import sim_model
from gyges.sim.simulator import SimRequest, SimResult, Simulator
from gyges.sim.survey import survey
from gyges.sim.system import System, SystemSpec, make_system

_LIMITS = BatchLimits(max_batch_tokens=8192, max_seqs=256, block_size=16)


@dataclass(frozen=True, slots=True)
class Comparison:
    """system: its name here.   what: the figure.   setting: ours.   paper: as reported.   here: computes ours, with its unit.
    simulated: from whole runs, a second or so; else by arithmetic."""

    system: str
    what: str
    setting: str
    paper: str
    here: Callable[[], str]
    why: str
    simulated: bool


COMPARISONS: list[Comparison] = []


def _compares(
    system: str, what: str, setting: str, paper: str, why: str, *, simulated: bool = False
) -> Callable[[Callable[[], str]], Callable[[], str]]:
    def enter(here: Callable[[], str]) -> Callable[[], str]:
        COMPARISONS.append(Comparison(system, what, setting, paper, here, why, simulated))
        return here

    return enter


def compare() -> list[dict[str, str]]:
    """Every comparison, computed: some ten seconds in all."""
    fields = ("system", "what", "setting", "paper", "why")
    return [{**{name: getattr(each, name) for name in fields}, "here": each.here()} for each in COMPARISONS]


# -- settings ---------------------------------------------------------------------------------------------------------------


def _spec(model: str, hardware: str, devices: int, **changes: Any) -> SystemSpec:
    """``changes``: of the hardware's transformation costs."""
    device = load_hardware(hardware)[0]
    device = replace(device, transform=replace(device.transform, **changes)) if changes else device
    return SystemSpec(sim_model(model), device, devices)


def _run(system: System, requests: Sequence[SimRequest], devices: int, policy: str = "") -> SimResult:
    chosen = make_policy(policy or system.policy)
    degrees = layout_of(chosen, devices) or (system.degrees[0],) * (devices // system.degrees[0])
    return Simulator.of(system, degrees, _LIMITS, chosen).run(requests, sample_s=1e9)


def _arrivals(rate: float, seconds: float, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    times = np.cumsum(random.exponential(1 / rate, int(2 * rate * seconds) + 20))
    return times[times < seconds]


def _requests(times: np.ndarray, prompts: np.ndarray | int, outputs: np.ndarray | int) -> list[SimRequest]:
    prompts, outputs = np.broadcast_to(prompts, times.shape), np.broadcast_to(outputs, times.shape)
    return [SimRequest(float(t), int(p), int(n)) for t, p, n in zip(times, prompts, outputs, strict=True)]


def _ttft(result: SimResult) -> np.ndarray:
    """Seconds [requests]; infinite for those that did not end."""
    return np.array([r.token_times[0] - r.scheduled_s if r.status == "completed" else np.inf for r in result.records])


def _lognormal(mean: float, sigma: float, count: int, seed: int, most: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).lognormal(np.log(mean) - sigma**2 / 2, sigma, count)
    return np.clip(drawn, 1, most).astype(int)


# -- KunServe ---------------------------------------------------------------------------------------------------------------


@_compares(
    "kunserve",
    "KV cache exchanged after a drop",
    "Qwen2.5-14B, 2 A800 80 GB, 200 Gbit/s, 90 % full",
    "1-2 s",
    "the rate of the wire, both directions at once; their chunks give way to activations",
)
def _kunserve_exchange() -> str:
    system = make_system("kunserve", _spec("Qwen/Qwen2.5-14B", "a100-80g", 2, copy_bytes_per_s=25e9))
    switch = survey(system).merge
    assert switch is not None
    return f"{switch.parts['kv']:.2f} s"


@_compares(
    "kunserve",
    "throughput of two pipeline stages against two instances",
    "Qwen2.5-14B, A800: 2 x 64 decodes of 900 tokens and two chunks of 512",
    "-3.3 % to -21.8 % (vLLM)",
    "equal microbatches have no bubbles (first figure); drained after each step with a prompt they have the most (second)",
)
def _kunserve_bubbles() -> str:
    losses = []
    for text in ("kunserve", "kunserve+flush=on"):
        system = make_system(text, _spec("Qwen/Qwen2.5-14B", "a100-80g", 2))
        alone, both = (
            system.costs[d].step_s(StepShape(64 * d, 64 * d * 900, 900, ((512, 0),) * d, 65 * d)) for d in (1, 2)
        )
        losses.append(f"{100 * (alone / both - 1):+.1f} %")
    return ", ".join(losses)


@_compares(
    "kunserve",
    "p99 TTFT of instances that stay as they are, over KunServe's",
    "Qwen2.5-14B, 8 A800, 5,900 + 499 tokens on average (LongBench), 4/s with 40 s of a burst of 6 to 10/s",
    "12.7 to 72.2 times",
    "here prompts that wait for memory soon wait for arithmetic as well, which a pipeline has no more of",
    simulated=True,
)
def _kunserve_tail() -> str:
    spec = _spec("Qwen/Qwen2.5-14B", "a100-80g", 8)
    gains = []
    for burst in (6, 7, 8, 9, 10):
        times = np.concatenate([40 * i + _arrivals(rate, 40, i) for i, rate in enumerate((4, burst, 4))])
        requests = _requests(
            times, _lognormal(5900, 1.0, len(times), 5, 30_000), _lognormal(499, 0.8, len(times), 6, 4000)
        )
        static = _run(make_system("fixed", spec), requests, 8)
        dropped = _run(make_system("kunserve", spec), requests, 8)
        gains.append(float(np.quantile(_ttft(static), 0.99) / np.quantile(_ttft(dropped), 0.99)))
    return f"{min(gains):.1f} to {max(gains):.1f} times"


# -- LoongServe -------------------------------------------------------------------------------------------------------------


@_compares(
    "loongserve",
    "throughput against TP8 with chunked prefill",
    "Llama-2-7B, 8 A800, prompts of 300 to 200,000 tokens at once",
    "up to 3.85 times",
    "at saturation, where attention of the longest prompts decides and costs both the same; theirs is the highest rate within a "
    "latency bound, and keeps decodes away from prompts, which share a step here",
    simulated=True,
)
def _loongserve_throughput() -> str:
    prompts = np.tile([300, 300, 1000, 5000, 20_000, 60_000, 200_000], 12)
    requests = _requests(np.zeros(len(prompts)), prompts, 128)
    spec = _spec("meta-llama/Llama-2-7b-hf", "a100-80g", 8)
    elastic = _run(make_system("loongserve", spec), requests, 8)
    whole = _run(make_system("fixed", spec), requests, 8, "static:tp8")
    return f"{whole.end_s / elastic.end_s:.2f} times"


@_compares(
    "loongserve",
    "throughput of 4 devices as one pipeline, one pipeline that drains, one ring, against 4 instances",
    "Qwen2.5-32B, 4 H20, 400 requests of 1,000 + 100 tokens at once",
    "-43.5 % for dynamic PP and SP (Gyges paper)",
    "a pipeline without bubbles and a ring lose overheads alone and batch more at once; bubbles cost what the paper finds",
    simulated=True,
)
def _groups_against_instances() -> str:
    requests, spec = _requests(np.zeros(400), 1000, 100), _spec("Qwen/Qwen2.5-32B", "h20", 4)
    apart = _run(make_system("fixed", spec), requests, 4, "static:tp1")
    grouped = [
        _run(make_system(name, spec), requests, 4, "static:tp4")
        for name in ("kunserve", "kunserve+flush=on", "loongserve")
    ]
    return ", ".join(f"{100 * (apart.end_s / each.end_s - 1):+.1f} %" for each in grouped)


# -- Seesaw -----------------------------------------------------------------------------------------------------------------


@_compares(
    "seesaw",
    "Gyges in one step against Seesaw's re-sharding",
    "Qwen2.5-32B, 4 H20, TP1 to TP4, 90 % full, no overlap; PCIe 5.0, and the 16 GB/s of Seesaw's paper",
    "-97.2 % (Gyges paper)",
    "bytes over the host link against bytes over NVLink, weights reloaded against given up; so it goes with the host link",
)
def _seesaw_cost() -> str:
    saved = []
    for changes in ({}, {"host_bytes_per_s": 16e9}):
        spec = _spec("Qwen/Qwen2.5-32B", "h20", 4, **changes)
        seesaw, own = make_system("seesaw", spec), make_system("gyges+overlap=off", spec)
        held = [int(0.9 * min(seesaw.kv_tokens[1], own.kv_tokens[1]))] * 4
        prices = [each.switch((1,) * 4, (4,), held).total_s for each in (own, seesaw)]
        saved.append(f"{100 * (prices[0] / prices[1] - 1):.1f} %")
    return ", ".join(saved)


# -- Shift Parallelism ------------------------------------------------------------------------------------------------------


@_compares(
    "shift",
    "throughput against TP8",
    "Llama-3.3-70B, 8 H200, 400 requests of 4,096 + 256 tokens at once",
    "1.5 times",
    "all-reduces of long steps are what it saves; on NVLink at full rate they are a smaller part",
    simulated=True,
)
def _shift_throughput() -> str:
    requests = _requests(np.zeros(400), 4096, 256)
    spec = _spec("meta-llama/Llama-3.3-70B-Instruct", "h200", 8)
    shift = _run(make_system("shift", spec), requests, 8)
    whole = _run(make_system("fixed", spec), requests, 8, "static:tp8")
    return f"{whole.end_s / shift.end_s:.2f} times"


@_compares(
    "shift",
    "mean TTFT of TP8 over that of Shift Parallelism",
    "the same, 3 requests/s for 120 s",
    "1.51 times (response)",
    "as above",
    simulated=True,
)
def _shift_response() -> str:
    requests = _requests(_arrivals(3, 120, 1), 4096, 256)
    spec = _spec("meta-llama/Llama-3.3-70B-Instruct", "h200", 8)
    shift = _run(make_system("shift", spec), requests, 8)
    whole = _run(make_system("fixed", spec), requests, 8, "static:tp8")
    return f"{_ttft(whole).mean() / _ttft(shift).mean():.2f} times"


# -- Flying Serving ---------------------------------------------------------------------------------------------------------


@_compares(
    "flying",
    "longest context, 8 devices over 2",
    "Llama-3-70B, 8 H200, whole weights of a TP2 instance on every pair",
    "264K to 1.9M, 7.2 times",
    "4 times the devices with whole weights have 4 times the room; 7.2 needs weights given up",
)
def _flying_context() -> str:
    room = make_system("flying", replace(_spec("meta-llama/Meta-Llama-3-70B", "h200", 8), degrees=(2, 4, 8))).kv_tokens
    return f"{room[2] / 1000:.0f}K to {room[8] / 1e6:.2f}M, {room[8] / room[2]:.1f} times"


@_compares(
    "flying",
    "mean TTFT of two TP2 over that of Flying Serving",
    "Llama-3-70B, 4 H200, 4,096 + 256 tokens, 1 request/s for 200 s",
    "2.1 times (README of its code)",
    "a prompt alone takes TP4 1.7 times less time; what is beyond that is queueing, which begins earlier without CUDA graphs",
    simulated=True,
)
def _flying_calm() -> str:
    requests = _requests(_arrivals(1, 200, 1), 4096, 256)
    spec = replace(_spec("meta-llama/Meta-Llama-3-70B", "h200", 4), degrees=(2, 4))
    flying = _run(make_system("flying", spec), requests, 4)
    apart = _run(make_system("fixed", spec), requests, 4, "static:tp2")
    return f"{_ttft(apart).mean() / _ttft(flying).mean():.2f} times"


@_compares(
    "flying",
    "throughput against two TP2",
    "the same, 400 requests at once",
    "-4 % (README of its code), 95-96 % (paper)",
    "it splits as soon as requests queue; what is lost is the prompts that a switch computes anew",
    simulated=True,
)
def _flying_busy() -> str:
    requests = _requests(np.zeros(400), 4096, 256)
    spec = replace(_spec("meta-llama/Meta-Llama-3-70B", "h200", 4), degrees=(2, 4))
    flying = _run(make_system("flying", spec), requests, 4)
    apart = _run(make_system("fixed", spec), requests, 4, "static:tp2")
    return f"{100 * (apart.end_s / flying.end_s - 1):+.1f} %"


# -- PipeLive, restart ------------------------------------------------------------------------------------------------------


@_compares(
    "pipelive",
    "pause of a change",
    "Qwen2.5-14B, 8 A800, 8 instances to one pipeline, 90 % full",
    "under 10 ms",
    "the last patch of KV cache and a rendezvous; theirs has a scheduler's round trips as well",
)
def _pipelive_pause() -> str:
    switch = survey(make_system("pipelive", _spec("Qwen/Qwen2.5-14B", "a100-80g", 8))).merge
    assert switch is not None
    return f"{1000 * switch.pause_s:.1f} ms"


@_compares(
    "restart",
    "from the last token to serving again",
    "Llama-3-70B, 8 H200, to TP8; warm, and cold (start=205)",
    "146-292 s (Flying Serving's paper), minutes (Gyges paper)",
    "weights from host memory; from disks they take longer",
)
def _restart() -> str:
    spec = _spec("meta-llama/Meta-Llama-3-70B", "h200", 8)
    times = [make_system(text, spec).restart((2,) * 4, (8,)).pause_s for text in ("restart", "restart+start=205")]
    return ", ".join(f"{each:.0f} s" for each in times)

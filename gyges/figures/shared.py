"""What several figures need: systems made by name, their switches, and replays."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from gyges.figures import paper
from gyges.metrics.summary import summarize
from gyges.scheduling.batching import BatchLimits
from gyges.scheduling.specification import make_policy
from gyges.sim.hardware import load_hardware
from gyges.sim.models import SimModel, sim_model
from gyges.sim.simulator import SimRequest, Simulator
from gyges.sim.system import Switch, System, SystemSpec, make_system

DEGREE = 4  # what TP1 instances are merged to where a figure is about one transformation
MERGE, SPLIT = ((1,) * DEGREE, (DEGREE,)), ((DEGREE,), (1,) * DEGREE)
FILL = 0.9  # of the KV cache of TP1 instances, as in the paper


@cache
def system_of(text: str, model: SimModel, hardware: str, devices: int = 8) -> System:
    """``text`` as in ``gyges sim run --system``."""
    return make_system(text, SystemSpec(model, load_hardware(hardware)[0], devices))


def gyges_switch(
    model: SimModel,
    hardware: str,
    before: tuple[int, ...],
    after: tuple[int, ...],
    *,
    fill: float = FILL,
    **options: str | bool | int,
) -> Switch:
    """One merge or split of the system ``gyges``. fill: of what TP1 instances hold, before or after.   options: of the system."""
    values = {name: ("on" if value else "off") if isinstance(value, bool) else value for name, value in options.items()}
    system = system_of("gyges" + "".join(f"+{name}={value}" for name, value in values.items()), model, hardware)
    return system.switch(before, after, held_tokens(system, before, fill))


def paper_fill() -> float:
    """FILL of the paper's room for KV cache (figure tp-tradeoff), as a share of ours: Qwen2.5-32B on H20."""
    hub, hardware = paper.MODELS["Qwen2.5-32B"]
    return FILL * paper.CONTEXT_TOKENS[1] / system_of("gyges", sim_model(hub), hardware).kv_tokens[1]


def held_tokens(system: System, before: tuple[int, ...], fill: float) -> list[int]:
    """Tokens of KV cache in each source instance: ``fill`` of what a TP1 instance holds, for each of its devices."""
    return [round(fill * degree * system.kv_tokens[1]) for degree in before]


def lost_s(switch: Switch) -> float:
    """Seconds of serving that a switch takes away: its pause, and what slows steps down beside it."""
    return switch.pause_s + (switch.ahead_s + switch.behind_s) * (1 - 1 / switch.slowdown)


def limits_of(system: System) -> BatchLimits:
    """vLLM's usual ones: 2,048 tokens and 256 sequences a step."""
    return BatchLimits(max_batch_tokens=2048, max_seqs=256, block_size=system.block_size)


def served_at_once(system: System, degrees: Sequence[int], *, prompt: int, output: int, requests: int) -> float:
    """Output tokens/s of equal requests that are all there at the beginning, by instances that keep their degrees."""
    simulator = Simulator.of(system, degrees, limits_of(system), make_policy("static"))
    result = simulator.run([SimRequest(0.0, prompt, output)] * requests)
    rate = summarize(result.records, simulated=True)["throughput"]["output_tokens_per_s"]
    assert rate is not None, "requests take time"
    return float(rate)

"""``fixed``: instances as vLLM has them. Nothing changes while they run; the host can be restarted with others."""

from __future__ import annotations

from gyges.sim.system import SYSTEMS, BaseSystem, SystemSpec
from gyges.sim.systems.sources import Source, described


@SYSTEMS.register("fixed")
@described(Source("vLLM", "2309.06180", "vllm-project/vllm", "instances stay as they are"))
def fixed(spec: SystemSpec) -> BaseSystem:
    """All weights are cut evenly over the devices of an instance; what memory they leave holds KV cache."""
    degrees = spec.fitting
    return BaseSystem(
        name="fixed",
        model=spec.model,
        hardware=spec.hardware,
        degrees=degrees,
        costs={degree: spec.cost_of(degree) for degree in degrees},
        kv_tokens={degree: spec.capacity(degree) for degree in degrees},
    )

"""Restart: what operators do where nothing can be transformed. All instances have one TP degree; for another one the host
drains, all processes end and new ones start.

    KV room, step    those of tensor parallelism
    change           pause: weights from host memory, and ``start`` seconds: processes, libraries, compilation, CUDA graphs

Assumptions, beside the figures of the hardware file:
- ``start`` is the hardware file's, a warm one; ``+start=205`` is a cold start of vLLM with Llama-70B at TP8: 60 s for checks
  of peer access, 15 s of bytecode, 70 s of compilation, 60 s of CUDA graphs (vllm-project/vllm issue 19824).
- Weights lie in host memory.
"""

from __future__ import annotations

from dataclasses import replace

from gyges.errors import UserError
from gyges.sim.system import SYSTEMS, BaseSystem, SystemSpec
from gyges.sim.systems.sources import Source, described


@SYSTEMS.register("restart")
@described(Source("Restart", "", "", "drain, stop, start with another TP degree"))
def restart(spec: SystemSpec, *, start: float = 0.0) -> BaseSystem:
    """See the module. ``start``: seconds but for the weights; 0: the hardware file's."""
    if start < 0:
        raise UserError(f"start is seconds, 0 or more; got {start:g}")
    hardware = spec.hardware
    if start:
        hardware = replace(hardware, transform=replace(hardware.transform, start_s=start))
    degrees = spec.fitting
    return BaseSystem(
        name="restart",
        model=spec.model,
        hardware=hardware,
        degrees=degrees,
        costs={d: spec.cost_of(d) for d in degrees},
        kv_tokens={d: spec.capacity(d) for d in degrees},
        policy="restart",
    )

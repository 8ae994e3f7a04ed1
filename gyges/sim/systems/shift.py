"""Shift Parallelism (Hidayetoglu et al., arXiv 2509.16495, ASPLOS 2026; code: snowflakedb/ArcticInference).

One instance over all devices. A step of many tokens computes in sequence parallelism (Ulysses) over groups of ``tp`` devices,
one of few tokens in tensor parallelism over all. The KV cache lies by heads in both, so nothing ever moves.

    KV room    a device's memory less W/tp (sequence parallelism) and W/d (tensor parallelism): both forms of the weights are
               kept
    step       more than ``threshold`` tokens: gyges.sim.cost.sequence.UlyssesCost; else those of TP
    change     none between steps

Assumptions, beside the figures of the hardware file:
- ``threshold`` is 256 tokens, as the paper and its documentation say (its code's default is 512).
- ``tp`` is the lowest degree whose both forms fit and leave a quarter of the memory for KV cache, where any does; its
  documentation only asks for one that fits.
- Requests wait in one line; there is one instance, policy ``static``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gyges.errors import UserError
from gyges.sim.cost.analytic import AnalyticCost
from gyges.sim.cost.base import CostModel, StepShape
from gyges.sim.cost.sequence import UlyssesCost
from gyges.sim.models import memory_budget
from gyges.sim.system import SYSTEMS, BaseSystem, SystemSpec
from gyges.sim.systems.exchange import analytic_cost
from gyges.sim.systems.sources import Source, described

_SHARE_FOR_KV = 0.25


@dataclass(frozen=True, slots=True)
class ShiftCost:
    """Implements :class:`gyges.sim.cost.base.CostModel`: ``many`` above ``threshold`` tokens a step, else ``few``."""

    few: AnalyticCost
    many: UlyssesCost
    threshold: int

    @property
    def degree(self) -> int:
        return self.few.degree

    def step_s(self, shape: StepShape) -> float:
        return self._of(shape.decodes + sum(chunk for chunk, _ in shape.prefills)).step_s(shape)

    def decode_steps_s(self, decodes: int, context: int, longest: int, steps: int) -> np.ndarray:
        return self._of(decodes).decode_steps_s(decodes, context, longest, steps)

    def _of(self, tokens: int) -> CostModel:
        return self.many if tokens > self.threshold else self.few


def _room(spec: SystemSpec, tp: int, degree: int) -> float:
    """Bytes of a device that are left for KV cache."""
    return memory_budget(spec.hardware) - spec.model.weight_bytes(tp) - spec.model.weight_bytes(degree)


def _groups(spec: SystemSpec, degree: int, tp: int) -> int:
    """TP degree of the sequence parallel form."""
    possible = [
        d for d in (1, *spec.fitting) if d < degree and degree % d == 0 and not spec.model.geometry.tp_degree_error(d)
    ]
    if tp:
        possible = [tp] if tp in possible else []
    for least in (_SHARE_FOR_KV * memory_budget(spec.hardware), spec.model.kv_bytes_per_token(degree)):
        for d in sorted(set(possible)):
            if _room(spec, d, degree) >= least:
                return d
    raise UserError(
        f"{spec.model.name} on {degree} {spec.hardware.name} has no room for the weights in both forms of Shift Parallelism"
        + (f" with tp={tp}" if tp else "")
        + "; give it more devices, or take another system"
    )


@SYSTEMS.register("shift")
@described(Source("Shift Parallelism", "2509.16495", "snowflakedb/ArcticInference", "SP or TP by the tokens of a step"))
def shift(spec: SystemSpec, *, threshold: float = 256.0, tp: float = 0) -> BaseSystem:
    """See the module. ``tp``: of the sequence parallel form; 0: chosen."""
    degree = spec.fitting[-1]
    if degree == 1:
        raise UserError(
            "Shift Parallelism serves with one instance of at least two devices: leave the scheduler to the system, or say how "
            "many with static:tp8 or --tp-degrees 8"
        )
    group = _groups(spec, degree, int(tp))
    few, member = (analytic_cost(spec, "shift", d) for d in (degree, group))
    if spec.kv_tokens is None:
        tokens = int(_room(spec, group, degree) // spec.model.kv_bytes_per_token(degree))
    else:
        tokens = spec.capacity(degree)
    return BaseSystem(
        name="shift",
        model=spec.model,
        hardware=spec.hardware,
        degrees=(degree,),
        costs={degree: ShiftCost(few, UlyssesCost(member, few), int(threshold))},
        kv_tokens={degree: tokens},
        policy=f"static:tp{degree}",
    )

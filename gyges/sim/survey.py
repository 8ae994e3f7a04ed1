"""What a system comes to on one host, in a handful of figures: room, step times, the price of one merge and of one split."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from gyges.sim.cost.base import StepShape
from gyges.sim.system import BaseSystem, Switch, System

_DECODE = StepShape(decodes=32, decode_context=32 * 1024, decode_longest=1024, sampled=32)
_PROMPT, _CHUNK = 8192, 2048
_FULL, _HALF = 0.9, 0.5


@dataclass(frozen=True, slots=True)
class Survey:
    """degrees: devices of an instance; kv_tokens, decode_s, prompt_s: by those.   decode_s: a step of 32 decodes of 1,024
    tokens. prompt_s: 8,192 tokens in chunks of 2,048.   merge: of narrow instances 90 % full into the widest one.   split:
    back, holding half of what the narrow ones hold. None where there is one degree only; a restart where the system can
    nothing else (``restarts``).
    """

    name: str
    policy: str
    degrees: tuple[int, ...]
    kv_tokens: dict[int, int]
    decode_s: dict[int, float]
    prompt_s: dict[int, float]
    merge: Switch | None
    split: Switch | None
    restarts: bool

    def as_dict(self) -> dict[str, object]:
        """For JSON: keys are strings."""
        found = asdict(self)
        for key in ("kv_tokens", "decode_s", "prompt_s"):
            found[key] = {str(degree): value for degree, value in found[key].items()}
        return found


def survey(system: System) -> Survey:
    """Raises UserError as the system's own methods do."""
    narrow, wide = system.degrees[0], system.degrees[-1]
    apart, together = (narrow,) * (wide // narrow), (wide,)
    restarts = isinstance(system, BaseSystem) and type(system).switch is BaseSystem.switch
    merge = split = None
    if wide > narrow and wide % narrow == 0:
        if restarts:
            merge, split = system.restart(apart, together), system.restart(together, apart)
        else:
            room = system.kv_tokens[narrow]
            merge = system.switch(apart, together, [int(_FULL * room)] * len(apart))
            split = system.switch(together, apart, [int(_HALF * room) * len(apart)])
    return Survey(
        system.name,
        system.policy,
        system.degrees,
        dict(system.kv_tokens),
        {degree: system.costs[degree].step_s(_DECODE) for degree in system.degrees},
        {degree: _prompt_s(system, degree) for degree in system.degrees},
        merge,
        split,
        restarts,
    )


def _prompt_s(system: System, degree: int) -> float:
    cost = system.costs[degree]
    starts = range(0, _PROMPT, _CHUNK)
    return sum(cost.step_s(StepShape(prefills=((_CHUNK, at),), sampled=int(at + _CHUNK == _PROMPT))) for at in starts)

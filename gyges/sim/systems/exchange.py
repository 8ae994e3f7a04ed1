"""What the neighbours share: which degrees they have, and how many bytes change places when groups of devices are made anew.

A group of d devices holds some state evenly, 1/d of it each: layers of a pipeline, heads, or tokens. Groups of d_i devices
become one of D, or one of D becomes several:

    merge   a device of group i keeps 1/D of the group's KV cache h_i, sends the rest of its h_i/d_i, receives 1/D of all
            others'
    split   requests are dealt by devices: a device of group j gets 1/d_j of its H d_j/D tokens, of which it has 1/D, and sends
            1/D of what others get; of the weights W, of which it has W/D, it lacks W/d_j - W/D

All devices copy at once, in both directions; the slowest one decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from gyges.errors import UserError
from gyges.sim.cost.analytic import AnalyticCost
from gyges.sim.system import SystemSpec


@dataclass(frozen=True, slots=True)
class Moved:
    """Bytes. ``worst``: what the busiest device sends or receives, whichever is more.   received: by one device, at most.
    total: between devices, all together."""

    worst: float = 0.0
    received: float = 0.0
    total: float = 0.0


def kv_exchange(before: tuple[int, ...], after: tuple[int, ...], held: Sequence[int], token_bytes: float) -> Moved:
    """``held``: tokens of KV cache of each source; ``token_bytes``: of one token, all layers and heads."""
    tokens, devices = sum(held), sum(before)
    if len(after) == 1:
        received = max((tokens - own) / devices for own in held)
        sent = max(own / d - own / devices for own, d in zip(held, before, strict=True))
        total = sum(own * (1 - d / devices) for own, d in zip(held, before, strict=True))
    else:
        own = [tokens * d / devices for d in after]
        received = max(mine / d - mine / devices for mine, d in zip(own, after, strict=True))
        sent = max((tokens - mine) / devices for mine in own)
        total = sum(mine * (1 - d / devices) for mine, d in zip(own, after, strict=True))
    return Moved(max(received, sent) * token_bytes, received * token_bytes, total * token_bytes)


def weights_to_gather(before: tuple[int, ...], after: tuple[int, ...], weight_bytes: float) -> Moved:
    """Of one copy of the weights, ``weight_bytes``; a merge only gives up what it has twice."""
    devices = sum(before)
    if len(after) == 1:
        return Moved()
    lacking = [weight_bytes * (1 / d - 1 / devices) for d in after]
    total = sum(d * each for d, each in zip(after, lacking, strict=True))
    # Every byte lies on one device: what all others lack is sent by all alike.
    return Moved(max(max(lacking), total / devices), max(lacking), total)


def check_switch(name: str, before: tuple[int, ...], after: tuple[int, ...], degrees: tuple[int, ...]) -> None:
    """Raises UserError for what is no merge and no split of the same devices, and for degrees that the system does not have."""
    if (len(before) == 1) == (len(after) == 1) or sum(before) != sum(after):
        raise UserError(f"{before} to {after} devices is neither a merge nor a split of the same devices")
    if missing := {*before, *after} - set(degrees):
        raise UserError(
            f"{name} has no instances of {min(missing)} devices here, only of {', '.join(map(str, degrees))}"
        )


@dataclass(frozen=True, slots=True)
class Groups:
    """Instances made of members. ``base``: TP degree of a member, which holds a copy of the weights.   degrees: devices,
    ascending."""

    spec: SystemSpec
    base: int
    degrees: tuple[int, ...]

    def rooms(self, room: Callable[[int], int]) -> dict[int, int]:
        """Tokens of KV cache by devices: ``room`` of so many, unless the user has said it degree by degree."""
        if isinstance(self.spec.kv_tokens, Mapping):
            return {degree: self.spec.capacity(degree) for degree in self.degrees}
        return {degree: room(degree) for degree in self.degrees}


def groups_of(spec: SystemSpec, tp: float = 0) -> Groups:
    """``tp``: of a member; 0: the lowest that holds the model. Raises UserError for instances that no members add up to."""
    base = int(tp) or replace(spec, degrees=()).fitting[0]
    spec.capacity(base)  # says why a member cannot be
    degrees = tuple(degree for degree in spec.fitting if degree % base == 0)
    if not degrees or (spec.degrees and len(degrees) < len(spec.fitting)):
        raise UserError(
            f"{spec.model.name} takes TP{base} on {spec.hardware.name} for a copy of its weights: instances have a multiple of "
            f"{base} devices, not {', '.join(map(str, spec.fitting))}"
        )
    return Groups(spec, base, degrees)


def analytic_cost(spec: SystemSpec, name: str, degree: int) -> AnalyticCost:
    """Pipelines and sequence parallelism are built from the parts of a roofline. UserError for another source of step times."""
    if spec.cost != "analytic":
        raise UserError(
            f"the step times of {name} are made of the parts of the cost source 'analytic'; {spec.cost!r} has only whole "
            "steps of tensor parallelism. Take --cost analytic"
        )
    return AnalyticCost(spec.model, spec.hardware, degree)

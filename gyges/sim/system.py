"""Ways of serving: what instances of d devices hold and cost, and what changing them takes. Torch-free.

The policies (gyges.scheduling) decide, the simulator carries out, a *system* says what it costs. An extension is one file in
gyges/sim/systems and one ``SYSTEMS.register``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from gyges.engine.placement import default_degrees
from gyges.errors import UserError
from gyges.registry import Registry
from gyges.scheduling.batching import BatchLimits
from gyges.scheduling.routing import RoutingPolicy
from gyges.scheduling.specification import arguments_of, parts_of
from gyges.sim.cost.base import CostModel, StepShape
from gyges.sim.cost.sources import CostSpec, cost_model
from gyges.sim.hardware import Hardware
from gyges.sim.models import SimModel, kv_capacity_tokens
from gyges.sim.sequence import Pace

# A step with both kinds of work, for rough prices: decodes of a thousand tokens, and five prompt tokens for each of them.
_MIXED = StepShape(decodes=16, decode_context=16 * 1024, decode_longest=1024, prefills=((80, 0),), sampled=16)
_MIXED_TOKENS = 96


@dataclass(frozen=True, slots=True)
class Switch:
    """One transformation. Seconds; bytes of all devices together unless named otherwise.

    ahead_s: goes on beside serving before the pause; the sources serve on meanwhile, their steps ``slowdown`` times as long.
    pause_s: none of the devices serves.   behind_s: goes on beside serving of the result, with the same ``slowdown``.
    parts: seconds by name ("weights", "kv", "compaction", "map", "communicator", "graphs", "sync"); what overlaps counts in full.
    bytes_moved: between devices.   extra_bytes: peak beyond the larger of before and after, on the worst device.
    descriptors: contiguous copies.   keeps_kv: False: requests under way are computed anew, like preempted ones.
    pace: what goes on beside serving goes by steps of the one instance that serves meanwhile; ``ahead_s``, ``behind_s`` and
    ``slowdown`` are then what that comes to with usual steps.
    """

    pause_s: float
    ahead_s: float = 0.0
    behind_s: float = 0.0
    slowdown: float = 1.0
    parts: Mapping[str, float] = field(default_factory=dict)
    bytes_moved: int = 0
    extra_bytes: int = 0
    descriptors: int = 0
    keeps_kv: bool = True
    pace: Pace | None = None

    def __post_init__(self) -> None:
        assert min(self.pause_s, self.ahead_s, self.behind_s) >= 0, "a phase takes no negative time"
        assert self.slowdown >= 1, "nothing gets faster by copying beside it"

    @property
    def total_s(self) -> float:
        """From the first phase's start to the last one's end."""
        return self.ahead_s + self.pause_s + self.behind_s


class System(Protocol):
    """``degrees``: that an instance may take, ascending.   costs, kv_tokens: by degree, of one instance.

    policy: the scheduler that it is meant for (gyges.scheduling.specification).   block_size: tokens of a KV block.
    """

    name: str
    degrees: tuple[int, ...]
    costs: Mapping[int, CostModel]
    kv_tokens: Mapping[int, int]
    policy: str
    block_size: int

    def switch(self, before: tuple[int, ...], after: tuple[int, ...], held_tokens: Sequence[int]) -> Switch:
        """From instances of these TP degrees to those, on the same devices. ``held_tokens``: of KV cache, by source instance."""
        ...

    def restart(self, before: tuple[int, ...], after: tuple[int, ...]) -> Switch:
        """The same by ending all processes and starting new ones; nobody has requests then."""
        ...

    def work_s(self, tokens: int, degree: int) -> float:
        """Roughly, until one instance of this degree has done ``tokens`` of remaining work, with nothing beside it."""
        ...


@dataclass(frozen=True)
class SystemSpec:
    """What a system is built for. ``devices``: of one host.   cost: source of step times, ``profile`` its folder.

    degrees: that instances may take; empty: all that the model can take and that fit.   kv_tokens: of KV cache for each device,
    or of an instance by degree; None: what memory is left over.
    """

    model: SimModel
    hardware: Hardware
    devices: int
    cost: str = "analytic"
    profile: Path | None = None
    degrees: tuple[int, ...] = ()
    kv_tokens: int | Mapping[int, int] | None = None

    def cost_of(self, degree: int) -> CostModel:
        return cost_model(self.cost, CostSpec(self.model, self.hardware, degree, self.profile))

    def capacity(self, degree: int) -> int:
        """Tokens that an instance holds whose weights are all cut evenly (as vLLM does). UserError where none fits."""
        given = self.kv_given(degree)
        return given if given is not None else kv_capacity_tokens(self.model, self.hardware, degree)

    def kv_given(self, degree: int) -> int | None:
        """What the user says that an instance holds; None: nothing. UserError where other degrees are given."""
        if self.kv_tokens is None or isinstance(self.kv_tokens, int):
            return None if self.kv_tokens is None else self.kv_tokens * degree
        if degree not in self.kv_tokens:
            known = ",".join(f"tp{d}={tokens}" for d, tokens in self.kv_tokens.items())
            raise UserError(f"the KV cache is given as {known}; say what TP{degree} holds as well")
        return self.kv_tokens[degree]

    @cached_property
    def fitting(self) -> tuple[int, ...]:
        """The degrees that were given, or those that the model can take and that fit; UserError if there is none."""
        if self.degrees:
            return tuple(sorted(set(self.degrees)))
        possible = default_degrees(self.model.geometry, self.devices)
        if isinstance(self.kv_tokens, Mapping):
            return tuple(sorted(degree for degree in self.kv_tokens if degree <= self.devices))
        found, problem = [], None
        for degree in possible:
            try:
                self.capacity(degree)
            except UserError as error:
                problem = problem or error
            else:
                found.append(degree)
        if not found:
            assert problem is not None, "TP1 is always possible"
            raise problem
        return tuple(found)


@dataclass
class BaseSystem:
    """What systems share: rough prices of work, and the restart that every one of them can fall back to."""

    name: str
    model: SimModel
    hardware: Hardware
    degrees: tuple[int, ...]
    costs: Mapping[int, CostModel]
    kv_tokens: Mapping[int, int]
    policy: str = "static"
    block_size: int = 16

    @cached_property
    def _token_s(self) -> dict[int, float]:
        """Seconds a token of the mixed step, by degree; computed once, since a source may count what it is asked."""
        return {}

    def work_s(self, tokens: int, degree: int) -> float:
        known = self._token_s
        if degree not in known:
            known[degree] = self.costs[degree].step_s(_MIXED) / _MIXED_TOKENS
        return tokens * known[degree]

    def restart(self, before: tuple[int, ...], after: tuple[int, ...]) -> Switch:
        """New processes, and their weights from host memory, all devices of the host side by side."""
        costs = self.hardware.transform
        loading = self.model.weight_bytes(min(after)) / costs.host_bytes_per_s
        parts = {"weights": loading, "start": costs.start_s}
        return Switch(pause_s=loading + costs.start_s, parts=parts, keeps_kv=False)

    def switch(self, before: tuple[int, ...], after: tuple[int, ...], held_tokens: Sequence[int]) -> Switch:
        raise UserError(
            f"system {self.name!r} cannot change TP{'+TP'.join(map(str, before))} into TP{'+TP'.join(map(str, after))}; "
            "take one that transforms (--system gyges), or a policy that keeps the instances or restarts the host"
        )


class SystemPrices:
    """gyges.scheduling.routing.Prices of a system."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._switches: dict[tuple[tuple[int, ...], tuple[int, ...], int], float] = {}

    def transformation_s(self, before: tuple[int, ...], after: tuple[int, ...], held_tokens: int) -> float:
        """``held_tokens`` are dealt to the sources by their devices. Raises UserError where the system cannot do it."""
        key = (before, after, held_tokens)
        known = self._switches.get(key)
        if known is None:
            if len(self._switches) > 4096:
                self._switches.clear()
            devices = sum(before)
            held = [held_tokens * degree // devices for degree in before]
            known = self._switches[key] = self._system.switch(before, after, held).total_s
        return known

    def work_s(self, tokens: int, degree: int) -> float:
        return self._system.work_s(tokens, degree)


SYSTEMS: Registry[Callable[..., System]] = Registry("system")


def make_system(text: str, spec: SystemSpec) -> System:
    """``NAME[+option=value...]``: the system that ``text`` asks for. Options are the builder's keyword parameters.

    Raises UserError for unknown names, options and values, listing what there is, and for what cannot work.
    """
    from gyges.sim import systems  # noqa: F401 - registers all

    name, word, options = parts_of(text, "system")
    build = SYSTEMS.get(name if not word else f"{name}:{word}")
    given: dict[str, Any] = arguments_of(build, f"system {name}", options)
    return build(spec, **given)


def check_host(system: System, degrees: Sequence[int], limits: BatchLimits, policy: RoutingPolicy) -> None:
    """Raises UserError where a host with these instances cannot be simulated."""
    if limits.max_batch_tokens < limits.max_seqs:
        raise UserError(
            f"a step of {limits.max_batch_tokens} tokens has no room for {limits.max_seqs} decodes; "
            f"raise the tokens of a step, or lower the sequences to {limits.max_batch_tokens}"
        )
    for degree in degrees:
        if degree not in system.degrees:
            known = ", ".join(f"TP{d}" for d in system.degrees)
            raise UserError(f"an instance of TP{degree} is asked for, and system {system.name!r} can take {known} here")
    possible = [degree for degree in system.degrees if degree <= sum(degrees)]
    for degree in possible:
        tokens = system.kv_tokens[degree]
        if tokens < limits.block_size:
            raise UserError(f"{tokens} tokens of KV cache at TP{degree} are less than one block of {limits.block_size}")
    if policy.transforms and len(possible) < 2:
        raise UserError(
            f"this policy changes TP degrees, and system {system.name!r} can take only TP{possible[0]} on "
            f"{sum(degrees)} devices; take more devices, or one that keeps the instances: static"
        )

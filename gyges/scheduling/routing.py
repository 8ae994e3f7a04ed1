"""Routing across instances: where an arriving request goes. Plain Python, deterministic.

Who calls it: the engine's controller (and the simulator) once per arriving request, with a view of every living instance.
A policy may keep state of its own; it must not keep the views, which are stale after the call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from gyges.registry import Registry


@dataclass(frozen=True, slots=True)
class InstanceView:
    """What a policy may know of one instance. ``max_tokens``: longest context it can ever hold, in tokens."""

    name: str
    degree: int
    max_tokens: int
    free_tokens: int
    running: int
    waiting: int
    remaining_tokens: int


@dataclass(frozen=True, slots=True)
class Send:
    """The request goes to instance ``index`` of the views."""

    index: int


@dataclass(frozen=True, slots=True)
class Reject:
    """The request can never run; ``reason`` says what it needed and what there is."""

    reason: str


Decision = Send | Reject


class RoutingPolicy(Protocol):
    def route(self, length: int, instances: Sequence[InstanceView]) -> Decision:
        """``length``: tokens in the KV cache at the request's end. ``instances`` is never empty."""
        ...


POLICIES: Registry[Callable[[], RoutingPolicy]] = Registry("scheduler policy")


def can_hold(length: int, instances: Sequence[InstanceView]) -> list[int]:
    return [i for i, view in enumerate(instances) if view.max_tokens >= length]


def too_long(length: int, instances: Sequence[InstanceView]) -> Reject:
    best = max(instances, key=lambda view: view.max_tokens)
    return Reject(
        f"needs {length} tokens of KV cache; the largest instance ({best.name}, TP{best.degree}) holds {best.max_tokens}"
    )


@POLICIES.register("llf")
class LeastLoadFirst:
    """Among the instances that can hold the request, the one with the least work left per device."""

    def route(self, length: int, instances: Sequence[InstanceView]) -> Decision:
        fitting = can_hold(length, instances)
        if not fitting:
            return too_long(length, instances)
        return Send(min(fitting, key=lambda i: (instances[i].remaining_tokens / instances[i].degree, i)))


@POLICIES.register("rr")
class RoundRobin:
    """Instances in turn, skipping those that cannot hold the request."""

    def __init__(self) -> None:
        self._next = 0

    def route(self, length: int, instances: Sequence[InstanceView]) -> Decision:
        fitting = can_hold(length, instances)
        if not fitting:
            return too_long(length, instances)
        chosen = min(fitting, key=lambda i: (i - self._next) % len(instances))
        self._next = (chosen + 1) % len(instances)
        return Send(chosen)

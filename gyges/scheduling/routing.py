"""Routing across instances: where an arriving request goes. Plain Python, deterministic.

Who calls it: the engine's controller (and the simulator): ``route`` once per arriving request (again for one that was told to
wait), ``review`` whenever something has ended or changed, each with a view of every living instance. A policy may keep state of
its own; it must not keep the views, which are stale after the call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from gyges.registry import Registry


@dataclass(frozen=True, slots=True)
class InstanceView:
    """What a policy may know of one instance. Lengths and loads in tokens.

    max_tokens: longest context it can ever hold.   longest_tokens: what the longest of its requests will need at its end.
    transforming: it is part of a transformation; another cannot be asked of it.
    """

    name: str
    degree: int
    devices: tuple[int, ...]
    max_tokens: int
    free_tokens: int
    running: int
    waiting: int
    remaining_tokens: int
    longest_tokens: int = 0
    transforming: bool = False


@dataclass(frozen=True, slots=True)
class HostView:
    """What a policy may know of the host. ``max_tokens``: TP degree -> longest context, for every degree that it can take."""

    max_tokens: dict[int, int]


@dataclass(frozen=True, slots=True)
class Send:
    """The request goes to instance ``index`` of the views."""

    index: int


@dataclass(frozen=True, slots=True)
class Reject:
    """The request can never run; ``reason`` says what it needed and what there is."""

    reason: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Not now: ask again when an instance has changed. Never a way to say no: what can never run is rejected."""


@dataclass(frozen=True, slots=True)
class Merge:
    """These instances become one. As an answer to ``route``, the request goes there."""

    indices: tuple[int, ...]
    cause: str


@dataclass(frozen=True, slots=True)
class Split:
    """Instance ``index`` becomes several of these TP degrees."""

    index: int
    degrees: tuple[int, ...]
    cause: str


Decision = Send | Reject | Wait | Merge


class RoutingPolicy(Protocol):
    """``transforms``: whether it ever merges or splits; a host that serves it must be able to take several TP degrees."""

    transforms: bool

    def route(self, length: int, instances: Sequence[InstanceView], host: HostView) -> Decision:
        """``length``: tokens in the KV cache at the request's end. ``instances`` is never empty."""
        ...

    def review(self, instances: Sequence[InstanceView], host: HostView) -> list[Merge | Split]:
        """Transformations to start now; asked whenever a request has ended or an instance has changed."""
        ...


POLICIES: Registry[Callable[[], RoutingPolicy]] = Registry("scheduler policy")


def can_hold(length: int, instances: Sequence[InstanceView]) -> list[int]:
    return [i for i, view in enumerate(instances) if view.max_tokens >= length]


def too_long(length: int, instances: Sequence[InstanceView], host: HostView) -> Reject:
    degree = max(host.max_tokens, key=lambda d: host.max_tokens[d])
    if length > max(view.max_tokens for view in instances) and host.max_tokens[degree] >= length:
        return Reject(
            f"needs {length} tokens of KV cache; TP{degree} would hold {host.max_tokens[degree]}, but nothing merges here"
        )
    best = max(instances, key=lambda view: view.max_tokens)
    return Reject(
        f"needs {length} tokens of KV cache; the largest instance ({best.name}, TP{best.degree}) holds {best.max_tokens}"
    )


class Static:
    """The base of policies that never transform anything."""

    transforms = False

    def review(self, instances: Sequence[InstanceView], host: HostView) -> list[Merge | Split]:
        return []


@POLICIES.register("llf")
class LeastLoadFirst(Static):
    """Among the instances that can hold the request, the one with the least work left per device."""

    def route(self, length: int, instances: Sequence[InstanceView], host: HostView) -> Decision:
        fitting = can_hold(length, instances)
        if not fitting:
            return too_long(length, instances, host)
        return Send(min(fitting, key=lambda i: (instances[i].remaining_tokens / instances[i].degree, i)))


@POLICIES.register("rr")
class RoundRobin(Static):
    """Instances in turn, skipping those that cannot hold the request."""

    def __init__(self) -> None:
        self._next = 0

    def route(self, length: int, instances: Sequence[InstanceView], host: HostView) -> Decision:
        fitting = can_hold(length, instances)
        if not fitting:
            return too_long(length, instances, host)
        chosen = min(fitting, key=lambda i: (i - self._next) % len(instances))
        self._next = (chosen + 1) % len(instances)
        return Send(chosen)

"""The contract between a host and its policy: where an arriving request goes, and which merges and splits to start.

Who calls it: the engine's controller and the simulator, from one thread, the same objects.

    route    once per arriving request, in order of arrival; again, in the same order, for those that were told to wait,
             whenever an instance has changed or a request has ended
    review   after arrivals, ends and changes, and at ``wake_s`` at the latest
    foresee  once before a replay, the whole trace; only of policies that have it

What a policy may assume: views are of this moment and list every living instance; ``now`` never goes back; a Merge or Split that
cannot be begun (its instances are busy, blocks do not fit) is dropped, and the policy is asked again when something has
changed. What it must keep: it reads no clock and draws no random number (the same calls give the same answers), it does not
keep views, which are stale after the call, and it never says Wait to what can never run. Plain Python, torch-free.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from gyges.registry import Registry


@dataclass(frozen=True, slots=True)
class Ask:
    """A request to be placed. Lengths in tokens, times in seconds on the host's clock.

    length: tokens in the KV cache at its end.   prompt_tokens: to compute before its next token (after a loss, all known ones).
    arrival_s: when the host first heard of it.   name: its id.
    """

    length: int
    prompt_tokens: int = 0
    arrival_s: float = 0.0
    name: str = ""


@dataclass(frozen=True, slots=True)
class InstanceView:
    """What a policy may know of one instance. Lengths and loads in tokens.

    max_tokens: longest context it can ever hold.   running, waiting: requests.   remaining_tokens: work left, tokens to compute
    and to sample; prefill_tokens: those of them that are in no KV cache yet though known; waiting_tokens: those for which there
    are no blocks either.   longest_tokens: what the longest of its requests will need at its end.
    long_requests: how many of its requests need more than the host's lowest degree holds.
    held_tokens: room that its requests' KV blocks take, which a transformation has to move.
    transforming: it is part of a transformation; another cannot be asked of it.   becoming: TP degrees afterwards.
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
    prefill_tokens: int = 0
    waiting_tokens: int = 0
    held_tokens: int = 0
    long_requests: int = 0
    becoming: tuple[int, ...] = ()


class Prices(Protocol):
    """What things cost on this host, in seconds: from transform.plan's bytes and measured rates, or from a cost model."""

    def transformation_s(self, before: tuple[int, ...], after: tuple[int, ...], held_tokens: int) -> float:
        """From instances of TP degrees ``before`` to ``after``, with so many tokens of KV cache to move."""
        ...

    def work_s(self, tokens: int, degree: int) -> float:
        """Until one instance of this degree has done ``tokens`` of remaining work, with nothing beside it."""
        ...


@dataclass(frozen=True, slots=True)
class FlatPrices:
    """Prices that follow three rates; a host that has measured nothing yet, and tests.

    fixed_s: of any transformation.   tokens_per_s: of work on one device.   moved_per_s: tokens of KV cache.
    """

    fixed_s: float = 0.05
    tokens_per_s: float = 2000.0
    moved_per_s: float = 1e6

    def transformation_s(self, before: tuple[int, ...], after: tuple[int, ...], held_tokens: int) -> float:
        return self.fixed_s + held_tokens / self.moved_per_s

    def work_s(self, tokens: int, degree: int) -> float:
        return tokens / (self.tokens_per_s * degree)


@dataclass(frozen=True, slots=True)
class HostView:
    """What a policy may know of the host.

    max_tokens: TP degree -> longest context, for every degree that it can take.   pending, pending_tokens: requests that wait
    outside of all instances, and their prompt tokens; ahead: those of them that came before the one that is asked for.
    """

    max_tokens: dict[int, int]
    pending: int = 0
    ahead: int = 0
    pending_tokens: int = 0
    prices: Prices = field(default_factory=FlatPrices)

    @property
    def lowest(self) -> int:
        """The lowest TP degree."""
        return min(self.max_tokens)


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
    """These instances become one. As an answer to ``route``, the request goes there if it fits, and else is asked for again."""

    indices: tuple[int, ...]
    cause: str


@dataclass(frozen=True, slots=True)
class Split:
    """Instance ``index`` becomes several of these TP degrees."""

    index: int
    degrees: tuple[int, ...]
    cause: str


@dataclass(frozen=True, slots=True)
class Restart:
    """The whole host finishes what its instances have, stops, and starts with instances of these TP degrees; until then no
    request is placed, and the one that was asked for waits. What is done where nothing can be transformed."""

    degrees: tuple[int, ...]
    cause: str


Decision = Send | Reject | Wait | Merge | Restart
Wish = Merge | Split | Restart


class RoutingPolicy(Protocol):
    """``transforms``: whether it ever merges or splits; a host that serves it must be able to take several TP degrees.

    wake_s: when ``review`` wants to be called though nothing has changed; None: only on changes.
    """

    transforms: bool

    @property
    def wake_s(self) -> float | None: ...

    def route(self, ask: Ask, instances: Sequence[InstanceView], host: HostView, now: float) -> Decision:
        """``instances`` is never empty."""
        ...

    def review(self, instances: Sequence[InstanceView], host: HostView, now: float) -> list[Wish]:
        """Transformations to start now, each of other instances; asked after arrivals, ends and changes."""
        ...


class Policy:
    """The base of policies: never transforms, never wants to be woken."""

    transforms = False
    wake_s: float | None = None

    def review(self, instances: Sequence[InstanceView], host: HostView, now: float) -> list[Wish]:
        return []


POLICIES: Registry[Callable[..., RoutingPolicy]] = Registry("scheduler policy")


def too_long(length: int, instances: Sequence[InstanceView], host: HostView) -> Reject:
    """The answer to what can never run here. ``host.max_tokens`` is what the devices that are left could become."""
    degree = max(host.max_tokens, key=lambda d: host.max_tokens[d])
    if length > max(view.max_tokens for view in instances) and host.max_tokens[degree] >= length:
        return Reject(
            f"needs {length} tokens of KV cache; TP{degree} would hold {host.max_tokens[degree]}, but nothing merges here"
        )
    best = max(instances, key=lambda view: view.max_tokens)
    return Reject(
        f"needs {length} tokens of KV cache; the largest instance ({best.name}, TP{best.degree}) holds {best.max_tokens}"
    )


def degrees_for(length: int, instances: Sequence[InstanceView], host: HostView) -> list[int] | Reject:
    """TP degrees that hold ``length`` and that the devices suffice for, lowest first; or why there is none."""
    degrees = [degree for degree in sorted(host.max_tokens) if host.max_tokens[degree] >= length]
    if not degrees:
        return too_long(length, instances, host)
    devices = sum(view.degree for view in instances)
    if degrees[0] > devices:
        return Reject(
            f"needs {length} tokens of KV cache; TP{degrees[0]} would hold {host.max_tokens[degrees[0]]}, "
            f"and only {devices} devices are left"
        )
    return [degree for degree in degrees if degree <= devices]

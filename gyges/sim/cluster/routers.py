"""Which host of a cluster gets a request: what a router in front of serving hosts does. An extension is one function and one
``ROUTERS.register``.

A router knows what it has sent and what has come back, not what a host does with it. It is asked once for each arriving request,
and once more for each that a failed host gives back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter

from gyges.registry import Registry
from gyges.scheduling.routing import Ask


@dataclass(slots=True)
class HostLoad:
    """One living host, as the router knows it. Lengths in tokens.

    devices: that live.   requests, tokens: outstanding, and their lengths at their ends.   long_requests, long_tokens: those of
    them that an instance of the lowest TP degree cannot hold.   narrow_tokens, wide_tokens: what an instance of the lowest and
    of the highest degree that the host can take holds.   per_device: ``tokens / devices``, kept up to date.
    """

    index: int
    devices: int
    narrow_tokens: int
    wide_tokens: int
    requests: int = 0
    tokens: int = 0
    long_requests: int = 0
    long_tokens: int = 0
    per_device: float = 0.0

    def count(self, length: int, sign: int) -> None:
        """A request of this length came (1) or left (-1)."""
        self.requests += sign
        self.tokens += sign * length
        if length > self.narrow_tokens:
            self.long_requests += sign
            self.long_tokens += sign * length
        self.per_device = self.tokens / self.devices


# (the request, the living hosts: at least one, by index) -> one of them
Router = Callable[[Ask, Sequence[HostLoad]], HostLoad]
ROUTERS: Registry[Callable[[], Router]] = Registry("router")


def make_router(name: str) -> Router:
    """A new one: a router has memory. Raises UnknownNameError."""
    return ROUTERS.get(name)()


_PER_DEVICE = attrgetter("per_device")


@ROUTERS.register("round-robin")
def round_robin() -> Router:
    """One host after the other, whatever they have to do."""
    last = -1

    def choose(ask: Ask, hosts: Sequence[HostLoad]) -> HostLoad:
        nonlocal last
        chosen = next((host for host in hosts if host.index > last), hosts[0])
        last = chosen.index
        return chosen

    return choose


@ROUTERS.register("least-loaded")
def least_loaded() -> Router:
    """The host with the fewest outstanding tokens for each of its devices; of equals the first."""
    return lambda ask, hosts: min(hosts, key=_PER_DEVICE)


@ROUTERS.register("length-aware")
def length_aware() -> Router:
    """Long requests together, so that few hosts have wide instances; others rather not there.

    What an instance of the lowest degree cannot hold goes to a host that has such requests already and still has room for this
    one beside them in one wide instance; else, like everything short, to the host with the fewest outstanding tokens for each
    device. For short requests, the tokens of hosts with long ones count twice.
    """

    def avoiding(host: HostLoad) -> float:
        return host.per_device * (2.0 if host.long_requests else 1.0)

    def choose(ask: Ask, hosts: Sequence[HostLoad]) -> HostLoad:
        if ask.length <= min(host.narrow_tokens for host in hosts):
            return min(hosts, key=avoiding)
        together = [h for h in hosts if h.long_requests and h.long_tokens + ask.length <= h.wide_tokens]
        return min(together or hosts, key=_PER_DEVICE)

    return choose

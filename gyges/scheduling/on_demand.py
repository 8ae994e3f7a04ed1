"""The simplest rule that transforms: merge when a request fits nowhere, split when nobody needs the room any more."""

from __future__ import annotations

from collections.abc import Sequence

from gyges.scheduling.choose import group_of_any, least, work_per_device
from gyges.scheduling.routing import (
    POLICIES,
    Ask,
    Decision,
    HostView,
    InstanceView,
    Merge,
    Policy,
    Reject,
    Send,
    Split,
    Wait,
    Wish,
    degrees_for,
)


@POLICIES.register("on-demand")
class OnDemand(Policy):
    """Short requests go to the least loaded instance that can hold them, the narrowest first. One that fits nowhere makes the
    least loaded instances of the lowest degree merge, as few as it takes. An instance wider than the host's lowest degree splits
    as soon as none of its requests needs the room."""

    transforms = True

    def route(self, ask: Ask, instances: Sequence[InstanceView], host: HostView, now: float) -> Decision:
        narrowest = min((view.degree for view in instances if view.max_tokens >= ask.length), default=None)
        if narrowest is not None:
            index = least(instances, ask.length, work_per_device, lambda view: view.degree == narrowest)
            assert index is not None, "an instance of that degree can hold it"
            return Send(index)
        return make_room(ask, instances, host)

    def review(self, instances: Sequence[InstanceView], host: HostView, now: float) -> list[Wish]:
        return split_what_nobody_needs(instances, host)


def make_room(ask: Ask, instances: Sequence[InstanceView], host: HostView) -> Decision:
    """What to do about a request that fits nowhere: merge as few devices as it takes, wait for those, or reject it."""
    degrees = degrees_for(ask.length, instances, host)
    if isinstance(degrees, Reject):
        return degrees
    if under_way(ask.length, instances, host):
        return Wait()
    for degree in degrees:
        indices = group_of_any(instances, degree, work_per_device)
        if indices:
            return Merge(indices, f"a request of {ask.length} tokens fits no instance")
    return Wait()


def under_way(length: int, instances: Sequence[InstanceView], host: HostView) -> bool:
    """Whether a merge that is under way will hold ``length``: it may have been asked for by this very request."""
    return any(
        view.transforming and any(host.max_tokens.get(degree, 0) >= length for degree in view.becoming)
        for view in instances
    )


def split_what_nobody_needs(instances: Sequence[InstanceView], host: HostView) -> list[Wish]:
    """Every instance above the lowest degree none of whose requests needs the room."""
    lowest = host.lowest
    return [
        Split(index, (lowest,) * (view.degree // lowest), "no request needs the wide instance any more")
        for index, view in enumerate(instances)
        if view.degree > lowest
        and not view.transforming
        and view.degree % lowest == 0
        and view.longest_tokens <= host.max_tokens[lowest]
    ]

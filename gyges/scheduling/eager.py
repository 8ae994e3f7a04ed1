"""``rr`` and ``llf`` as the paper compares with them (section 6): instances merge whenever a long request arrives, whatever wide
ones there are, and split as soon as no long request is left."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from gyges.scheduling.choose import Key, group_of_any, least, work_per_device
from gyges.scheduling.on_demand import split_what_nobody_needs, under_way
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
    Wait,
    Wish,
    degrees_for,
)


class Eager(Policy):
    """``preference``: the order in which instances take requests and are merged."""

    transforms = True

    def __init__(self) -> None:
        self._merged_for: set[tuple[float, str]] = set()  # requests that have had their merge and are not placed yet

    @abstractmethod
    def preference(self, instances: Sequence[InstanceView]) -> Key: ...

    def sent(self, view: InstanceView) -> None:
        """This instance has been chosen."""

    def route(self, ask: Ask, instances: Sequence[InstanceView], host: HostView, now: float) -> Decision:
        key = self.preference(instances)
        me = (ask.arrival_s, ask.name)
        if ask.length > host.max_tokens[host.lowest] and me not in self._merged_for:
            degrees = degrees_for(ask.length, instances, host)
            if isinstance(degrees, Reject):
                return degrees
            narrow = [view for view in instances if view.degree == host.lowest and not view.transforming]
            if len(narrow) * host.lowest >= degrees[0]:
                indices = group_of_any(instances, degrees[0], key)
                if indices:
                    self.sent(instances[indices[-1]])
                    self._merged_for.add(me)
                    return Merge(indices, f"a request of {ask.length} tokens")
        index = least(instances, ask.length, key)
        if index is not None:
            self._merged_for.discard(me)
            self.sent(instances[index])
            return Send(index)
        if under_way(ask.length, instances, host):
            return Wait()
        for degree in degrees_for(ask.length, instances, host):  # type: ignore[union-attr]
            indices = group_of_any(instances, degree, key)
            if indices:
                return Merge(indices, f"a request of {ask.length} tokens fits no instance")
        return Wait()

    def review(self, instances: Sequence[InstanceView], host: HostView, now: float) -> list[Wish]:
        return split_what_nobody_needs(instances, host)


@POLICIES.register("llf")
class LeastLoadFirst(Eager):
    """The least work left per device first."""

    def preference(self, instances: Sequence[InstanceView]) -> Key:
        return work_per_device


@POLICIES.register("rr")
class RoundRobin(Eager):
    """In turn, by first device, since the instances themselves come and go."""

    def __init__(self) -> None:
        super().__init__()
        self._last = -1

    def preference(self, instances: Sequence[InstanceView]) -> Key:
        devices, last = 1 + max(max(view.devices) for view in instances), self._last
        return lambda view: (view.devices[0] - last - 1) % devices

    def sent(self, view: InstanceView) -> None:
        self._last = view.devices[0]

"""``by-load``: wide while there is little to do, narrow once requests queue. Flying Serving's rule, "merge before the queue
builds, split once it has" (arXiv 2602.22593; the README of its code)."""

from __future__ import annotations

from collections.abc import Sequence

from gyges.errors import UserError
from gyges.scheduling.choose import group_of_any, least, work_per_device
from gyges.scheduling.on_demand import make_room
from gyges.scheduling.routing import (
    POLICIES,
    Ask,
    Decision,
    HostView,
    InstanceView,
    Merge,
    Policy,
    Send,
    Split,
    Wish,
)


@POLICIES.register("by-load")
class ByLoad(Policy):
    """The host has ``calm`` requests a device or fewer: all its instances merge. More than ``queue`` a device wait: every wide
    instance without a long request splits. Between two changes for load lie at least ``dwell`` seconds. A request that fits
    nowhere makes instances merge at once."""

    transforms = True

    def __init__(self, *, calm: float = 2.0, queue: float = 1.0, dwell: float = 10.0) -> None:
        if min(calm, queue, dwell) < 0:
            raise UserError(
                f"calm and queue are requests a device, dwell is seconds, none below 0; got {calm:g}, {queue:g}, {dwell:g}"
            )
        self.calm, self.queue, self.dwell = calm, queue, dwell
        self._changed: float | None = None

    def route(self, ask: Ask, instances: Sequence[InstanceView], host: HostView, now: float) -> Decision:
        index = least(instances, ask.length, work_per_device)
        return make_room(ask, instances, host) if index is None else Send(index)

    def review(self, instances: Sequence[InstanceView], host: HostView, now: float) -> list[Wish]:
        self.wake_s = None
        if host.pending or any(view.transforming for view in instances):
            return []
        devices = sum(view.degree for view in instances)
        waiting = sum(view.waiting for view in instances)
        requests = waiting + sum(view.running for view in instances)
        wishes: list[Wish] = []
        if waiting > self.queue * devices:
            wishes = self._splits(instances, host.lowest)
        elif 0 < requests <= self.calm * devices:
            wishes = self._merge(instances, host)
        if not wishes:
            return []
        if self._changed is not None and now < self._changed + self.dwell:
            self.wake_s = self._changed + self.dwell
            return []
        self._changed = now
        return wishes

    @staticmethod
    def _splits(instances: Sequence[InstanceView], lowest: int) -> list[Wish]:
        return [
            Split(index, (lowest,) * (view.degree // lowest), "requests queue")
            for index, view in enumerate(instances)
            if view.degree > lowest and view.degree % lowest == 0 and not view.long_requests
        ]

    @staticmethod
    def _merge(instances: Sequence[InstanceView], host: HostView) -> list[Wish]:
        """Into the widest instance that can be made; none where that is no wider than what there is."""
        widest = max(view.degree for view in instances)
        for degree in sorted(host.max_tokens, reverse=True):
            if degree <= widest:
                return []
            indices = group_of_any(instances, degree, work_per_device)
            if indices:
                return [Merge(indices, "little to do")]
        return []

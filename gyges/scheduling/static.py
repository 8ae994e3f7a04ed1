"""Instances stay as they are: ``static`` takes those that it is given, ``static:tp2+tp1+tp1`` says which (``layout``)."""

from __future__ import annotations

from collections.abc import Sequence

from gyges.scheduling.choose import least, work_per_device
from gyges.scheduling.routing import POLICIES, Ask, Decision, HostView, InstanceView, Policy, Send, too_long


@POLICIES.register("static")
class Static(Policy):
    """Each request goes to the instance with the least work left per device among those that can hold it; what fits none is
    rejected. ``layout``: TP degrees of the instances, repeated to fill the devices; empty: as configured."""

    def __init__(self, layout: tuple[int, ...] = ()) -> None:
        self.layout = layout

    def route(self, ask: Ask, instances: Sequence[InstanceView], host: HostView, now: float) -> Decision:
        index = least(instances, ask.length, work_per_device)
        return too_long(ask.length, instances, host) if index is None else Send(index)

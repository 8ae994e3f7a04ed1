"""``pressure``: instances merge when KV memory runs out, and split once little of it is used. KunServe's rule (arXiv
2412.18169, sections 4.1 and 4.4), and what ``elastic`` takes from it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from gyges.errors import UserError
from gyges.scheduling.choose import least, work_per_device
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


@POLICIES.register("pressure")
class Pressure(Policy):
    """A request goes to the least work per device. Where requests wait for KV blocks, their instance merges with the smallest
    other one, again and again until they fit (KunServe's greedy plan). It splits when its requests hold less than ``restore``
    of what its devices would hold apart."""

    transforms = True

    def __init__(self, *, restore: float = 0.5) -> None:
        if not 0 < restore <= 1:
            raise UserError(f"restore is a share of the KV cache, above 0 and at most 1, got {restore:g}")
        self.restore = restore

    def route(self, ask: Ask, instances: Sequence[InstanceView], host: HostView, now: float) -> Decision:
        index = least(instances, ask.length, work_per_device)
        return make_room(ask, instances, host) if index is None else Send(index)

    def review(self, instances: Sequence[InstanceView], host: HostView, now: float) -> list[Wish]:
        merges = merges_for_room(instances, host.max_tokens)
        if merges or host.pending:
            return merges
        lowest = host.lowest
        return [
            Split(index, (lowest,) * (view.degree // lowest), f"less than {self.restore:.0%} of the KV cache is used")
            for index, view in enumerate(instances)
            if view.degree > lowest
            and view.degree % lowest == 0
            and not view.transforming
            and not view.waiting
            and not view.long_requests
            and view.held_tokens < self.restore * (view.degree // lowest) * host.max_tokens[lowest]
        ]


def short_of_memory(view: InstanceView) -> bool:
    """Whether the requests that wait there need more KV blocks than are free."""
    waiting = view.waiting_tokens
    return waiting > 0 and waiting > view.free_tokens


def merges_for_room(instances: Sequence[InstanceView], known: Collection[int]) -> list[Wish]:
    """One merge for each instance that is short of memory, with the smallest other one, the least held one of equals.

    known: TP degrees that an instance may have.
    """
    free = [i for i, view in enumerate(instances) if not view.transforming]
    merges: list[Wish] = []
    for index in [i for i in free if short_of_memory(instances[i])]:
        if index not in free:
            continue
        own = instances[index].degree
        others = [i for i in free if i != index and own + instances[i].degree in known]
        if not others:
            continue
        other = min(others, key=lambda i: (instances[i].degree, instances[i].held_tokens, i))
        free = [i for i in free if i not in (index, other)]
        merges.append(Merge(tuple(sorted((index, other))), "requests wait for KV blocks"))
    return merges

"""The simplest rule that transforms: merge when a request fits nowhere, split when nobody needs the room any more."""

from __future__ import annotations

from collections.abc import Sequence

from gyges.scheduling.routing import (
    POLICIES,
    Decision,
    HostView,
    InstanceView,
    Merge,
    Reject,
    Send,
    Split,
    Wait,
    can_hold,
    too_long,
)


@POLICIES.register("on-demand")
class OnDemand:
    """Short requests go to the least loaded instance that can hold them, the narrowest first. One that fits nowhere makes the
    least loaded instances of the lowest degree merge, as few as it takes. An instance wider than the host's lowest degree splits
    as soon as none of its requests needs the room."""

    transforms = True

    def route(self, length: int, instances: Sequence[InstanceView], host: HostView) -> Decision:
        fitting = can_hold(length, instances)
        if fitting:
            narrowest = min(instances[i].degree for i in fitting)
            fitting = [i for i in fitting if instances[i].degree == narrowest]
            return Send(min(fitting, key=lambda i: (_load(instances[i]), i)))
        degrees = [d for d in sorted(host.max_tokens) if host.max_tokens[d] >= length]
        if not degrees:
            return too_long(length, instances, host)
        devices = sum(view.degree for view in instances)
        if degrees[0] > devices:
            return Reject(
                f"needs {length} tokens of KV cache; TP{degrees[0]} would hold {host.max_tokens[degrees[0]]}, "
                f"and only {devices} devices are left"
            )
        # What is under way may be the merge that this very request asked for: a second one would be too many.
        if any(view.transforming for view in instances):
            return Wait()
        for degree in degrees:
            indices = _to_merge(degree, instances)
            if indices:
                return Merge(indices, f"a request of {length} tokens fits no instance")
        return Wait()

    def review(self, instances: Sequence[InstanceView], host: HostView) -> list[Merge | Split]:
        lowest = min(host.max_tokens)
        return [
            Split(index, (lowest,) * (view.degree // lowest), "no request needs the wide instance any more")
            for index, view in enumerate(instances)
            if view.degree > lowest
            and not view.transforming
            and view.degree % lowest == 0
            and view.longest_tokens <= host.max_tokens[lowest]
        ]


def _load(view: InstanceView) -> float:
    return view.remaining_tokens / view.degree


def _to_merge(degree: int, instances: Sequence[InstanceView]) -> tuple[int, ...]:
    """Instances whose degrees add up to ``degree``, narrow and little loaded ones preferred; empty if none do."""
    sums: dict[int, tuple[int, ...]] = {0: ()}
    for index in sorted(range(len(instances)), key=lambda i: (instances[i].degree, _load(instances[i]), i)):
        for reached, chosen in list(sums.items()):
            sums.setdefault(reached + instances[index].degree, (*chosen, index))
        if degree in sums:
            return tuple(sorted(sums[degree]))
    return ()

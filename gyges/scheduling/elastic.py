"""``elastic``: as many devices as a prompt is long, then as few as its KV cache takes. LoongServe's rule (arXiv 2404.09526,
section 5), for ways of serving in which merging and splitting cost next to nothing."""

from __future__ import annotations

from collections.abc import Sequence

from gyges.errors import UserError
from gyges.scheduling.choose import group_of_any, least, work_per_device
from gyges.scheduling.on_demand import make_room
from gyges.scheduling.pressure import merges_for_room
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


@POLICIES.register("elastic")
class Elastic(Policy):
    """A prompt is computed on the degree that gives every instance of the lowest degree ``share`` tokens of it, made of
    instances that compute no prompt; where there are not as many, on fewer. Once the prompts are computed, an instance splits
    into the lowest degree that holds all that its requests have and will have, and the rest. Where blocks run short it merges
    with another."""

    transforms = True

    def __init__(self, *, share: float = 4096.0) -> None:
        if share < 1:
            raise UserError(f"share is tokens of a prompt, at least 1, got {share:g}")
        self.share = share

    def route(self, ask: Ask, instances: Sequence[InstanceView], host: HostView, now: float) -> Decision:
        degrees = degrees_for(ask.length, instances, host)
        if isinstance(degrees, Reject):
            return degrees
        wanted = max(host.lowest * int(ask.prompt_tokens // self.share), degrees[0])
        degrees = [degree for degree in degrees if degree <= wanted]
        if degrees[-1] > host.lowest and not host.ahead:
            idle = [i for i, view in enumerate(instances) if not computes_prompts(view)]
            views = [instances[i] for i in idle]
            for degree in reversed(degrees):
                wide = [i for i in idle if instances[i].degree >= degree]
                if wide:
                    return Send(min(wide, key=lambda i: work_per_device(instances[i])))
                group = group_of_any(views, degree, _held_per_device)
                if group:
                    return Merge(tuple(idle[i] for i in group), f"a prompt of {ask.prompt_tokens} tokens")
        index = least(instances, ask.length, work_per_device)
        if index is not None:
            return Send(index)
        return Wait() if host.ahead else make_room(ask, instances, host)

    def review(self, instances: Sequence[InstanceView], host: HostView, now: float) -> list[Wish]:
        merges = merges_for_room(instances, host.max_tokens)
        if merges or host.pending:
            return merges
        splits: list[Wish] = []
        for index, view in enumerate(instances):
            if view.degree > host.lowest and not view.transforming and not computes_prompts(view):
                parts = _fewest(view, host)
                if len(parts) > 1:
                    splits.append(Split(index, parts, "the prompts are computed"))
        return splits


def computes_prompts(view: InstanceView) -> bool:
    """Whether any of its requests misses more than the token that it sampled last."""
    return view.waiting > 0 or view.prefill_tokens > view.running


def _held_per_device(view: InstanceView) -> float:
    return view.held_tokens / view.degree


def _fewest(view: InstanceView, host: HostView) -> tuple[int, ...]:
    """The lowest degree that holds all its requests at their end, and the lowest degree of all for the rest of the devices."""
    lowest = host.lowest
    need = max(view.longest_tokens, view.held_tokens + view.remaining_tokens)
    for degree in sorted(host.max_tokens):
        rest = view.degree - degree
        if rest > 0 and rest % lowest == 0 and host.max_tokens[degree] >= need:
            return (degree, *(lowest,) * (rest // lowest))
    return (view.degree,)

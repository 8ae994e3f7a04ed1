"""What several policies need: the least loaded instance, and which instances to merge. Plain Python, one pass where possible."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

from gyges.scheduling.routing import InstanceView

Key = Callable[[InstanceView], float]


def work_per_device(view: InstanceView) -> float:
    """Remaining work, tokens per device."""
    return view.remaining_tokens / view.degree


def requests_per_device(view: InstanceView) -> float:
    """Requests, whatever is left of them."""
    return (view.running + view.waiting) / view.degree


def least(instances: Sequence[InstanceView], length: int, key: Key, allowed: Key | None = None) -> int | None:
    """Index of the instance that can hold ``length`` tokens with the smallest key, the first of equals; None if none can.

    allowed: only those for which it is not 0.
    """
    best, lowest = None, 0.0
    for index, view in enumerate(instances):
        if view.max_tokens < length or (allowed is not None and not allowed(view)):
            continue
        value = key(view)
        if best is None or value < lowest:
            best, lowest = index, value
    return best


def group_of_equals(instances: Sequence[InstanceView], degree: int, known: Sequence[int], key: Key) -> tuple[int, ...]:
    """Instances of one TP degree that make one of ``degree``, or a step on the way there: two of a lower degree that make one of
    a ``known`` degree (the paper's doubling, section 5, rule 2). The smallest keys first; empty if there are none."""
    by_degree = _free_by_degree(instances)
    for own in sorted(by_degree, reverse=True):
        count = degree // own
        if degree % own == 0 and count > 1 and len(by_degree[own]) >= count:
            return tuple(sorted(_smallest(instances, by_degree[own], count, key)))
    for own in sorted(by_degree, reverse=True):
        if 2 * own < degree and 2 * own in known and len(by_degree[own]) >= 2:
            return tuple(sorted(_smallest(instances, by_degree[own], 2, key)))
    return ()


def group_of_any(instances: Sequence[InstanceView], degree: int, key: Key) -> tuple[int, ...]:
    """Instances of any TP degrees that add up to ``degree``, narrow ones and small keys preferred; empty if there are none."""
    sums: dict[int, tuple[int, ...]] = {0: ()}
    by_degree = _free_by_degree(instances)
    for own in sorted(by_degree):
        if own >= degree:
            break
        for index in _smallest(instances, by_degree[own], degree // own, key):
            for reached, chosen in list(sums.items()):
                if reached + own <= degree:
                    sums.setdefault(reached + own, (*chosen, index))
            if degree in sums:
                return tuple(sorted(sums[degree]))
    return ()


def _free_by_degree(instances: Sequence[InstanceView]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for index, view in enumerate(instances):
        if not view.transforming:
            found.setdefault(view.degree, []).append(index)
    return found


def _smallest(instances: Sequence[InstanceView], indices: list[int], count: int, key: Key) -> list[int]:
    return heapq.nsmallest(count, indices, key=lambda index: (key(instances[index]), index))

"""What a simulation that is under way has come to, for whoever watches it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gyges.metrics.records import TimelineSample
from gyges.sim.host import SimHost


@dataclass(frozen=True, slots=True)
class SimProgress:
    """Counts of requests and output tokens so far, at ``now_s`` of the simulated clock, and the latest sample of each instance.

    transforming: instance -> "merge" or "split", for those in the middle of one.
    """

    now_s: float
    sent: int
    completed: int
    rejected: int
    output_tokens: int
    instances: Sequence[TimelineSample]
    transforming: Mapping[str, str]


OnProgress = Callable[[SimProgress], None]


def progress_of(hosts: Sequence[SimHost], sent: int, latest: Sequence[TimelineSample], now: float) -> SimProgress:
    """``latest``: a sample of every living instance."""
    gone = sum(hosted.sim.output_tokens for host in hosts for hosted in host.retired)
    return SimProgress(
        now_s=now,
        sent=sent,
        completed=sum(host.completed for host in hosts),
        rejected=sum(host.rejected for host in hosts),
        output_tokens=gone + sum(sample.output_tokens for sample in latest),
        instances=latest,
        transforming={
            hosted.name: "merge" if hosted.change.merges else "split"
            for host in hosts
            for hosted in host.instances
            if hosted.change is not None
        },
    )

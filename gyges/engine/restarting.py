"""A restart of the host as the controller carries it out: everybody finishes, all processes end, new ones start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gyges.engine.instance import Instance
from gyges.engine.transformer import TransformationReport
from gyges.scheduling.routing import Restart


@dataclass(frozen=True)
class Restarting:
    """``instances``: those that finish what they have.   asked_s: monotonic seconds."""

    wish: Restart
    instances: Sequence[Instance]
    asked_s: float

    def begun(self, now: float) -> TransformationReport:
        """Its report: a merge or a split by whether instances get wider; from ``asked_s`` to ``start_s`` they drain."""
        before, after = tuple(i.degree for i in self.instances), self.wish.degrees
        return TransformationReport(
            kind="merge" if max(after) > max(before) else "split",
            devices=tuple(sorted(worker for i in self.instances for worker in i.members)),
            before=before,
            after=after,
            cause=self.wish.cause,
            overlap=False,
            asked_s=self.asked_s,
            start_s=now,
            stopped="the host was restarted",
        )

"""``restart``: what operators do today. All instances have one TP degree; for another one, the host is restarted."""

from __future__ import annotations

from collections.abc import Sequence

from gyges.errors import UserError
from gyges.scheduling.choose import least, work_per_device
from gyges.scheduling.routing import (
    POLICIES,
    Ask,
    Decision,
    HostView,
    InstanceView,
    Policy,
    Reject,
    Restart,
    Send,
    Wish,
    degrees_for,
)


@POLICIES.register("restart")
class RestartPolicy(Policy):
    """A request that fits nowhere makes the host drain, stop and start with as many instances as there can be of the lowest TP
    degree that holds it. It goes back to the lowest degree in the same way once no request has needed more for ``hold``
    seconds."""

    transforms = True

    def __init__(self, *, hold: float = 30.0) -> None:
        if hold < 0:
            raise UserError(f"hold is 0 or more seconds, got {hold:g}")
        self.hold = hold
        self._needed_s = 0.0  # when a request last needed more than the lowest degree

    def route(self, ask: Ask, instances: Sequence[InstanceView], host: HostView, now: float) -> Decision:
        if ask.length > host.max_tokens[host.lowest]:
            self._needed_s = now
        index = least(instances, ask.length, work_per_device)
        if index is not None:
            return Send(index)
        degrees = degrees_for(ask.length, instances, host)
        if isinstance(degrees, Reject):
            return degrees
        return self._restart(degrees[0], instances, f"a request of {ask.length} tokens fits no instance")

    def review(self, instances: Sequence[InstanceView], host: HostView, now: float) -> list[Wish]:
        self.wake_s = None
        if all(view.degree == host.lowest for view in instances):
            return []
        if any(view.long_requests for view in instances):
            self._needed_s = now
            return []
        if now < self._needed_s + self.hold:
            self.wake_s = self._needed_s + self.hold
            return []
        return [self._restart(host.lowest, instances, "no request needs the wide instances any more")]

    @staticmethod
    def _restart(degree: int, instances: Sequence[InstanceView], cause: str) -> Restart:
        devices = sum(view.degree for view in instances)
        return Restart((degree,) * (devices // degree), cause)

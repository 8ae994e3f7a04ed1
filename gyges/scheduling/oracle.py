"""``oracle``: ``gyges`` that knows the trace. What knowing all arrivals would be worth; no policy of a real host."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from gyges.scheduling.gyges import Gyges
from gyges.scheduling.routing import POLICIES, Ask, HostView, InstanceView, Merge, Wish


@POLICIES.register("oracle")
class Oracle(Gyges):
    """In place of hysteresis and reserve: instances have merged by the time at which a long request arrives (``lead`` prices of
    the merge before), and a drained one stays wide exactly if the next long request comes before a split and a merge would
    pay, that is within ``gap`` prices. Without ``foresee`` it knows of no long request to come."""

    def __init__(self, *, lead: float = 3.0, gap: float = 20.0) -> None:
        super().__init__(hysteresis=False, reserve=False)
        self.lead, self.gap = lead, gap
        self._asks: list[Ask] = []
        self._times: list[float] = []
        self._next = 0

    def foresee(self, asks: Sequence[Ask]) -> None:
        """The whole trace, in order of arrival, on the host's clock."""
        self._asks = sorted(asks, key=lambda ask: ask.arrival_s)
        self._times, self._next = [ask.arrival_s for ask in self._asks], 0

    def review(self, instances: Sequence[InstanceView], host: HostView, now: float) -> list[Wish]:
        coming = self._next_long(host, now)
        wishes = super().review(instances, host, now)
        if coming is None or host.pending:
            return wishes
        wide = max(degree for degree in host.max_tokens if degree % host.lowest == 0)
        price = host.prices.transformation_s((host.lowest,) * (wide // host.lowest), (wide,), 0)
        merge_s = coming.arrival_s - self.lead * price
        self._wake(merge_s, now)
        if any(view.max_tokens >= coming.length for view in instances):
            if coming.arrival_s - now <= self.gap * price:
                # Somebody will need it: nothing that could hold it is split now.
                return [wish for wish in wishes if not self._holds(wish, coming, instances)]
            return wishes
        if now < merge_s:
            return wishes
        degrees = [d for d in sorted(host.max_tokens) if host.max_tokens[d] >= coming.length]
        merge = self._merge(degrees, instances, host, f"a request of {coming.length} tokens is about to arrive")
        return [merge] if merge is not None else wishes

    def _next_long(self, host: HostView, now: float) -> Ask | None:
        self._next = max(self._next, bisect_right(self._times, now))
        lowest, longest = host.max_tokens[host.lowest], max(host.max_tokens.values())
        while self._next < len(self._asks) and not lowest < self._asks[self._next].length <= longest:
            self._next += 1  # a short one is never of interest, so it is passed over once
        return self._asks[self._next] if self._next < len(self._asks) else None

    def _wake(self, at_s: float, now: float) -> None:
        if at_s > now:
            self.wake_s = at_s if self.wake_s is None else min(self.wake_s, at_s)

    @staticmethod
    def _holds(wish: Wish, coming: Ask, instances: Sequence[InstanceView]) -> bool:
        return not isinstance(wish, Merge) and instances[wish.index].max_tokens >= coming.length  # type: ignore[union-attr]

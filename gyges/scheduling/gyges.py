"""``gyges``: transformation-aware scheduling. The paper's rules (section 5), and refinements, each of which is a switch.

The paper's rules alone are ``gyges:paper``:

1. A request goes to the least loaded instance that can hold it.
2. Where none can, little loaded instances of equal TP degree merge, doubling, until one can.
3. Long requests that follow each other go to an instance that is wide already.
4. A wide instance whose long requests have ended takes no new short ones (it *drains*), and splits once half of its KV cache is
   free.

The refinements (``gyges`` has all, ``gyges+reserve=off`` all but one):

cost        A long request that some wide instance could hold makes others merge all the same, where waiting in that instance's
            line would take longer than the transformation and what it delays. A drained instance splits only where somebody
            gains: the least loaded narrow instance has more work than the split takes. Where all narrow ones are busy, a short
            request goes to a drained one that has less work.
remaining   Load is the work that is left per device, not the number of requests.
spare       No second merge for a long request that a wide instance could hold, if it would leave no instance without a long
            request while those that would merge serve others and nobody waits there: short ones would wait behind long prompts
            everywhere.
room        A wide instance splits once what its requests hold and wait for fills at most half of what its parts will hold, not
            half of its own KV cache: where weights fill its memory, a narrow instance holds much less than its share.
relief      Narrow instances merge for the room that it gives, where requests wait for KV blocks: once their waiting, added up
            since nobody did, is as long as two transformations take from all requests there. So the dearer a merge, the later
            it comes, and nobody waits much longer than what would end it takes (the argument of ski rental). Those with most
            that waits merge, into the lowest degree at which they would fill at most half of the KV cache, else the highest.
hysteresis  A drained instance stays wide for ``dwell`` times the price of a split, so that a short burst causes one cycle.
reserve     One drained instance stays wide while, by the gaps between the long requests so far, the next one is due (twice the
            mean gap), unless the others have work for more than ``patience`` prices of a split.
choice      Instances merge that have the least KV cache to move, not the least load.
partial     Any instances that add up to the lowest TP degree that suffices may merge (TP2 and two TP1 make TP4), and an instance
            that is wider than its requests need splits in part (TP4 into TP2 and two TP1), if it gains as above.

Fairness. A request that waits outside of all instances holds back every merge for those that came after it, and every split. So
what it waits for is the transformations that were under way when it came, and one merge for each request that waited before
it; once in an instance, it is overtaken by nobody who came later (gyges.scheduling.batching). That bound is tested on adversarial
traces (tests/scheduling/test_fairness.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from gyges.errors import UserError
from gyges.scheduling.choose import Key, group_of_any, group_of_equals, least, requests_per_device, work_per_device
from gyges.scheduling.on_demand import under_way
from gyges.scheduling.pressure import short_of_memory
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
from gyges.scheduling.specification import VARIANTS

_GAP_WEIGHT = 0.3  # of the newest gap between long requests in their running mean
_FREE_TO_SPLIT = 0.5  # PAPER.md section 5, rule 4


@POLICIES.register("gyges")
class Gyges(Policy):
    """See the module. ``dwell`` and ``patience``: in prices of the split in question."""

    transforms = True

    def __init__(
        self,
        *,
        cost: bool = True,
        remaining: bool = True,
        spare: bool = True,
        room: bool = True,
        relief: bool = True,
        hysteresis: bool = True,
        reserve: bool = True,
        choice: bool = True,
        partial: bool = True,
        dwell: float = 20.0,
        patience: float = 20.0,
    ) -> None:
        if dwell < 0 or patience < 0:
            raise UserError(f"dwell and patience are 0 or more prices of a split, got {dwell:g} and {patience:g}")
        self.cost, self.hysteresis, self.reserve, self.choice, self.partial = cost, hysteresis, reserve, choice, partial
        self.spare, self.room, self.relief = spare, room, relief
        self.dwell, self.patience = dwell, patience
        self._load: Key = work_per_device if remaining else requests_per_device
        self._waited_s = self._looked_at = 0.0  # request-seconds without room; when that was last added up
        self._crowd = 0
        self._last_long: float | None = None
        self._asked_long: str | None = None
        self._gap: float | None = None
        self._drained_at: dict[tuple[int, ...], float] = {}

    # -- where a request goes -----------------------------------------------------------------------------------------

    def route(self, ask: Ask, instances: Sequence[InstanceView], host: HostView, now: float) -> Decision:
        lowest = host.lowest
        if ask.length <= host.max_tokens[lowest]:
            index = least(instances, ask.length, self._load, lambda view: not _drained(view, lowest))
            if index is None or (self.cost and instances[index].remaining_tokens):
                # Only drained ones are left; or one of them may have less to do than all others.
                index = least(instances, ask.length, self._load)
            return Wait() if index is None else Send(index)
        self._note_long(ask)
        index = least(instances, ask.length, self._load)
        if index is not None:
            return self._shorter_wait(ask, index, instances, host) or Send(index)
        degrees = degrees_for(ask.length, instances, host)
        if isinstance(degrees, Reject):
            return degrees
        if host.ahead or under_way(ask.length, instances, host):
            return Wait()
        return self._merge(degrees, instances, host, f"a request of {ask.length} tokens fits no instance") or Wait()

    def _note_long(self, ask: Ask) -> None:
        """Once for each long request, however often it is asked for."""
        if ask.arrival_s == self._last_long and ask.name == self._asked_long:
            return
        if self._last_long is not None and ask.arrival_s > self._last_long:
            gap = ask.arrival_s - self._last_long
            self._gap = gap if self._gap is None else (1 - _GAP_WEIGHT) * self._gap + _GAP_WEIGHT * gap
        if self._last_long is None or ask.arrival_s >= self._last_long:
            self._last_long, self._asked_long = ask.arrival_s, ask.name

    def _merge(
        self,
        degrees: Sequence[int],
        instances: Sequence[InstanceView],
        host: HostView,
        cause: str,
        key: Key | None = None,
    ) -> Merge | None:
        key = key or (_to_move if self.choice else self._load)
        for degree in degrees:
            if self.partial:
                indices = group_of_any(instances, degree, key)
            else:
                indices = group_of_equals(instances, degree, list(host.max_tokens), key)
            if indices:
                return Merge(indices, cause)
        return None

    def _shorter_wait(self, ask: Ask, index: int, instances: Sequence[InstanceView], host: HostView) -> Merge | None:
        """A merge that serves a long request sooner than the line of instance ``index`` would."""
        if not self.cost or host.ahead or under_way(ask.length, instances, host):
            return None
        view = instances[index]
        waiting_s = host.prices.work_s(view.remaining_tokens, view.degree)
        parts_of_it = (host.lowest,) * (view.degree // host.lowest)
        if sum(parts_of_it) == view.degree and waiting_s <= host.prices.transformation_s(
            parts_of_it, (view.degree,), 0
        ):
            return None  # no merge could be cheaper
        degrees = degrees_for(ask.length, instances, host)
        assert not isinstance(degrees, Reject), "an instance can hold it"
        narrower = [v for v in instances if v.max_tokens < ask.length]
        merge = self._merge(degrees, narrower, host, f"the line for a request of {ask.length} tokens is long")
        if merge is None:
            return None
        parts = [narrower[i] for i in merge.indices]
        degree = sum(part.degree for part in parts)
        price = host.prices.transformation_s(
            tuple(part.degree for part in parts), (degree,), sum(part.held_tokens for part in parts)
        )
        joined_s = host.prices.work_s(sum(part.remaining_tokens for part in parts), degree)
        if 2 * price + joined_s >= waiting_s:  # twice: it will have to split again
            return None
        names = {part.name for part in parts}
        well_served = any(part.running for part in parts) and not any(part.waiting for part in parts)
        if self.spare and well_served and all(v.long_requests for v in instances if v.name not in names):
            return None
        return Merge(tuple(i for i, v in enumerate(instances) if v.name in names), merge.cause)

    # -- when to split ------------------------------------------------------------------------------------------------

    def review(self, instances: Sequence[InstanceView], host: HostView, now: float) -> list[Wish]:
        degrees = sorted(host.max_tokens)
        lowest = degrees[0]
        self.wake_s = None
        if host.pending:
            return []  # the devices that a split would take may be those that somebody waits for
        merge = self._relief(instances, host, now) if self.relief else None
        if merge is not None:
            return [merge]
        wide = [i for i, view in enumerate(instances) if view.degree > lowest and not view.transforming]
        if not wide:
            self._drained_at.clear()
            return []
        drained = [i for i in wide if _drained(instances[i], lowest)]
        known = self._drained_at
        self._drained_at = {instances[i].devices: known.get(instances[i].devices, now) for i in drained}
        kept = max(drained, key=lambda i: (instances[i].max_tokens, -i)) if self.reserve and drained else None
        idle_s = self._least_work_s(instances, host, lowest)
        nobody_narrow = all(view.degree > lowest for view in instances)
        wishes: list[Wish] = []
        for index in wide:
            view = instances[index]
            parts = self._parts(view, degrees, host.max_tokens)
            if not parts or not self._has_room(view, parts, host.max_tokens):
                continue
            price = host.prices.transformation_s((view.degree,), parts, view.held_tokens)
            if view.long_requests == 0:
                due_s = self._due(view, price, is_reserve=index == kept, pressed=idle_s > self.patience * price)
                if due_s > now:
                    self.wake_s = due_s if self.wake_s is None else min(self.wake_s, due_s)
                    continue
            if self.cost and price >= (self._own_work_s(view, host) if nobody_narrow else idle_s):
                continue  # nobody is served sooner by what it sets free than the split itself takes
            wishes.append(Split(index, parts, "no request needs all of the wide instance"))
        return wishes

    def _relief(self, instances: Sequence[InstanceView], host: HostView, now: float) -> Merge | None:
        """A merge for the room that it gives, once those that lack it have waited for as long as it may cost all of them."""
        lowest = host.lowest
        self._waited_s += self._crowd * (now - self._looked_at)
        narrow = [view for view in instances if view.degree == lowest and not view.transforming]
        self._looked_at, self._crowd = now, sum(v.waiting for v in narrow if v.waiting and short_of_memory(v))
        if not self._crowd:
            self._waited_s = 0.0
            return None
        merge, parts, degree = None, narrow, lowest
        for wider in sorted(host.max_tokens)[1:]:
            found = self._merge([wider], narrow, host, "requests wait for KV blocks", _most_waiting)
            if found is not None:
                merge, parts, degree = found, [narrow[i] for i in found.indices], lowest * len(found.indices)
                kept = sum(view.held_tokens + view.waiting_tokens for view in parts)
                if kept <= _FREE_TO_SPLIT * host.max_tokens[degree]:
                    break
        if merge is None:
            return None
        price = host.prices.transformation_s((lowest,) * len(parts), (degree,), sum(v.held_tokens for v in parts))
        # Twice: they will have to split again.
        if self._waited_s < 2 * price * sum(v.running + v.waiting for v in parts):
            return None
        self._waited_s = 0.0
        names = {view.name for view in parts}
        return Merge(tuple(i for i, view in enumerate(instances) if view.name in names), merge.cause)

    def _parts(self, view: InstanceView, degrees: Sequence[int], max_tokens: dict[int, int]) -> tuple[int, ...]:
        """TP degrees that ``view`` may become, of those of the host (ascending); empty if it must stay."""
        lowest = degrees[0]
        if view.long_requests == 0:
            return (lowest,) * (view.degree // lowest) if view.degree % lowest == 0 else ()
        if not self.partial:
            return ()
        for degree in degrees:
            rest = view.degree - degree
            if max_tokens[degree] >= view.longest_tokens and rest > 0 and rest % lowest == 0:
                return (degree, *(lowest,) * (rest // lowest))
        return ()

    def _has_room(self, view: InstanceView, parts: Sequence[int], max_tokens: dict[int, int]) -> bool:
        if not self.room:
            return view.free_tokens >= _FREE_TO_SPLIT * view.max_tokens
        kept = view.held_tokens + view.waiting_tokens
        return kept <= (1 - _FREE_TO_SPLIT) * sum(max_tokens[part] for part in parts)

    def _due(self, view: InstanceView, price: float, *, is_reserve: bool, pressed: bool) -> float:
        """When a drained instance may split."""
        due = self._drained_at[view.devices]
        if self.hysteresis:
            due += self.dwell * price
        if is_reserve and not pressed and self._gap is not None and self._last_long is not None:
            due = max(due, self._last_long + 2 * self._gap)
        return due

    @staticmethod
    def _own_work_s(view: InstanceView, host: HostView) -> float:
        """Of an instance and of what waits outside, where no instance of the lowest degree could take any of it."""
        return host.prices.work_s(view.remaining_tokens + host.pending_tokens, view.degree)

    @staticmethod
    def _least_work_s(instances: Sequence[InstanceView], host: HostView, lowest: int) -> float:
        """Work of the least loaded instance of the lowest degree, seconds; 0 where there is none."""
        least_tokens = None
        for view in instances:
            if view.degree == lowest and not view.transforming:
                tokens = view.remaining_tokens
                least_tokens = tokens if least_tokens is None else min(least_tokens, tokens)
        return host.prices.work_s(least_tokens, lowest) if least_tokens else 0.0


def _drained(view: InstanceView, lowest: int) -> bool:
    """Wide, and no long request is left there."""
    return view.degree > lowest and view.long_requests == 0


def _to_move(view: InstanceView) -> float:
    return view.held_tokens


def _most_waiting(view: InstanceView) -> float:
    return -view.waiting_tokens


PAPER = dict.fromkeys(
    ("cost", "remaining", "spare", "room", "relief", "hysteresis", "reserve", "choice", "partial"), False
)
VARIANTS.add("gyges:paper", PAPER)

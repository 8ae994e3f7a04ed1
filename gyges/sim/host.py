"""One simulated host: instances, a policy, requests that wait outside of all instances. Torch-free, deterministic, no clock.

What gyges.engine.controller does with processes, this does with :class:`gyges.sim.instance.SimInstance`. At one moment, in this
order: steps that end then are taken in, requests that arrive then are placed, the policy reviews, instances that stand still
begin their next step.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import cast

from gyges.errors import UserError
from gyges.metrics.records import TimelineSample, TransformationEvent
from gyges.scheduling.batching import BatchLimits
from gyges.scheduling.routing import (
    Ask,
    HostView,
    InstanceView,
    Merge,
    Reject,
    Restart,
    RoutingPolicy,
    Send,
    Split,
)
from gyges.sim.changes import NEVER, Change, Phase, Restarting, fits, move
from gyges.sim.hosted import Hosted
from gyges.sim.instance import SimInstance
from gyges.sim.sequence import SimSequence, by_order
from gyges.sim.system import System, SystemPrices, check_host

NO_INSTANCE = "none"  # of a sample of devices that no instance has
_ROUNDS = 1000  # of changes at one moment, before a policy is said to go round in circles


class SimHost:
    """``degrees``: of the instances at first.   first_device, prefix: of their devices and names, so that hosts differ.

    At each moment that concerns the host the loop calls ``take_in``, ``offer`` and ``settle``, in this order, then ``next_s``.
    Raises UserError: limits under which a decode could be left out of a step, no room, a policy that has nothing to do.
    """

    def __init__(
        self,
        system: System,
        degrees: Sequence[int],
        limits: BatchLimits,
        policy: RoutingPolicy,
        *,
        first_device: int = 0,
        prefix: str = "i",
    ) -> None:
        check_host(system, degrees, limits, policy)
        self.system, self.limits, self.policy, self.prefix = system, limits, policy, prefix
        self.devices = tuple(range(first_device, first_device + sum(degrees)))
        self.now = 0.0
        self.instances: list[Hosted] = []
        self.retired: list[Hosted] = []
        self.pending: list[SimSequence] = []
        self.events: list[TransformationEvent] = []
        self.parts: dict[str, float] = {}  # seconds of all transformations, by part
        self.samples: list[TimelineSample] = []  # around transformations; whoever runs the host adds those between
        self.unfinished = self.completed = self.rejected = 0  # requests
        self.steps_taken_in = 0  # steps and jumps
        size = limits.block_size
        self.max_tokens = {d: system.kv_tokens[d] // size * size for d in system.degrees if d <= len(self.devices)}
        self._prices = SystemPrices(system)
        self._quiet = HostView(self.max_tokens, prices=self._prices)
        self._ready: list[tuple[float, int, Hosted]] = []  # (end of the steps under way, number of the instance, it)
        self._touched: dict[Hosted, None] = {}
        self._changes: list[Change] = []
        self._restart: Restarting | None = None
        self._changed = False  # something for the policy to review
        self._woken_s: float | None = None  # the last of its times at which the policy was asked
        self._number = 0
        self._seat(degrees, self.devices)

    # -- the loop's side ----------------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Nobody is served, and nothing is under way; the policy may want to be woken all the same."""
        return not self.unfinished and not self._changes and (self._restart is None or self._restart.until == NEVER)

    @property
    def next_s(self) -> float:
        """When something happens next by itself; infinite: never."""
        ready = self._ready
        while ready and ready[0][2].sim.until != ready[0][0]:
            heapq.heappop(ready)  # it was cut
        at = ready[0][0] if ready else NEVER
        if self._changes:
            at = min(at, min(change.until for change in self._changes))
        if self._restart is not None:
            at = min(at, self._restart.until)
        wake_s = self.policy.wake_s
        if wake_s is not None and wake_s != self._woken_s:
            at = min(at, max(wake_s, self.now))
        return at

    def take_in(self, now: float) -> list[SimSequence]:
        """Steps that end now. Returns the requests that are complete."""
        self.now = now
        complete: list[SimSequence] = []
        ready = self._ready
        while ready and ready[0][0] <= now:
            end_s, _, hosted = heapq.heappop(ready)
            if hosted.sim.until != end_s:
                continue  # it was cut
            self.steps_taken_in += 1
            for sequence in hosted.sim.end():
                hosted.leave(sequence)
                sequence.instance = hosted.name
                complete.append(sequence)
            self._touched[hosted] = None
        if complete:
            self.unfinished -= len(complete)
            self.completed += len(complete)
            self._changed = True
        wake_s = self.policy.wake_s
        if wake_s is not None and wake_s != self._woken_s and wake_s <= now:
            self._woken_s = wake_s
            self._changed = True
        return complete

    def offer(self, sequence: SimSequence) -> None:
        """A request that arrives now, or comes from another host; ``settle`` places it."""
        self.unfinished += 1
        self.pending.append(sequence)
        self._changed = True

    def settle(self, now: float) -> None:
        """Everything that follows from what has been taken in and offered; instances that stand still begin their next step."""
        self.now = now
        for _ in range(_ROUNDS):
            for change in list(self._changes):
                self._advance(change)
            if self._restart is not None:
                self._advance_restart(self._restart)
            if not self._changed:
                break
            self._changed = False
            if self._restart is None:
                self._place_all()
                self._review()
        else:
            raise UserError("the policy changes instances for ever at one moment; give the system a price for it")
        touched, self._touched = self._touched, {}
        for hosted in touched:
            if hosted.start(now):
                heapq.heappush(self._ready, (hosted.sim.until, hosted.number, hosted))

    def sample(self, now: float) -> list[TimelineSample]:
        """Every instance, and the devices that none has."""
        found = [hosted.sample(now) for hosted in self.instances]
        if sum(sample.tp for sample in found) == len(self.devices):
            return found
        held = {device for sample in found for device in sample.devices}
        bare = tuple(device for device in self.devices if device not in held)
        return [*found, TimelineSample(now, self.prefix.removesuffix("i") + NO_INSTANCE, bare, 0, 0, 0, 0, 0)]

    @property
    def ever(self) -> list[Hosted]:
        """All instances that there have been."""
        return [*self.retired, *self.instances]

    # -- requests -----------------------------------------------------------------------------------------------------

    def _place_all(self) -> None:
        """Those that wait, in order of arrival."""
        asked = self.pending
        if not asked:
            return
        if len(asked) > 1:
            asked.sort(key=by_order)
        self.pending = []
        later, tokens = len(asked), sum(sequence.missing for sequence in asked)
        before = 0  # tokens of those that wait on
        for sequence in asked:
            later -= 1
            tokens -= sequence.missing
            ahead = len(self.pending)
            if ahead + later:
                view = HostView(self.max_tokens, ahead + later, ahead, before + tokens, self._prices)
            else:
                view = self._quiet
            self._place(sequence, view)
            if len(self.pending) > ahead:
                before += sequence.missing

    def _place(self, sequence: SimSequence, view: HostView) -> None:
        if not self.instances or self._restart is not None:
            self.pending.append(sequence)
            return
        ask = Ask(sequence.max_length, sequence.missing, sequence.arrival_s, f"r{sequence.order}")
        decision = self.policy.route(ask, self._views, view, self.now)
        if isinstance(decision, Send):
            self._give(sequence, self.instances[decision.index])
        elif isinstance(decision, Reject):
            sequence.reason = decision.reason
            self.unfinished -= 1
            self.rejected += 1
        else:
            if isinstance(decision, Merge):
                self._start([self.instances[i] for i in decision.indices], (), decision.cause)
            elif isinstance(decision, Restart):
                self._restart = Restarting(decision, self.now)
            self.pending.append(sequence)

    @property
    def _views(self) -> Sequence[InstanceView]:
        return cast(Sequence[InstanceView], self.instances)  # the same attributes, read when asked for

    def _give(self, sequence: SimSequence, hosted: Hosted) -> None:
        sim = hosted.sim
        if not sim.fits_alone(sequence.max_length):
            self.pending.append(sequence)
            return
        hosted.enter(sequence)
        if sim.add(sequence, self.now):
            heapq.heappush(self._ready, (sim.until, hosted.number, hosted))
        elif sim.busy is None:
            self._touched[hosted] = None

    def _review(self) -> None:
        if not self.policy.transforms or not self.instances or self._restart is not None:
            return
        waiting = self.pending
        view = self._quiet
        if waiting:
            view = HostView(self.max_tokens, len(waiting), 0, sum(s.missing for s in waiting), self._prices)
        instances = list(self.instances)  # indices are of now
        for wish in self.policy.review(self._views, view, self.now):
            if isinstance(wish, Restart):
                self._restart = Restarting(wish, self.now)
            elif isinstance(wish, Split):
                self._start([instances[wish.index]], wish.degrees, wish.cause)
            else:
                self._start([instances[i] for i in wish.indices], (), wish.cause)

    # -- transformations ----------------------------------------------------------------------------------------------

    def _start(self, sources: list[Hosted], after: tuple[int, ...], cause: str) -> None:
        """``after`` empty: a merge. What cannot be begun is dropped, as the engine does."""
        after = after or (sum(source.degree for source in sources),)
        if any(source.change is not None for source in sources) or sum(after) != sum(s.degree for s in sources):
            return
        for degree in after:
            if degree not in self.max_tokens:
                known = ", ".join(f"TP{d}" for d in self.max_tokens)
                raise UserError(f"the policy wants TP{degree}, and this system takes {known}; add it to the degrees")
        if len(after) > 1:
            room = max(self.max_tokens[degree] for degree in after)
            if any(sequence.max_length > room for sequence in sources[0].sim.running):
                return
        change = Change(sources, after, cause, self.now)
        self._changes.append(change)
        for source in sources:
            source.change, source.becoming = change, after
            self._hold(source)

    def _hold(self, hosted: Hosted) -> None:
        """It finishes the step that is under way and begins no other."""
        hosted.held = True
        if hosted.sim.cut(self.now):
            heapq.heappush(self._ready, (hosted.sim.until, hosted.number, hosted))

    def _let_go(self, hosted: Hosted) -> None:
        hosted.held = False
        self._touched[hosted] = None

    def _advance(self, change: Change) -> None:
        """Through all phases that are over."""
        now = self.now
        if change.phase is Phase.GATHER and change.gathered and not self._begin(change):
            return
        if change.phase is Phase.AHEAD and change.is_over(now):
            change.stop_beside()
            change.phase, change.until = Phase.STOP, NEVER
            for source in change.sources:
                self._hold(source)
        if change.phase is Phase.STOP and change.gathered:
            self._pause(change)
        if change.phase is Phase.PAUSE and change.until <= now:
            self._resume(change)
        if change.phase is Phase.BEHIND and change.is_over(now):
            change.stop_beside()
            for result in change.results:
                if result.sim.cut(now):
                    heapq.heappush(self._ready, (result.sim.until, result.number, result))
            self._finish(change)

    def _begin(self, change: Change) -> bool:
        """The sources stand still. What would not fit is called off, and nothing has changed."""
        size = self.limits.block_size
        if not fits(change, [self.max_tokens[degree] // size for degree in change.after]):
            self._changes.remove(change)
            for source in change.sources:
                source.change, source.becoming = None, ()
                self._let_go(source)
            return False
        switch = self.system.switch(change.before, change.after, [source.held_tokens for source in change.sources])
        change.begin(self.now, switch)
        self.samples += self.sample(self.now)
        change.phase = Phase.STOP
        if switch.ahead_s:
            change.phase = Phase.AHEAD
            change.start_beside(self.now, switch.ahead_s)
            for source in change.sources:
                self._let_go(source)
                if not change.merges:
                    source.max_tokens = max(self.max_tokens[degree] for degree in change.after)
        return True

    def _pause(self, change: Change) -> None:
        assert change.switch is not None
        change.note_last_tokens()
        change.phase, change.until = Phase.PAUSE, self.now + change.switch.pause_s
        if change.merges:
            self._replace(change)
            for result in change.results:
                result.held = True

    def _resume(self, change: Change) -> None:
        assert change.switch is not None
        if not change.merges:
            self._replace(change)
        switch = change.switch
        change.phase = Phase.BEHIND
        change.start_beside(self.now, switch.behind_s)
        for result in change.results:
            result.watched = change if result.sim.decoding else None
            self._let_go(result)

    def _replace(self, change: Change) -> None:
        """Results take the place of the sources, and their requests."""
        assert change.switch is not None
        results, at = [], 0
        for degree in change.after:
            results.append(self._instance(change.devices[at : at + degree]))
            at += degree
        homeless = move(change, [result.sim for result in results], keeps_kv=change.switch.keeps_kv)
        for result in results:
            result.change, result.becoming = change, change.after
            for sequence in (*result.sim.running, *result.sim.waiting):
                result.enter(sequence)
        change.results = results
        self.instances = [hosted for hosted in self.instances if hosted not in change.sources] + results
        self.retired += change.sources
        self.pending += homeless
        self.samples += self.sample(self.now)
        self._changed = True

    def _finish(self, change: Change) -> None:
        self._changes.remove(change)
        for result in change.results:
            result.change, result.becoming = None, ()
        change.record = change.event(self.now)
        self.events.append(change.record)
        assert change.switch is not None
        for part, seconds in change.switch.parts.items():
            self.parts[part] = self.parts.get(part, 0.0) + seconds
        self._changed = True

    def _instance(self, devices: tuple[int, ...]) -> Hosted:
        degree, size = len(devices), self.limits.block_size
        sim = SimInstance(self.system.costs[degree], self.limits, self.max_tokens[degree] // size)
        name = f"{self.prefix}{self._number}"
        self._number += 1
        return Hosted(self, sim, self._number, name, devices, self._quiet.max_tokens[self._quiet.lowest])

    def _seat(self, degrees: Sequence[int], devices: tuple[int, ...]) -> None:
        at = 0
        for degree in degrees:
            self.instances.append(self._instance(devices[at : at + degree]))
            at += degree

    # -- restarts -----------------------------------------------------------------------------------------------------

    def _advance_restart(self, restart: Restarting) -> None:
        if restart.until == NEVER:
            if self._changes or any(hosted.requests for hosted in self.instances):
                return
            restart.start_s, restart.before = self.now, tuple(hosted.degree for hosted in self.instances)
            restart.devices = tuple(sorted(d for hosted in self.instances for d in hosted.devices))
            restart.until = self.now + self.system.restart(restart.before, restart.wish.degrees).pause_s
            self.samples += self.sample(self.now)
            self.retired += self.instances
            self.instances = []
        if restart.until <= self.now:
            self._seat(restart.wish.degrees, restart.devices)
            self.events.append(restart.event(self.now))
            self.samples += self.sample(self.now)
            self._restart, self._changed = None, True

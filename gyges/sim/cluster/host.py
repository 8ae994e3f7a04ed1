"""A host of a cluster: what its router knows of it, and what becomes of it when devices fail, as gyges.engine.recovery does it.

An instance that loses a device is gone: its requests are computed anew from their tokens, on whatever the host has left, and a
transformation that it was part of is called off. Its other devices read what weights they lack, and serve again as instances of
the lowest TP degree. So do devices that are back; a whole host is what it was at first.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Sequence

from gyges.scheduling.batching import BatchLimits
from gyges.scheduling.routing import HostView, RoutingPolicy
from gyges.sim.changes import NEVER, Change, Phase
from gyges.sim.cluster.routers import HostLoad
from gyges.sim.host import SimHost
from gyges.sim.hosted import Hosted
from gyges.sim.instance import SimInstance
from gyges.sim.sequence import SimSequence, by_order
from gyges.sim.system import System


class ClusterHost(SimHost):
    """Host ``index`` of hosts with ``degrees`` each; its devices and the names of its instances (``h3.i0``) follow from it."""

    def __init__(
        self, system: System, degrees: Sequence[int], limits: BatchLimits, policy: RoutingPolicy, index: int
    ) -> None:
        super().__init__(system, degrees, limits, policy, first_device=index * sum(degrees), prefix=f"h{index}.i")
        self._at_first = tuple(degrees)
        self._down: set[int] = set()
        self._spare: list[int] = []  # that work, and are too few for an instance
        self._coming: list[tuple[float, tuple[int, ...]]] = []  # devices that are ready to serve then
        self._lowest = min(self.max_tokens)
        self.load = HostLoad(index, len(self.devices), self.max_tokens[self._lowest], 0)
        self._note_devices()

    # -- the loop's side ----------------------------------------------------------------------------------------------

    def up_at(self, now: float) -> bool:
        """Whether the devices that work suffice for an instance; those count that are back by then and not seated yet."""
        due = sum(device in self._down for at, devices in self._coming if at <= now for device in devices)
        return len(self.devices) - len(self._down) + due >= self._lowest

    @property
    def whole(self) -> bool:
        """Whether all of its devices work."""
        return not self._down

    @property
    def back_s(self) -> float:
        """When the first devices that are not ready will be; infinite: never."""
        return min((at for at, _ in self._coming), default=NEVER)

    @property
    def next_s(self) -> float:
        return min(super().next_s, self.back_s) if self._coming else super().next_s

    def take_in(self, now: float) -> list[SimSequence]:
        complete = super().take_in(now)
        for sequence in complete:
            self.load.count(sequence.max_length, -1)
        return complete

    def offer(self, sequence: SimSequence) -> None:
        self.load.count(sequence.max_length, 1)
        super().offer(sequence)

    def settle(self, now: float) -> None:
        if self._coming:
            self.now = now
            due = [device for at, devices in self._coming if at <= now for device in devices]
            self._coming = [each for each in self._coming if each[0] > now]
            if due:
                self._come(due)
        super().settle(now)

    def _place(self, sequence: SimSequence, view: HostView) -> None:
        super()._place(sequence, view)
        if not sequence.reason:
            return
        if self._coming:  # what it lacks may be on its way
            sequence.reason = ""
            self.unfinished += 1
            self.rejected -= 1
            self.pending.append(sequence)
        else:
            self.load.count(sequence.max_length, -1)

    # -- failures -----------------------------------------------------------------------------------------------------

    def lose(self, devices: Collection[int], back_s: float | None, why: str) -> list[SimSequence]:
        """These devices fail now; between ``take_in`` and ``settle``. ``back_s``: when they serve again; None: never.

        Returns the requests that this host can do nothing for: all, if no device is left; else those that are too long for what
        the devices that are left could become, together, at best.
        """
        gone = [device for device in devices if device not in self._down]
        self._down.update(gone)
        self._spare = [device for device in self._spare if device not in self._down]
        self._coming = [(at, tuple(d for d in each if d not in gone)) for at, each in self._coming]
        self._stop_restart()
        hit = [hosted for hosted in self.instances if not self._down.isdisjoint(hosted.devices)]
        for hosted in hit:
            if hosted.change is not None:
                self._call_off(hosted.change, why)
        for hosted in hit:
            self.pending += self._break(hosted)
            left = tuple(device for device in hosted.devices if device not in self._down)
            if left:
                self._coming.append((self.now + self._reading_s(hosted.degree), left))
        if gone and back_s is not None:
            self._coming.append((back_s, tuple(gone)))
        self._coming = [(at, each) for at, each in self._coming if each]
        self._note_devices()
        self.samples += self.sample(self.now)
        self._changed = True
        return self._give_away()

    def _note_devices(self) -> None:
        """What the router sees of the devices that work, those that are being made ready included."""
        devices = len(self.devices) - len(self._down)
        self.load.devices = max(devices, 1)
        self.load.wide_tokens = max((t for d, t in self.max_tokens.items() if d <= devices), default=0)
        self.load.per_device = self.load.tokens / self.load.devices

    def _give_away(self) -> list[SimSequence]:
        room = self.load.wide_tokens
        given = sorted((s for s in self.pending if s.max_length > room), key=by_order)
        self.pending = [s for s in self.pending if s.max_length <= room]
        self.unfinished -= len(given)
        for sequence in given:
            self.load.count(sequence.max_length, -1)
        return given

    def _reading_s(self, degree: int) -> float:
        """Until what is left of an instance has read the weights that its devices lack at the lowest degree."""
        if degree == self._lowest:
            return 0.0
        return self.system.restart((degree,), (self._lowest,)).parts.get("weights", 0.0)

    def _break(self, hosted: Hosted) -> list[SimSequence]:
        """The instance is gone. Returns its requests, to be computed anew."""
        running, waiting = break_off(hosted.sim, self.now)
        for sequence in (*running, *waiting):
            hosted.leave(sequence)
        for sequence in running:
            sequence.start_over()
        self.instances.remove(hosted)
        self.retired.append(hosted)
        self._touched.pop(hosted, None)
        return [*running, *waiting]

    def _call_off(self, change: Change, why: str) -> None:
        """What there is at the moment serves on as it is."""
        self._changes.remove(change)
        if change.phase in (Phase.AHEAD, Phase.BEHIND):
            change.stop_beside()
        if change.switch is not None:
            event = change.event(self.now)
            event.error = why
            self.events.append(event)
        for hosted in (*change.sources, *change.results):
            if hosted in self.instances:
                hosted.change, hosted.becoming, hosted.watched = None, (), None
                hosted.max_tokens = hosted.sim.total_blocks * self.limits.block_size
                self._let_go(hosted)
                if hosted.sim.cut(self.now):
                    heapq.heappush(self._ready, (hosted.sim.until, hosted.number, hosted))

    def _stop_restart(self) -> None:
        """A restart of the host in which a device fails: what is left of it comes back when it would have been over."""
        restart, self._restart = self._restart, None
        if restart is not None and restart.until != NEVER:
            left = tuple(device for device in restart.devices if device not in self._down)
            self._coming.append((restart.until, left))

    def _come(self, devices: Sequence[int]) -> None:
        """They are ready to serve."""
        self._down.difference_update(devices)
        ready = sorted([*self._spare, *devices])
        if len(ready) == len(self.devices):
            self._spare = []
            self._seat(self._at_first, self.devices)
        else:
            whole = len(ready) - len(ready) % self._lowest
            self._spare = ready[whole:]
            self._seat((self._lowest,) * (whole // self._lowest), tuple(ready[:whole]))
        self._note_devices()
        self.samples += self.sample(self.now)
        self._changed = True


def break_off(sim: SimInstance, now: float) -> tuple[list[SimSequence], list[SimSequence]]:
    """``sim.release()`` of an instance that is lost now: tokens that were sampled stay known, the step under way is lost."""
    if done := sim.done(now):
        assert sim.busy is not None
        sim.busy = sim.busy[:done].copy()
        complete = sim.end()
        assert not complete, "a jump ends where a sequence does"
        return sim.release()
    sim.busy, sim.first_end, sim.until = None, NEVER, NEVER
    rows, sim._rows = sim._rows, []
    sim._partials = sorted([*sim._partials, *(sequence for sequence, _ in rows)], key=by_order)
    return sim.release()

"""One living instance of a simulated host: what a policy may see of it, read when asked for.

Policies get these in place of :class:`gyges.scheduling.routing.InstanceView`: the same attributes, of this moment. Most of them
are never looked at, so none is computed before it is.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Protocol

from gyges.metrics.records import TimelineSample
from gyges.sim.instance import SimInstance
from gyges.sim.sequence import SimSequence

if TYPE_CHECKING:
    from gyges.sim.changes import Change


class Clock(Protocol):
    """Whose ``now`` is this moment, seconds."""

    now: float


class Hosted:
    """``number``: unique on its host, ascending.   lowest_tokens: what the host's lowest degree holds.

    held: begins no step.   change: the transformation that it is part of.   max_tokens: what one request may have; less than the
    instance holds while it is about to split.   watched: a transformation that waits for its first step's end.
    """

    __slots__ = (
        "_clock",
        "_longest",
        "_lowest_tokens",
        "_members",
        "becoming",
        "change",
        "degree",
        "devices",
        "held",
        "long_requests",
        "max_tokens",
        "name",
        "number",
        "sim",
        "watched",
    )

    def __init__(
        self, clock: Clock, sim: SimInstance, number: int, name: str, devices: tuple[int, ...], lowest_tokens: int
    ) -> None:
        self._clock, self.sim, self.number, self.name, self.devices = clock, sim, number, name, devices
        self.degree = len(devices)
        self.max_tokens = sim.total_blocks * sim.limits.block_size
        self.held = False
        self.change: Change | None = None
        self.watched: Change | None = None
        self.becoming: tuple[int, ...] = ()
        self.long_requests = 0
        self._lowest_tokens = lowest_tokens
        self._members: set[int] = set()
        self._longest: list[tuple[int, int]] = []

    # -- an InstanceView ----------------------------------------------------------------------------------------------

    @property
    def transforming(self) -> bool:
        return self.change is not None

    @property
    def running(self) -> int:
        return len(self.sim.running)

    @property
    def waiting(self) -> int:
        return len(self.sim.waiting)

    @property
    def _free_blocks(self) -> int:
        sim, now = self.sim, self._clock.now
        done = sim.done(now)
        if done and sim.busy is not None and sim.busy[done - 1] == now:
            done -= 1  # that step ends at this very moment, and the next one has taken nothing yet
        return sim.free_at(done)

    @property
    def remaining_tokens(self) -> int:
        sim, now = self.sim, self._clock.now
        if now < sim.first_end:  # nearly always; policies look at this more often than at all else
            return sim.remaining_tokens
        return sim.remaining_at(sim.done(now))

    @property
    def free_tokens(self) -> int:
        return self._free_blocks * self.sim.limits.block_size

    @property
    def held_tokens(self) -> int:
        return (self.sim.total_blocks - self._free_blocks) * self.sim.limits.block_size

    @property
    def prefill_tokens(self) -> int:
        return self.sim.prefill_tokens

    @property
    def waiting_tokens(self) -> int:
        return self.sim.waiting_tokens

    @property
    def longest_tokens(self) -> int:
        longest, members = self._longest, self._members
        while longest and longest[0][1] not in members:
            heapq.heappop(longest)
        return -longest[0][0] if longest else 0

    def start(self, now: float) -> bool:
        """Begins the next step, or jump, if it stands still and may; whether there was one."""
        sim = self.sim
        if self.held or sim.busy is not None:
            return False
        if sim.pace is not None and self.change is not None:
            told = self.change.note_busy if sim.running or sim.waiting else self.change.note_idle
            told(now, sim.pace, sim)
        if not sim.begin(now):
            return False
        if self.watched is not None:
            self.watched.note_first_step(sim.first_end)
            self.watched = None
        return True

    # -- requests -----------------------------------------------------------------------------------------------------

    def enter(self, sequence: SimSequence) -> None:
        """It is here from now on, running or waiting."""
        length = sequence.max_length
        self._members.add(sequence.order)
        heapq.heappush(self._longest, (-length, sequence.order))
        self.long_requests += length > self._lowest_tokens

    def leave(self, sequence: SimSequence) -> None:
        self._members.remove(sequence.order)
        self.long_requests -= sequence.max_length > self._lowest_tokens

    @property
    def requests(self) -> int:
        """How many are here."""
        return len(self._members)

    def sample(self, now: float) -> TimelineSample:
        sim = self.sim
        done = sim.done(now)
        return TimelineSample(
            now,
            self.name,
            self.devices,
            self.degree,
            len(sim.running),
            len(sim.waiting),
            sim.total_blocks - sim.free_at(done),
            sim.total_blocks,
            output_tokens=sim.output_at(done),
            prompt_tokens=sim.prompt_tokens,
            preemptions=sim.preemptions,
        )

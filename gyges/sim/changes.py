"""A merge, a split or a restart as a simulated host carries it out; what it costs comes from a system (gyges.sim.system).

gather   the sources finish the steps that are under way
ahead    they serve on, slower, while something is copied            (only where the switch has such a part)
stop     they finish their steps again
pause    nobody serves. What a merge makes is there from the beginning of it, as in the engine, and takes requests; what
         a split makes is there when it is over
behind   what came of it serves, slower                              (only where the switch has such a part)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from gyges.metrics.records import TransformationEvent
from gyges.scheduling.batching import Sequence as Seq
from gyges.scheduling.homes import choose_homes
from gyges.scheduling.routing import Restart
from gyges.sim.hosted import Hosted
from gyges.sim.instance import SimInstance
from gyges.sim.sequence import Pace, SimSequence, by_order
from gyges.sim.system import Switch

NEVER = float("inf")


class Phase(Enum):
    GATHER = "gather"
    AHEAD = "ahead"
    STOP = "stop"
    PAUSE = "pause"
    BEHIND = "behind"


@dataclass(eq=False)
class Change:
    """One merge or split under way. ``after``: TP degrees.   until: when a phase that takes a known time is over.

    start_s: when the sources had first finished their steps.   token_s: the last moment at which all that were decoding had just
    had a token.   pause_s: longest time that a decoding request stood still, known after the first steps of ``results``.
    record: what the timeline holds, once it is over.
    """

    sources: list[Hosted]
    after: tuple[int, ...]
    cause: str
    asked_s: float
    phase: Phase = Phase.GATHER
    switch: Switch | None = None
    until: float = NEVER
    start_s: float = 0.0
    token_s: float | None = None
    pause_s: float = 0.0
    results: list[Hosted] = field(default_factory=list)
    record: TransformationEvent | None = None
    _steps: int = 0
    _tokens: int = 0

    @property
    def before(self) -> tuple[int, ...]:
        return tuple(source.degree for source in self.sources)

    @property
    def merges(self) -> bool:
        return len(self.after) == 1

    @property
    def devices(self) -> tuple[int, ...]:
        """In the order in which what comes of it takes them."""
        return tuple(sorted(device for source in self.sources for device in source.devices))

    @property
    def serving(self) -> list[Hosted]:
        """Who serves beside what goes on."""
        return self.sources if self.phase is Phase.AHEAD else self.results

    def start_beside(self, now: float, seconds: float) -> None:
        """Phase ahead or behind begins; everybody of :attr:`serving` stands still."""
        assert self.switch is not None
        pace = self.switch.pace if seconds and len(self.serving) == 1 else None
        self.until = now + seconds if pace is None else NEVER
        for hosted in self.serving:
            sim = hosted.sim
            sim.slowdown = self.switch.slowdown if seconds and pace is None else 1.0
            sim.pace, sim.pace_left = pace, pace.steps if pace is not None else 0

    def is_over(self, now: float) -> bool:
        """Phase ahead or behind."""
        return self.until <= now or any(h.sim.pace is not None and h.sim.pace_left <= 0 for h in self.serving)

    def stop_beside(self) -> None:
        for hosted in self.serving:
            hosted.sim.slowdown, hosted.sim.pace = 1.0, None

    def note_idle(self, now: float, pace: Pace, sim: SimInstance) -> None:
        """Nobody is served beside it: its steps take as long as their copies."""
        if self.until == NEVER:
            self.until = now + sim.pace_left * pace.least_s

    def note_busy(self, now: float, pace: Pace, sim: SimInstance) -> None:
        """Somebody is served from now on: what is left goes by that one's steps again."""
        if self.until != NEVER:
            sim.pace_left = max(1, math.ceil((self.until - now) / pace.least_s - 1e-6))
            self.until = NEVER

    @property
    def gathered(self) -> bool:
        return all(source.sim.busy is None for source in self.sources)

    def begin(self, now: float, switch: Switch) -> None:
        """The sources have finished their steps for the first time."""
        self.switch, self.start_s = switch, now
        self._steps = -sum(source.sim.steps for source in self.sources)
        self._tokens = -sum(source.sim.output_tokens for source in self.sources)

    def note_last_tokens(self) -> None:
        """Before the pause, once the sources have finished their steps."""
        ends = [float(s.sim.ends[-1][-1]) for s in self.sources if s.sim.decoding and s.sim.ends]
        self.token_s = min(ends, default=None)

    def note_first_step(self, end_s: float) -> None:
        """Of one of the results."""
        if self.token_s is not None:
            self.pause_s = max(self.pause_s, end_s - self.token_s)
        if self.record is not None:  # it was over before they began
            self.record.pause_s = self.pause_s

    def event(self, now: float) -> TransformationEvent:
        """What the timeline holds of it, once it is over."""
        assert self.switch is not None, "what has not begun is not over"
        done = [(result.sim, result.sim.done(now)) for result in self.results]
        steps = sum(sim.steps + count for sim, count in done) + sum(s.sim.steps for s in self.sources)
        tokens = sum(sim.output_at(count) for sim, count in done) + sum(s.sim.output_tokens for s in self.sources)
        return TransformationEvent(
            kind="merge" if self.merges else "split",
            devices=self.devices,
            start_s=self.start_s,
            end_s=now,
            bytes_moved=self.switch.bytes_moved,
            pause_s=self.pause_s,
            cause=self.cause,
            asked_s=self.asked_s,
            before=self.before,
            after=self.after,
            overlap=self.switch.ahead_s + self.switch.behind_s > 0,
            steps=self._steps + steps,
            tokens=self._tokens + tokens,
            extra_bytes=self.switch.extra_bytes,
        )


@dataclass(eq=False)
class Restarting:
    """The host finishes what it has, and is then gone until ``until``."""

    wish: Restart
    asked_s: float
    until: float = NEVER
    start_s: float = 0.0
    before: tuple[int, ...] = ()
    devices: tuple[int, ...] = ()

    def event(self, now: float) -> TransformationEvent:
        after = self.wish.degrees
        return TransformationEvent(
            kind="merge" if max(after) > max(self.before) else "split",
            devices=self.devices,
            start_s=self.start_s,
            end_s=now,
            cause=self.wish.cause,
            asked_s=self.asked_s,
            before=self.before,
            after=after,
            overlap=False,
            stopped="the host was restarted",
        )


# -- who goes where -----------------------------------------------------------------------------------------------------


def fits(change: Change, blocks: Sequence[int]) -> bool:
    """Whether the running requests of the sources, with their KV cache, have room in instances of so many ``blocks``."""
    if change.merges:
        return sum(source.sim.total_blocks - source.sim.free_at(0) for source in change.sources) <= blocks[0]
    (source,) = change.sources
    return _homes(source.sim, source.sim.running, blocks) is not None


def move(change: Change, results: Sequence[SimInstance], *, keeps_kv: bool) -> list[SimSequence]:
    """Takes all sequences from the sources to ``results``; returns those that none of these can ever hold.

    Running ones that find no room, and all of them where the KV cache is lost, are computed anew: the latest first.
    """
    lost: list[SimSequence] = []
    if not keeps_kv:
        for source in change.sources:
            while source.sim.running:
                source.sim.preempt(next(reversed(source.sim.running)))
    if change.merges:
        parts = [source.sim.release() for source in change.sources]
        running = sorted((s for part, _ in parts for s in part), key=by_order)
        waiting = sorted((s for _, part in parts for s in part), key=by_order)
        results[0].adopt(running, waiting)
        return lost
    (source,) = change.sources
    homes = _homes(source.sim, source.sim.running, [each.total_blocks for each in results])
    while homes is None:
        source.sim.preempt(next(reversed(source.sim.running)))
        homes = _homes(source.sim, source.sim.running, [each.total_blocks for each in results])
    running, waiting = source.sim.release()
    for index, result in enumerate(results):
        result.adopt([s for s in running if homes[s.order] == index], [])
    degrees = change.after
    for sequence in waiting:
        fitting = [i for i, result in enumerate(results) if result.fits_alone(sequence.max_length)]
        if fitting:
            results[min(fitting, key=lambda i: results[i].remaining_tokens / degrees[i])].adopt([], [sequence])
        else:
            lost.append(sequence)
    return lost


def _homes(sim: SimInstance, running: Iterable[SimSequence], blocks: Sequence[int]) -> dict[int, int] | None:
    """By order; the engine's choice (gyges.scheduling.homes)."""
    known = {
        Seq(s.order, s.prompt_tokens, s.max_tokens, s.known, blocks=[0] * sim.blocks_of(s)): s.order for s in running
    }
    homes = choose_homes(list(known), blocks, sim.limits.block_size)
    return None if homes is None else {known[sequence]: home for sequence, home in homes.items()}

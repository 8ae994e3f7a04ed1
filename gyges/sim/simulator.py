"""The event loop: arrivals, and hosts that go from event to event (gyges.sim.host). Torch-free, deterministic, no clock."""

from __future__ import annotations

import gc
import heapq
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

from gyges.metrics.records import RequestRecord, TimelineSample, TransformationEvent
from gyges.scheduling.batching import BatchLimits
from gyges.scheduling.routing import Ask, RoutingPolicy
from gyges.sim.host import SimHost
from gyges.sim.progress import OnProgress, progress_of
from gyges.sim.records import record_of
from gyges.sim.sequence import SimSequence
from gyges.sim.system import System

_SAMPLES = 500  # of each instance, over the arrivals; fewer where there are very many instances
_MOST_SAMPLES = 60_000
_NEVER = float("inf")


class Front(Protocol):
    """What stands before the hosts. ``next_s``: when something happens there by itself; infinite: never."""

    @property
    def next_s(self) -> float: ...

    def happen(self, now: float) -> Sequence[int]:
        """What does so now, after the steps that end and before arrivals. Returns the hosts that it concerns."""
        ...

    def place(self, sequence: SimSequence, now: float) -> int | None:
        """The host that gets this request; None: none yet, and the front keeps it."""
        ...

    @property
    def waiting(self) -> int:
        """Requests that it keeps."""
        ...

    def end(self) -> None:
        """Nothing happens any more."""
        ...


class OneHost:
    """No front at all."""

    next_s, waiting = float("inf"), 0

    def happen(self, now: float) -> Sequence[int]:
        return ()

    def place(self, sequence: SimSequence, now: float) -> int | None:
        return 0

    def end(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class SimRequest:
    """``arrival_s`` from the run's start; lengths in tokens, at least 1."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int


@dataclass(slots=True)
class SimResult:
    """records: by index of the requests; their ``token_times`` are arrays.   transformations: of all hosts, by their ends.

    end_s: on the simulated clock.   loop_s: wall time of the loop.   steps, events: of all instances; an event is a step or a
    jump.   parts: seconds of all transformations together, by part (gyges.sim.system.Switch).
    """

    records: list[RequestRecord]
    samples: list[TimelineSample]
    end_s: float
    loop_s: float
    steps: int
    events: int
    transformations: list[TransformationEvent] = field(default_factory=list)
    parts: dict[str, float] = field(default_factory=dict)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Nothing here is a cycle, and looking for one among a million requests takes its time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


@dataclass(slots=True)
class Simulator:
    """``hosts``: each with its own devices and policy.   front: what chooses among them. ``run`` once."""

    hosts: Sequence[SimHost]
    front: Front = field(default_factory=OneHost)
    _queue: list[tuple[float, int]] = field(default_factory=list)
    _due: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, system: System, degrees: Sequence[int], limits: BatchLimits, policy: RoutingPolicy) -> Simulator:
        """One host whose instances have these TP degrees at first. Raises UserError as :class:`SimHost` does."""
        return cls([SimHost(system, degrees, limits, policy)])

    def run(
        self, requests: Sequence[SimRequest], *, sample_s: float | None = None, on_progress: OnProgress | None = None
    ) -> SimResult:
        """Requests in order of arrival. ``sample_s``: between samples of the timeline; None: as many as a plot shows.
        on_progress: called at every sample, and at the end."""
        assert all(a.arrival_s <= b.arrival_s for a, b in pairwise(requests))
        with _no_collection():
            return self._run(requests, sample_s, on_progress)

    def _run(self, requests: Sequence[SimRequest], sample_s: float | None, on_progress: OnProgress | None) -> SimResult:
        started = time.perf_counter()
        sequences = [
            SimSequence(number, r.prompt_tokens, r.output_tokens, arrival_s=r.arrival_s)
            for number, r in enumerate(requests)
        ]
        self._let_the_policy_foresee(sequences)
        samples, now = self._loop(sequences, sample_s, on_progress)
        loop_s = time.perf_counter() - started
        hosts = self.hosts
        for host in hosts:
            samples += host.samples
        samples.sort(key=lambda sample: sample.t_s)
        events = sorted((event for host in hosts for event in host.events), key=lambda event: event.end_s)
        steps = sum(hosted.sim.steps for host in hosts for hosted in host.ever)
        ends = sum(host.steps_taken_in for host in hosts)
        parts: dict[str, float] = {}
        for host in hosts:
            for part, seconds in host.parts.items():
                parts[part] = parts.get(part, 0.0) + seconds
        return SimResult([record_of(s) for s in sequences], samples, now, loop_s, steps, ends, events, parts)

    def _loop(
        self, sequences: Sequence[SimSequence], sample_s: float | None, on_progress: OnProgress | None
    ) -> tuple[list[TimelineSample], float]:
        """(samples between events, when it was all over)."""
        samples: list[TimelineSample] = []
        span = sequences[-1].arrival_s if sequences else 0.0
        every = sample_s or max(span / self._samples(), 1e-3)
        next_sample = now = 0.0
        arrived, hosts, front = 0, self.hosts, self.front
        self._due = [_NEVER] * len(hosts)  # when each host has told last that something happens there
        while True:
            due = sequences[arrived].arrival_s if arrived < len(sequences) else _NEVER
            at = min(due, self._next_s(), front.next_s)
            if at == _NEVER or (due == _NEVER and not front.waiting and all(host.idle for host in hosts)):
                break
            while next_sample < at:
                latest = self._sample(next_sample)
                samples += latest
                if on_progress is not None:
                    on_progress(progress_of(hosts, arrived, latest, next_sample))
                # What follows the last arrival may be long: samples become rarer there.
                next_sample += every if next_sample < span else max(every, (next_sample - span) / 50)
            now = at
            concerned = self._take_in(now)
            if front.next_s <= now:
                concerned |= dict.fromkeys(front.happen(now))
            while arrived < len(sequences) and sequences[arrived].arrival_s == now:
                sequence = sequences[arrived]
                arrived += 1
                index = front.place(sequence, now)
                if index is not None:
                    hosts[index].offer(sequence)
                    concerned[index] = None
            for index in concerned:
                hosts[index].settle(now)
                self._note(index)
        front.end()
        latest = self._sample(now)
        if on_progress is not None:
            on_progress(progress_of(hosts, arrived, latest, now))
        return [*samples, *latest], now

    def _next_s(self) -> float:
        """When something happens next on any host."""
        queue, due = self._queue, self._due
        while queue and due[queue[0][1]] != queue[0][0]:
            heapq.heappop(queue)  # the host has told of another time since
        return queue[0][0] if queue else _NEVER

    def _take_in(self, now: float) -> dict[int, None]:
        """Hosts at which something happens now."""
        concerned: dict[int, None] = {}
        while self._next_s() <= now:
            _, index = heapq.heappop(self._queue)
            self._due[index] = _NEVER
            self.hosts[index].take_in(now)
            concerned[index] = None
        return concerned

    def _note(self, index: int) -> None:
        at = self.hosts[index].next_s
        if at != self._due[index]:
            self._due[index] = at
            if at != _NEVER:
                heapq.heappush(self._queue, (at, index))

    def _let_the_policy_foresee(self, sequences: Sequence[SimSequence]) -> None:
        """The trace, to a policy that asks for it; behind a router nobody knows which requests will come to a host."""
        foresee = getattr(self.hosts[0].policy, "foresee", None)
        if foresee is not None and len(self.hosts) == 1:
            foresee([Ask(s.max_length, s.prompt_tokens, s.arrival_s, f"r{s.order}") for s in sequences])

    def _samples(self) -> int:
        instances = sum(len(host.instances) for host in self.hosts)
        return max(20, min(_SAMPLES, _MOST_SAMPLES // instances))

    def _sample(self, now: float) -> list[TimelineSample]:
        for host in self.hosts:
            host.now = max(host.now, now)
        return [sample for host in self.hosts for sample in host.sample(now)]

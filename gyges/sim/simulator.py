"""The event loop: arrivals, a policy, and instances that jump from event to event. Torch-free, deterministic, no clock.

At one moment, in this order: steps that end then are taken in, requests that arrive then are placed, instances that stand
still begin their next step. The policies are the engine's own (gyges.scheduling); what they see of an instance is its state at
the last step boundary, as in the engine.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from gyges.errors import UserError
from gyges.metrics.records import RequestRecord, TimelineSample
from gyges.scheduling.batching import BatchLimits
from gyges.scheduling.routing import Ask, HostView, InstanceView, Reject, RoutingPolicy, Send
from gyges.sim.cost.base import CostModel
from gyges.sim.instance import SimInstance, SimSequence

_SAMPLES = 500  # of each instance, over the arrivals


@dataclass(frozen=True, slots=True)
class SimRequest:
    """``arrival_s`` from the run's start; lengths in tokens, at least 1."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int


@dataclass(slots=True)
class SimResult:
    """records: by index of the requests; their ``token_times`` are arrays.   end_s: on the simulated clock.
    loop_s: wall time of the loop.   steps, events: of all instances; an event is a step or a jump."""

    records: list[RequestRecord]
    samples: list[TimelineSample]
    end_s: float
    loop_s: float
    steps: int
    events: int


@dataclass(slots=True)
class _Placed:
    sequence: SimSequence
    instance: int


@dataclass(slots=True)
class Simulator:
    """One host whose instances keep their TP degrees. Requests must be sorted by arrival; ``run`` once.

    degrees: of the instances.   costs, kv_tokens: by degree, step times and tokens that the KV cache of an instance holds.
    Raises UserError for a policy that transforms, limits under which a decode could be left out of a step, and no room.
    """

    degrees: Sequence[int]
    costs: Mapping[int, CostModel]
    kv_tokens: Mapping[int, int]
    limits: BatchLimits
    policy: RoutingPolicy
    _instances: list[SimInstance] = field(init=False)
    _host: HostView = field(init=False)
    _devices: list[tuple[int, ...]] = field(init=False)
    _longest: list[list[tuple[int, int]]] = field(init=False)
    _present: list[dict[int, int]] = field(init=False)

    def __post_init__(self) -> None:
        if self.policy.transforms:
            raise UserError(
                "this policy merges and splits instances, which the simulator does not do; "
                "choose one that keeps them: static, or static:tp2+tp1+tp1 with the layout that you want"
            )
        if self.limits.max_batch_tokens < self.limits.max_seqs:
            raise UserError(
                f"a step of {self.limits.max_batch_tokens} tokens has no room for {self.limits.max_seqs} decodes; "
                f"raise the tokens of a step, or lower the sequences to {self.limits.max_batch_tokens}"
            )
        size = self.limits.block_size
        for degree in set(self.degrees):
            if self.kv_tokens[degree] < size:
                raise UserError(
                    f"{self.kv_tokens[degree]} tokens of KV cache at TP{degree} are less than one block of {size}"
                )
        self._instances = [SimInstance(self.costs[d], self.limits, self.kv_tokens[d] // size) for d in self.degrees]
        self._host = HostView({d: self.kv_tokens[d] // size * size for d in set(self.degrees)})
        starts = np.cumsum([0, *self.degrees]).tolist()
        self._devices = [tuple(range(a, a + d)) for a, d in zip(starts, self.degrees, strict=False)]
        self._longest, self._present = [[] for _ in self.degrees], [{} for _ in self.degrees]

    def run(self, requests: Sequence[SimRequest], *, sample_s: float | None = None) -> SimResult:
        """``sample_s``: between samples of the timeline; None: as many as a plot shows."""
        assert all(a.arrival_s <= b.arrival_s for a, b in pairwise(requests))
        started = time.perf_counter()
        placed: list[_Placed | str | None] = [None] * len(requests)
        pending: list[int] = []
        samples: list[TimelineSample] = []
        span = requests[-1].arrival_s if requests else 0.0
        every = sample_s or max(span / _SAMPLES, 1e-3)
        next_sample = 0.0
        ready: list[tuple[float, int]] = []  # (when the steps under way of an instance end, its index)
        instances, arrived, now, events = self._instances, 0, 0.0, 0
        while ready or arrived < len(requests):
            due = requests[arrived].arrival_s if arrived < len(requests) else float("inf")
            now = min(due, ready[0][0] if ready else float("inf"))
            while next_sample < now:
                samples += self._sample(next_sample)
                # What follows the last arrival may be long: samples become rarer there.
                next_sample += every if next_sample < span else max(every, (next_sample - span) / 50)
            touched, ended = [], False
            while ready and ready[0][0] == now:
                _, index = heapq.heappop(ready)
                busy = instances[index].busy
                if busy is None or busy[-1] != now:
                    continue  # it was cut
                events += 1
                for sequence in instances[index].end():
                    del self._present[index][sequence.order]
                    ended = True
                touched.append(index)
            asked = pending if ended else []
            pending = [] if ended else pending
            first = arrived
            while arrived < len(requests) and requests[arrived].arrival_s == now:
                arrived += 1
            for number in (*asked, *range(first, arrived)):
                index = self._place(number, requests[number], now, placed, len(pending))
                if index is None:
                    if placed[number] is None:
                        pending.append(number)
                    continue
                sequence = placed[number].sequence  # type: ignore[union-attr]
                if instances[index].add(sequence, now):
                    heapq.heappush(ready, (float(instances[index].busy[-1]), index))  # type: ignore[index]
                elif instances[index].busy is None and index not in touched:
                    touched.append(index)
            for index in touched:
                if instances[index].begin(now):
                    heapq.heappush(ready, (float(instances[index].busy[-1]), index))  # type: ignore[index]
        samples += self._sample(now)
        loop_s = time.perf_counter() - started
        records = self._records(requests, placed)
        return SimResult(records, samples, now, loop_s, sum(i.steps for i in instances), events)

    def _place(
        self, number: int, request: SimRequest, now: float, placed: list[_Placed | str | None], pending: int
    ) -> int | None:
        """The instance that the policy chooses; None: it waits, or was rejected, which ``placed`` then says."""
        sequence = SimSequence(number, request.prompt_tokens, request.output_tokens)
        ask = Ask(sequence.max_length, request.prompt_tokens, request.arrival_s, f"r{number}")
        host = HostView(self._host.max_tokens, pending) if pending else self._host
        decision = self.policy.route(ask, [self._view(i, now) for i in range(len(self._instances))], host, now)
        if isinstance(decision, Reject):
            placed[number] = decision.reason
        if not isinstance(decision, Send):
            return None
        placed[number] = _Placed(sequence, decision.index)
        self._present[decision.index][number] = sequence.max_length
        heapq.heappush(self._longest[decision.index], (-sequence.max_length, number))
        return decision.index

    def _view(self, index: int, now: float) -> InstanceView:
        instance, size = self._instances[index], self.limits.block_size
        done = instance.done(now)
        free = instance.free_at(done)
        longest, present = self._longest[index], self._present[index]
        while longest and longest[0][1] not in present:
            heapq.heappop(longest)
        return InstanceView(
            name=f"i{index}",
            degree=self.degrees[index],
            devices=self._devices[index],
            max_tokens=instance.total_blocks * size,
            free_tokens=free * size,
            running=len(instance.running),
            waiting=len(instance.waiting),
            remaining_tokens=instance.remaining_at(done),
            longest_tokens=-longest[0][0] if longest else 0,
            prefill_tokens=instance.prefill_tokens,
            held_tokens=(instance.total_blocks - free) * size,
        )

    def _sample(self, now: float) -> list[TimelineSample]:
        found = []
        for index, instance in enumerate(self._instances):
            done = instance.done(now)
            found.append(
                TimelineSample(
                    now,
                    f"i{index}",
                    self._devices[index],
                    self.degrees[index],
                    len(instance.running),
                    len(instance.waiting),
                    instance.total_blocks - instance.free_at(done),
                    instance.total_blocks,
                    output_tokens=instance.output_at(done),
                    prompt_tokens=instance.prompt_tokens,
                    preemptions=instance.preemptions,
                )
            )
        return found

    def _records(self, requests: Sequence[SimRequest], placed: Sequence[_Placed | str | None]) -> list[RequestRecord]:
        ends = [np.concatenate(i.ends) if i.ends else np.empty(0) for i in self._instances]
        records = []
        for number, (request, where) in enumerate(zip(requests, placed, strict=True)):
            record = RequestRecord(
                f"r{number}",
                request.arrival_s,
                sent_s=request.arrival_s,
                prompt_tokens=request.prompt_tokens,
                target_output_tokens=request.output_tokens,
            )
            records.append(record)
            if not isinstance(where, _Placed):
                record.status, record.end_s = ("rejected" if where else "failed"), request.arrival_s
                record.reason = where or "the policy never placed it"
                continue
            sequence = where.sequence
            parts = [ends[where.instance][a:b] for a, b in sequence.stays]
            times = parts[0] if len(parts) == 1 else np.concatenate(parts)
            assert len(times) == request.output_tokens, "every request ends with all its tokens"
            record.token_times = times  # type: ignore[assignment]
            record.first_scheduled_s, record.end_s = sequence.admitted_s, float(times[-1])
            record.output_tokens, record.status = len(times), "completed"
            record.instance, record.preemptions = f"i{where.instance}", sequence.preemptions
        return records

"""One instance that schedules ahead: step k + 2 is decided when step k ends, while k + 1 runs. How vLLM's engine core works.

vLLM's ``step_with_batch_queue`` (vllm/v1/engine/core.py) with asynchronous scheduling, the default since 0.14: new requests
are read from the input queue only between steps; a step is scheduled as soon as fewer than ``depth`` are in flight, and sequences
advance when they are scheduled, before their tokens are known. A request's place and blocks are free again when its last token
has come back, so for one step they stand idle. ``depth = 1`` is synchronous scheduling.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Items
from dataclasses import dataclass, field, replace

from gyges.errors import UserError
from gyges.scheduling.batching import Batcher, BatchLimits, BatchPlan, Sequence
from gyges.sim.cost.base import CostModel, StepShape


@dataclass(frozen=True, slots=True)
class PipelinedRequest:
    """``arrival_s`` is when it reaches the engine's input queue, on any clock; lengths in tokens."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int


@dataclass(slots=True)
class Served:
    """Times of one request, on the clock of the arrivals. ``queued_s``: when the engine read it from its input queue."""

    queued_s: float
    scheduled_s: float = -1.0
    first_token_s: float = -1.0
    last_token_s: float = -1.0


@dataclass(slots=True)
class _Blocks:
    """Block counts, without ids."""

    total: int
    num_free: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_free = self.total

    @property
    def num_held(self) -> int:
        return self.total - self.num_free

    def allocate(self, count: int, owner: Sequence | None = None) -> list[int] | None:
        if count > self.num_free:
            return None
        self.num_free -= count
        return [0] * count

    def release(self, block_ids: list[int], owner: Sequence | None = None) -> None:
        self.num_free += len(block_ids)


@dataclass(slots=True)
class _Flight:
    end_s: float
    sampled: list[Sequence]
    last: list[Sequence]  # whose last token this step computes


class PipelinedInstance:
    """Serves requests to their end; ``run`` once."""

    def __init__(
        self, requests: Items[PipelinedRequest], cost: CostModel, limits: BatchLimits, kv_tokens: int, *, depth: int
    ) -> None:
        """``depth``: steps in flight, 2 or 1. Raises UserError for a request that can never fit."""
        self.served: list[Served | None] = [None] * len(requests)
        self._requests, self._cost, self._limits = requests, cost, limits
        self._depth = depth
        self._blocks = _Blocks(kv_tokens // limits.block_size)
        self._batcher = Batcher(limits, self._blocks)
        self._arrivals = deque(sorted(range(len(requests)), key=lambda i: (requests[i].arrival_s, i)))
        self._flights: deque[_Flight] = deque()
        self._ending = 0  # sequences whose last token is in flight: they keep their places
        self._index: dict[Sequence, int] = {}
        for number, request in enumerate(requests):
            if not self._batcher.fits_alone(request.prompt_tokens + request.output_tokens - 1):
                raise UserError(
                    f"request {number} needs {request.prompt_tokens + request.output_tokens - 1:,} tokens of KV cache; "
                    f"the instance has {self._blocks.total * limits.block_size:,}"
                )

    def run(self) -> list[Served]:
        now, device_free = (self._requests[self._arrivals[0]].arrival_s if self._arrivals else 0.0), float("-inf")
        while self._arrivals or self._flights or self._index:
            self._read_queue(now)
            plan = self._schedule(now) if len(self._flights) < self._depth else None
            if plan is not None:
                device_free = max(now, device_free) + self._cost.step_s(shape_of(plan))
                self._launch(plan, device_free)
            elif self._flights:
                now = self._land(self._flights.popleft())
            else:
                now = self._requests[self._arrivals[0]].arrival_s
        assert all(served is not None for served in self.served)
        return [served for served in self.served if served is not None]

    def _read_queue(self, now: float) -> None:
        while self._arrivals and self._requests[self._arrivals[0]].arrival_s <= now:
            number = self._arrivals.popleft()
            request = self._requests[number]
            sequence = Sequence(number, request.prompt_tokens, request.output_tokens, known=request.prompt_tokens)
            self._index[sequence] = number
            self.served[number] = Served(now)
            self._batcher.add(sequence)

    def _schedule(self, now: float) -> BatchPlan | None:
        self._batcher.limits = replace(self._limits, max_seqs=self._limits.max_seqs - self._ending)
        plan = self._batcher.schedule()
        for sequence in plan.admitted if plan else ():
            served = self._of(sequence)
            if served.scheduled_s < 0:
                served.scheduled_s = now
        return plan

    def _launch(self, plan: BatchPlan, end_s: float) -> None:
        sampled = self._batcher.advance(plan)
        last = [sequence for sequence in sampled if sequence.sampled == sequence.max_tokens]
        for sequence in last:
            self._batcher.running.remove(sequence)
        self._ending += len(last)
        self._flights.append(_Flight(end_s, sampled, last))

    def _land(self, flight: _Flight) -> float:
        for sequence in flight.sampled:
            served = self._of(sequence)
            if served.first_token_s < 0:
                served.first_token_s = flight.end_s
        for sequence in flight.last:
            self._of(sequence).last_token_s = flight.end_s
            self._blocks.release(sequence.blocks, sequence)
            del self._index[sequence]
        self._ending -= len(flight.last)
        return flight.end_s

    def _of(self, sequence: Sequence) -> Served:
        served = self.served[self._index[sequence]]
        assert served is not None
        return served


def shape_of(plan: BatchPlan) -> StepShape:
    """A row of one token is a decode, if anything precedes it; what else is computed is prefill."""
    decodes = context = longest = sampled = 0
    prefills = []
    for row in plan.rows:
        sampled += row.samples
        if row.count == 1 and row.start:
            decodes += 1
            context += row.start + 1
            longest = max(longest, row.start + 1)
        else:
            prefills.append((row.count, row.start))
    return StepShape(decodes, context, longest, tuple(prefills), sampled)

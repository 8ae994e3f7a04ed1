"""An instance as the controller holds it: its batcher, its workers, and at most one step under way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b

from gyges.core import FinishReason, Request, RequestOutput
from gyges.engine.joint import Joint
from gyges.engine.messages import NewSequence, Step, StepDone, encode, pack_tokens
from gyges.engine.process import WorkerProcess
from gyges.scheduling.batching import Batcher, BatchLimits, BatchPlan, BlockSource, Sequence
from gyges.scheduling.routing import InstanceView
from gyges.transform.ops import AnyOp


@dataclass(slots=True, eq=False)
class LiveRequest:
    """A request that the engine has taken and not yet ended."""

    request: Request
    sequence: Sequence
    slot: int
    deliver: Callable[[RequestOutput], None]  # called on the controller's thread
    submitted_s: float
    scheduled_s: float | None = None
    tokens: list[int] = field(default_factory=list)
    token_times: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class InstanceStatus:
    """What can be seen from outside at one moment; counts are cumulative over the instance's life.

    transforming: "merge" or "split" while it is in the middle of one, "soon" while it finishes its step for one, else "".
    """

    name: str
    degree: int
    devices: tuple[int, ...]
    running: int
    waiting: int
    kv_used_blocks: int
    kv_total_blocks: int
    output_tokens: int
    prompt_tokens: int
    preemptions: int
    steps: int
    transforming: str = ""


class Instance:
    """Composes batching (what to compute) with the workers (who computes it). Driven by the controller's loop alone.

    ``workers`` in rank order.   ``joint``: while an overlapped transformation is under way, what each step moves.
    ``held``: no new step is launched (a transformation waits for this one, or is between two).
    """

    def __init__(
        self,
        name: str,
        workers: tuple[WorkerProcess, ...],
        limits: BatchLimits,
        eos_token_ids: tuple[int, ...],
        blocks: BlockSource,
    ) -> None:
        self.name, self.workers, self.limits = name, workers, limits
        self.eos = frozenset(eos_token_ids)
        self.batcher = Batcher(limits, blocks)
        self.live: dict[Sequence, LiveRequest] = {}
        self.plan: BatchPlan | None = None
        self.joint: Joint | None = None
        self.held = False
        self.step = 0
        self.step_started_s = 0.0
        self.dropped: list[int] = []  # what the workers must still be told
        self.sampled: list[tuple[int, int, int]] = []
        self.joined: list[NewSequence] = []
        self.output_tokens = self.prompt_tokens = self.preemptions = 0
        self.compute_s = self.step_s = 0.0

    @property
    def members(self) -> tuple[int, ...]:
        return tuple(worker.worker for worker in self.workers)

    @property
    def degree(self) -> int:
        return len(self.workers)

    @property
    def max_tokens(self) -> int:
        """Longest context that can ever be held here."""
        return self.batcher.allocator.total * self.limits.block_size

    def view(self, lowest_tokens: int, becoming: tuple[int, ...] = ()) -> InstanceView:
        """``lowest_tokens``: longest context of the host's lowest degree.   becoming: TP degrees that it is to have."""
        batcher = self.batcher
        remaining = missing = longest = long = 0
        for sequence in batcher:
            remaining += sequence.remaining
            missing += sequence.missing
            longest = max(longest, sequence.max_length)
            long += sequence.max_length > lowest_tokens
        return InstanceView(
            name=self.name,
            degree=self.degree,
            devices=self.members,
            max_tokens=self.max_tokens,
            free_tokens=batcher.allocator.num_free * self.limits.block_size,
            running=len(batcher.running),
            waiting=len(batcher.waiting),
            remaining_tokens=remaining,
            longest_tokens=longest,
            transforming=self.joint is not None or self.held,
            prefill_tokens=missing,
            waiting_tokens=sum(sequence.known for sequence in batcher.waiting),
            held_tokens=batcher.allocator.num_held * self.limits.block_size,
            long_requests=long,
            becoming=becoming,
        )

    def status(self) -> InstanceStatus:
        """Safe to call from any thread: it only reads lengths and numbers."""
        batcher, joint = self.batcher, self.joint
        blocks = batcher.allocator
        # In the middle of a split the blocks are those of several instances to come; ``total`` is what one request could have.
        total = blocks.total if joint is None else blocks.num_held + blocks.num_free
        return InstanceStatus(
            name=self.name,
            degree=self.degree,
            devices=self.members,
            running=len(batcher.running),
            waiting=len(batcher.waiting),
            kv_used_blocks=blocks.num_held,
            kv_total_blocks=total,
            output_tokens=self.output_tokens,
            prompt_tokens=self.prompt_tokens,
            preemptions=self.preemptions,
            steps=self.step,
            transforming=joint.shape.kind if joint is not None else "soon" if self.held else "",
        )

    def add(self, live: LiveRequest) -> None:
        self.live[live.sequence] = live
        self.batcher.add(live.sequence)

    def drop(self, live: LiveRequest) -> None:
        """Takes a request out. Not while a step is under way."""
        assert self.plan is None, "a request leaves between steps"
        if live.sequence in self.batcher.running:
            self.dropped.append(live.slot)
        self.batcher.finish(live.sequence)
        del self.live[live.sequence]

    def launch(self, now: float) -> bool:
        """Starts the next step if there is one and none is under way."""
        if self.plan is not None or self.held:
            return False
        ops = self._move()
        plan = self.batcher.schedule()
        late = self.joint.planner.take() if self.joint is not None else []
        if plan is None:
            if not ops and not late:
                return False
            plan = BatchPlan()
        self.plan, self.step, self.step_started_s = plan, self.step + 1, now
        self.preemptions += len(plan.preempted)
        for sequence in plan.admitted:
            live = self.live[sequence]
            if live.scheduled_s is None:
                live.scheduled_s = now
        dropped, preempted = self.take_dropped(), [self.live[s].slot for s in plan.preempted]
        message = Step(
            step=self.step,
            rows=[(self.live[r.sequence].slot, r.start, r.count, r.samples) for r in plan.rows],
            new=[self.new_sequence(s) for s in plan.admitted],
            extended=[(self.live[s].slot, blocks) for s, blocks in plan.extended],
            dropped=dropped,
            sampled=self.take_sampled([*dropped, *preempted]),
            ops=ops,
            joined=self.joined,
            preempted=preempted,
            late=late,
        )
        self.joined = []
        data = encode(message)
        for worker in self.workers:
            worker.send_bytes(data)
        return True

    def _move(self) -> list[AnyOp]:
        """What this step moves of a transformation. Before the batch is made: it sees who has been switched."""
        if self.joint is None:
            return []
        slots = {sequence: live.slot for sequence, live in self.live.items()}
        growing = [s for s in self.batcher.running if self.batcher.blocks_for(s.known) > len(s.blocks)]
        self.joint.advance(slots, growing)
        return self.joint.planner.take()

    def take_dropped(self) -> list[int]:
        """Slots that the workers must still be told to forget."""
        dropped, self.dropped = self.dropped, []
        return dropped

    def take_sampled(self, gone: list[int]) -> list[tuple[int, int, int]]:
        """Tokens that ranks other than 0 must still be told."""
        sampled, self.sampled = self.sampled, []
        return [entry for entry in sampled if entry[0] not in gone] if self.degree > 1 else []

    def new_sequence(self, sequence: Sequence, first: int = 0, narrow: int = -1) -> NewSequence:
        """How a worker is told of a sequence; ``first``: tokens before that position are in the KV cache already."""
        live = self.live[sequence]
        request, sampling = live.request, live.request.sampling
        spot = self.joint.blocks.spots[sequence] if self.joint is not None else None
        return NewSequence(
            slot=live.slot,
            first=first,
            tokens=pack_tokens([*request.prompt, *live.tokens][first:]),
            prompt_tokens=len(request.prompt),
            max_length=sequence.max_length,
            blocks=sequence.blocks,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=seed_of(request),
            narrow=spot.narrow if spot else narrow,
            switched=spot.switched if spot else False,
        )

    def complete(self, done: StepDone, now: float) -> list[tuple[LiveRequest, RequestOutput]]:
        """Takes a step's tokens in; returns what is new for each request, its end included."""
        plan, self.plan = self.plan, None
        assert plan is not None, f"{self.name} answered a step that was not asked for"
        assert done.step == self.step, f"{self.name} answered step {done.step}, expected {self.step}"
        self.compute_s += done.compute_s
        self.step_s += now - self.step_started_s
        for row in plan.rows:
            self.prompt_tokens += max(0, min(row.start + row.count, row.sequence.prompt_tokens) - row.start)
        news = []
        for sequence, token in zip(self.batcher.advance(plan), done.tokens, strict=True):
            live = self.live[sequence]
            self.sampled.append((live.slot, sequence.known - 1, token))
            live.tokens.append(token)
            live.token_times.append(now)
            self.output_tokens += 1
            output = RequestOutput(live.request.request_id, [token], [now])
            reason = self._finished(live, token)
            if reason is not None:
                self.drop(live)
                output = final_output(live, reason, now, self.name, output)
            news.append((live, output))
        return news

    def _finished(self, live: LiveRequest, token: int) -> FinishReason | None:
        sampling = live.request.sampling
        if not sampling.ignore_eos and (token in self.eos or token in sampling.stop_token_ids):
            return FinishReason.STOP
        return FinishReason.LENGTH if len(live.tokens) >= sampling.max_tokens else None


def seed_of(request: Request) -> int:
    """The request's seed, or one drawn from its id, so that a replay repeats itself."""
    if request.sampling.seed is not None:
        return request.sampling.seed
    return int.from_bytes(blake2b(request.request_id.encode(), digest_size=7).digest(), "little")


def final_output(
    live: LiveRequest,
    reason: FinishReason,
    now: float,
    instance: str | None,
    news: RequestOutput | None = None,
    error: str | None = None,
) -> RequestOutput:
    """The last thing said of a request; carries the tokens of ``news`` if there are any."""
    return RequestOutput(
        request_id=live.request.request_id,
        token_ids=news.token_ids if news else [],
        token_times=news.token_times if news else [],
        finish_reason=reason,
        error=error,
        prompt_tokens=len(live.request.prompt),
        submitted_s=live.submitted_s,
        scheduled_s=live.scheduled_s,
        finished_s=now,
        instance=instance,
        preemptions=live.sequence.preemptions,
    )

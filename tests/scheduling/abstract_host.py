"""A host without memory or processes: real batchers and a policy, one step of every instance per tick.

It asks the policy as gyges.scheduling.routing says; in a transformation, which takes some ticks, its instances stand still.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gyges.kv_cache.blocks import BlockAllocator
from gyges.scheduling.batching import Batcher, BatchLimits, Sequence
from gyges.scheduling.routing import (
    Ask,
    FlatPrices,
    HostView,
    InstanceView,
    Merge,
    Reject,
    RoutingPolicy,
    Send,
    Split,
)

LIMITS = BatchLimits(max_batch_tokens=16, max_seqs=4, block_size=1)
MAX_TOKENS = {1: 40, 2: 100, 4: 240}


@dataclass(eq=False)
class Instance:
    devices: tuple[int, ...]
    batcher: Batcher
    becoming: tuple[int, ...] = ()
    ready_at: int = 0

    @classmethod
    def of(cls, devices: tuple[int, ...]) -> Instance:
        return cls(devices, Batcher(LIMITS, BlockAllocator.of_blocks(MAX_TOKENS[len(devices)])))

    def view(self) -> InstanceView:
        sequences, allocator = list(self.batcher), self.batcher.allocator
        return InstanceView(
            name=f"d{self.devices[0]}x{len(self.devices)}",
            degree=len(self.devices),
            devices=self.devices,
            max_tokens=MAX_TOKENS[len(self.devices)],
            free_tokens=allocator.num_free,
            running=len(self.batcher.running),
            waiting=len(self.batcher.waiting),
            remaining_tokens=sum(s.remaining for s in sequences),
            longest_tokens=max((s.max_length for s in sequences), default=0),
            transforming=bool(self.becoming),
            prefill_tokens=sum(s.missing for s in sequences),
            waiting_tokens=sum(s.known for s in self.batcher.waiting),
            held_tokens=allocator.num_held,
            long_requests=sum(s.max_length > MAX_TOKENS[1] for s in sequences),
            becoming=self.becoming,
        )


@dataclass
class Fate:
    """What became of a request, in ticks. ``under_way``, ``ahead``: transformations and waiting requests when it came;
    ``passed``: transformations that ended before it was in an instance."""

    arrived: int
    length: int
    work: int
    under_way: int
    ahead: int
    passed: int = 0
    placed: int | None = None
    ended: int | None = None
    rejected: str = ""
    preemptions: int = 0


@dataclass
class AbstractHost:
    policy: RoutingPolicy
    devices: int = 4
    transformation_ticks: int = 3
    now: int = 0
    transformations: int = 0
    fates: list[Fate] = field(default_factory=list)
    decisions: list[object] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.instances = [Instance.of((d,)) for d in range(self.devices)]
        self._pending: list[Sequence] = []

    def run(self, arrivals: dict[int, list[tuple[int, int]]], limit: int) -> list[Fate]:
        """arrivals: tick -> (prompt tokens, output tokens) of each. Until all have ended, or ``limit`` ticks have passed."""
        last = max(arrivals)
        while self.now <= limit and (self.now <= last or any(f.ended is None and not f.rejected for f in self.fates)):
            for prompt, output in arrivals.get(self.now, []):
                self._arrive(prompt, output)
            self._end_transformations()
            self._place_pending()
            self._review()
            for instance in self.instances:
                if not instance.becoming:
                    self._step(instance)
            self.now += 1
        return self.fates

    def _arrive(self, prompt: int, output: int) -> None:
        sequence = Sequence(order=len(self.fates), prompt_tokens=prompt, max_tokens=output, known=prompt)
        under_way = len({i.ready_at * 100 + i.devices[0] for i in self.instances if i.becoming})
        self.fates.append(Fate(self.now, sequence.max_length, prompt + output, under_way, len(self._pending)))
        self._pending.append(sequence)

    def _host(self, pending: int, ahead: int) -> HostView:
        return HostView(dict(MAX_TOKENS), pending, ahead, prices=FlatPrices(self.transformation_ticks, 16, 1e9))

    def _place_pending(self) -> None:
        queue, self._pending = self._pending, []
        for index, sequence in enumerate(queue):
            ask = Ask(
                sequence.max_length, sequence.missing, float(self.fates[sequence.order].arrived), str(sequence.order)
            )
            host = self._host(len(queue) - index - 1 + len(self._pending), len(self._pending))
            decision = self.policy.route(ask, [i.view() for i in self.instances], host, float(self.now))
            self.decisions.append(decision)
            if isinstance(decision, Reject):
                self.fates[sequence.order].rejected = decision.reason
            elif isinstance(decision, Send):
                self._give(sequence, self.instances[decision.index])
            elif isinstance(decision, Merge):
                self._give(sequence, self._begin([self.instances[i] for i in decision.indices], None))
            else:
                self._pending.append(sequence)

    def _give(self, sequence: Sequence, instance: Instance) -> None:
        if sequence.max_length <= instance.batcher.allocator.total:
            instance.batcher.add(sequence)
            self.fates[sequence.order].placed = self.now
        else:
            self._pending.append(sequence)

    def _review(self) -> None:
        wishes = self.policy.review(
            [i.view() for i in self.instances], self._host(len(self._pending), 0), float(self.now)
        )
        self.decisions += wishes
        for wish, sources in [(w, [self.instances[i] for i in _indices(w)]) for w in wishes]:
            self._begin(sources, wish.degrees if isinstance(wish, Split) else None)

    def _begin(self, sources: list[Instance], degrees: tuple[int, ...] | None) -> Instance:
        """The wide instance stands there at once, as in an overlapped transformation; it does nothing before the end."""
        assert not any(source.becoming for source in sources), "a transformation was asked of instances that are in one"
        members = tuple(device for source in sources for device in source.devices)
        wide = sources[0]
        if degrees is None:
            wide = Instance.of(members)
            for source in sources:
                self._move(source, [wide])
            self.instances = [i for i in self.instances if i not in sources] + [wide]
        wide.becoming, wide.ready_at = degrees or (len(members),), self.now + self.transformation_ticks
        return wide

    def _end_transformations(self) -> None:
        for wide in [i for i in self.instances if i.becoming and i.ready_at <= self.now]:
            self.transformations += 1
            for sequence in self._pending:
                self.fates[sequence.order].passed += 1
            if len(wide.becoming) > 1:
                parts, first = [], 0
                for degree in wide.becoming:
                    parts.append(Instance.of(wide.devices[first : first + degree]))
                    first += degree
                self._move(wide, parts)
                self.instances = [i for i in self.instances if i is not wide] + parts
            wide.becoming = ()

    def _move(self, source: Instance, targets: list[Instance]) -> None:
        """Running requests keep what they have computed where there is room; who fits nowhere any more waits outside."""
        for sequence in list(source.batcher):
            fitting = [t for t in targets if sequence.max_length <= t.batcher.allocator.total]
            running = sequence in source.batcher.running
            held = len(sequence.blocks)
            source.batcher.finish(sequence)
            if not fitting:
                sequence.start_over()
                self._pending = sorted([*self._pending, sequence], key=lambda s: s.order)
                continue
            target = max(fitting, key=lambda t: t.batcher.allocator.num_free)
            blocks = target.batcher.allocator.allocate(held, sequence) if running else None
            if blocks is not None:
                sequence.blocks = blocks
                target.batcher.take_over([sequence], [])
            else:
                if running:
                    sequence.start_over()
                target.batcher.take_over([], [sequence])

    def _step(self, instance: Instance) -> None:
        plan = instance.batcher.schedule()
        if plan is None:
            return
        for victim in plan.preempted:
            self.fates[victim.order].preemptions += 1
        for sequence in instance.batcher.advance(plan):
            if sequence.sampled == sequence.max_tokens:
                instance.batcher.finish(sequence)
                self.fates[sequence.order].ended = self.now


def _indices(wish: Merge | Split) -> tuple[int, ...]:
    return wish.indices if isinstance(wish, Merge) else (wish.index,)

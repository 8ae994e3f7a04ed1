"""Batching inside an instance: continuous batching, chunked prefill, preemption by recompute. Plain Python, no clock.

There is no prefill phase and no decode phase. A sequence has ``known`` tokens (prompt + sampled so far), of which
``computed`` are in the KV cache; a step computes some of the ``known - computed`` missing ones. One missing is what others
call decode, many is (chunked) prefill, and a preempted sequence just has ``computed = 0`` again. The step that computes the
last missing token also samples the next one.

Order. First come, first served by ``order``: a sequence that arrived earlier is never held back for a later one. Every
running sequence that misses one token gets it first (a step never starves decodes); what is left of the token budget
goes to prefills, oldest first. Blocks for all known tokens are taken when a sequence is admitted, one more whenever a
decode crosses a block boundary. When none is free, the *latest* running sequence gives up its blocks and goes back to the
head of the waiting line. The oldest is therefore never preempted and, since it fits alone (checked on ``add``), always ends.

The engine and the simulator drive the same class: ``schedule`` -> compute -> ``advance`` -> ``finish`` for those that ended.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol


class BlockSource(Protocol):
    """Where a batcher gets blocks: an instance's allocator, or what stands in for it during a transformation."""

    @property
    def total(self) -> int:
        """Blocks that one sequence could ever have."""
        ...

    @property
    def num_free(self) -> int: ...

    @property
    def num_held(self) -> int: ...

    def allocate(self, count: int, owner: Sequence | None = None) -> list[int] | None:
        """``count`` more blocks for this sequence, or None (and nothing taken)."""
        ...

    def release(self, block_ids: list[int], owner: Sequence | None = None) -> None:
        """All blocks of this sequence."""
        ...


@dataclass(slots=True, eq=False)
class Sequence:
    """A request inside an instance; lengths in tokens. ``order`` is its place in the line (smaller came earlier)."""

    order: int
    prompt_tokens: int
    max_tokens: int
    known: int
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    preemptions: int = 0

    @property
    def missing(self) -> int:
        return self.known - self.computed

    @property
    def max_length(self) -> int:
        """Tokens in the KV cache at the very end; the last sampled token is never written."""
        return self.prompt_tokens + self.max_tokens - 1

    @property
    def sampled(self) -> int:
        return self.known - self.prompt_tokens

    def start_over(self) -> None:
        """Its KV cache is lost: what is known is computed again."""
        self.blocks, self.computed = [], 0
        self.preemptions += 1

    @property
    def remaining(self) -> int:
        """Tokens of work left: those to compute and those to sample."""
        return self.missing + self.max_tokens - self.sampled


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Tokens per step, sequences per step, tokens per KV block."""

    max_batch_tokens: int
    max_seqs: int
    block_size: int


@dataclass(frozen=True, slots=True)
class Row:
    """Tokens ``start .. start + count`` of a sequence are computed; ``samples`` if the next token follows from it."""

    sequence: Sequence
    start: int
    count: int
    samples: bool


@dataclass(slots=True)
class BatchPlan:
    """One step. ``admitted`` joins now (their whole block table is new); ``extended``: blocks appended to a running one."""

    rows: list[Row] = field(default_factory=list)
    admitted: list[Sequence] = field(default_factory=list)
    extended: list[tuple[Sequence, list[int]]] = field(default_factory=list)
    preempted: list[Sequence] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return sum(row.count for row in self.rows)


class Batcher:
    """Decides what one instance computes next."""

    def __init__(self, limits: BatchLimits, allocator: BlockSource) -> None:
        assert limits.max_batch_tokens >= 1
        self.limits, self.allocator = limits, allocator
        self.running: list[Sequence] = []  # by order
        self.waiting: list[Sequence] = []  # by order

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.limits.block_size)

    def fits_alone(self, length: int) -> bool:
        """Whether ``length`` tokens of context could ever be held here."""
        return self.blocks_for(length) <= self.allocator.total

    def __iter__(self) -> Iterator[Sequence]:
        yield from self.running
        yield from self.waiting

    def add(self, sequence: Sequence) -> None:
        assert self.fits_alone(sequence.max_length), "admission must reject what can never fit"
        insort(self.waiting, sequence, key=_order)

    def take_over(self, running: Iterable[Sequence], waiting: Iterable[Sequence]) -> None:
        """Sequences of batchers that are given up; the running ones keep their blocks, which the allocator knows."""
        self.running = sorted([*self.running, *running], key=_order)
        self.waiting = sorted([*self.waiting, *waiting], key=_order)

    def schedule(self) -> BatchPlan | None:
        """The next step, or None if there is nothing to do. Takes and gives back blocks."""
        plan = BatchPlan()
        self._extend_running(plan)
        budget = self.limits.max_batch_tokens
        counts: dict[Sequence, int] = {}
        for sequence in self.running:
            if sequence.missing == 1 and budget:
                counts[sequence] = 1
                budget -= 1
        for sequence in self.running:
            if sequence.missing > 1 and budget:
                counts[sequence] = min(sequence.missing, budget)
                budget -= counts[sequence]
        # A preemption in this step means that blocks are short: admit nobody on what was just given back.
        while budget and self.waiting and not plan.preempted and len(self.running) < self.limits.max_seqs:
            sequence = self.waiting[0]
            blocks = self.allocator.allocate(self.blocks_for(sequence.known), sequence)
            if blocks is None:
                break
            self.waiting.pop(0)
            sequence.blocks = blocks
            insort(self.running, sequence, key=_order)
            plan.admitted.append(sequence)
            counts[sequence] = min(sequence.missing, budget)
            budget -= counts[sequence]
        for sequence, count in counts.items():
            plan.rows.append(Row(sequence, sequence.computed, count, samples=count == sequence.missing))
        return plan if plan.rows else None

    def _extend_running(self, plan: BatchPlan) -> None:
        """Every running sequence gets blocks for all its known tokens; the latest ones make room where needed."""
        index = 0
        while index < len(self.running):
            sequence = self.running[index]
            need = self.blocks_for(sequence.known) - len(sequence.blocks)
            blocks = self.allocator.allocate(need, sequence) if need > 0 else []
            if blocks is None:
                self._preempt(self.running[-1], plan)
                continue
            if blocks:
                sequence.blocks.extend(blocks)
                plan.extended.append((sequence, blocks))
            index += 1

    def _preempt(self, victim: Sequence, plan: BatchPlan) -> None:
        assert len(self.running) > 1, "a lone sequence ran out of blocks although it fits alone"
        self.preempt(victim)
        plan.extended = [(s, b) for s, b in plan.extended if s is not victim]
        plan.preempted.append(victim)

    def preempt(self, victim: Sequence) -> None:
        """A running sequence gives its blocks back and waits to be computed anew. Between steps."""
        self.running.remove(victim)
        self.allocator.release(victim.blocks, victim)
        victim.start_over()
        insort(self.waiting, victim, key=_order)

    def advance(self, plan: BatchPlan) -> list[Sequence]:
        """The step is computed. Returns the sequences that sampled a token, in row order."""
        sampled = []
        for row in plan.rows:
            row.sequence.computed += row.count
            if row.samples:
                row.sequence.known += 1
                sampled.append(row.sequence)
        return sampled

    def finish(self, sequence: Sequence) -> None:
        """Takes a sequence out, running or waiting, and gives its blocks back. Not between schedule and advance."""
        if sequence in self.running:
            self.running.remove(sequence)
            self.allocator.release(sequence.blocks, sequence)
            sequence.blocks = []
        else:
            self.waiting.remove(sequence)

    @property
    def remaining_tokens(self) -> int:
        return sum(sequence.remaining for sequence in self)


def _order(sequence: Sequence) -> int:
    return sequence.order

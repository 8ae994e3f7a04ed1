"""One simulated instance: continuous batching by the rules of :class:`gyges.scheduling.batching.Batcher`, in time that grows with
requests, not with steps. Torch-free; a test holds it to the Batcher, step by step.

What makes it fast. Sequences that decode all advance by one token a step, so one that decodes since step ``k0`` with ``L0``
tokens has ``L0 - k0 + k`` of them at step ``k``: only ``base = L0 - k0`` is kept, and no step touches it.

    context of step k    sum of base + n k
    blocks at step k     one for each base with base + k = 1 modulo the block size: counted by residue
    next to finish       a heap of last steps
    times of its tokens  a slice of the end times of the instance's steps; one for each stay between preemptions

Steps that only decode are one *jump*: to the next finish, or until blocks run out. An arrival cuts it at the end of the step
that is under way. Where sequences wait for room already, a jump goes on: nothing can be admitted before somebody has finished.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from gyges.scheduling.batching import BatchLimits
from gyges.sim.cost.base import CostModel, StepShape

_NEVER = -1


@dataclass(slots=True, eq=False)
class SimSequence:
    """A request inside an instance. Lengths in tokens; ``order`` is its place in the line.

    left: tokens still to sample, when its present stay began.   base, last_step: while it decodes (see above), the step that
    samples its last token.   first_step: the first step of this stay that sampled.   admitted_s: when first in a batch.
    stays: (first, end) steps whose end times are the times of its tokens.
    """

    order: int
    prompt_tokens: int
    max_tokens: int
    known: int = 0
    computed: int = 0
    left: int = 0
    base: int = 0
    last_step: int = _NEVER
    first_step: int = _NEVER
    admitted_s: float = -1.0
    preemptions: int = 0
    stays: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.known, self.left = self.prompt_tokens, self.max_tokens

    @property
    def max_length(self) -> int:
        """Tokens in the KV cache at its end."""
        return self.prompt_tokens + self.max_tokens - 1


class SimInstance:
    """Serves sequences that are added in ascending order. ``begin`` starts what is next, ``end`` takes in what was computed.

    ``limits.max_batch_tokens`` must be at least ``limits.max_seqs``: every decode gets its token in every step.
    """

    def __init__(self, cost: CostModel, limits: BatchLimits, blocks: int) -> None:
        assert limits.max_batch_tokens >= limits.max_seqs
        self.cost, self.limits = cost, limits
        self.total_blocks = self.free_blocks = blocks
        self.running: dict[SimSequence, None] = {}  # by order, as is everything: who is admitted came before who waits
        self.waiting: deque[SimSequence] = deque()
        self.steps = 0  # that have ended
        self.ends: list[np.ndarray] = []  # their end times, in pieces
        self.busy: np.ndarray | None = None  # end times of the steps under way
        self.remaining_tokens = self.waiting_tokens = 0
        self.output_tokens = self.prompt_tokens = self.preemptions = 0
        self._partial: SimSequence | None = None  # the one whose prefill is not complete
        self._rows: list[tuple[SimSequence, int]] = []  # prefill chunks of the step under way
        self._tokens = 0  # of each step under way
        self._decoding = self._base_sum = 0
        self._crossing = [0] * limits.block_size
        self._finishing: list[tuple[int, int, SimSequence]] = []
        self._longest: list[tuple[int, int, SimSequence]] = []

    # -- from outside -------------------------------------------------------------------------------------------------

    def fits_alone(self, length: int) -> bool:
        return self._blocks_for(length) <= self.total_blocks

    def add(self, sequence: SimSequence, now: float) -> bool:
        """Returns whether the steps under way end earlier now."""
        assert self.fits_alone(sequence.max_length), "admission must reject what can never fit"
        held_up = bool(self.waiting)
        self.waiting.append(sequence)
        self.waiting_tokens += sequence.known
        self.remaining_tokens += sequence.known + sequence.left
        if self.busy is None or held_up or len(self.busy) == 1 or len(self.running) == self.limits.max_seqs:
            return False
        stop = int(self.busy.searchsorted(now)) + 1
        if stop >= len(self.busy):
            return False
        self.busy = self.busy[:stop]
        return True

    def done(self, now: float) -> int:
        """Steps of those under way that have ended by ``now``."""
        return 0 if self.busy is None else int(self.busy.searchsorted(now, side="right"))

    def remaining_at(self, done: int) -> int:
        return self.remaining_tokens - done * self._tokens

    def free_at(self, done: int) -> int:
        """Free blocks while the step after ``done`` of those under way runs."""
        if done < 1 or self.busy is None:
            return self.free_blocks
        return self.free_blocks - self._crossings(min(done, len(self.busy) - 1))

    def output_at(self, done: int) -> int:
        """Tokens sampled by then."""
        return self.output_tokens + done * self._decoding

    @property
    def prefill_tokens(self) -> int:
        """Known but in no KV cache, when the steps under way began."""
        partial = self._partial
        return self.waiting_tokens + self._decoding + (partial.known - partial.computed if partial else 0)

    def begin(self, now: float) -> bool:
        """Start the next step, or jump; False if there is nothing to do."""
        assert self.busy is None
        preempted = self._extend()
        shape = self._fill(now, admit=not preempted)
        if self._rows:
            self._tokens = self._decoding + sum(count for _, count in self._rows)
            self.busy = np.array([now + self.cost.step_s(shape)])
        elif self._decoding:
            steps = 1 if preempted else self._jump()  # blocks that were given back admit somebody in the next step
            self._tokens = self._decoding
            seconds = self.cost.decode_steps_s(self._decoding, shape.decode_context, shape.decode_longest, steps)
            # A running sum, as if step by step, to the last bit.
            self.busy = np.cumsum(np.concatenate(((now,), seconds)))[1:]
        return self.busy is not None

    def end(self) -> list[SimSequence]:
        """The steps under way have ended. Returns the sequences that are complete."""
        assert self.busy is not None
        count = len(self.busy)
        self.free_blocks -= self._crossings(count - 1)
        self.ends.append(self.busy)
        self.busy = None
        self.steps += count
        self.remaining_tokens -= count * self._tokens
        self.output_tokens += count * self._decoding
        rows, self._rows = self._rows, []
        complete = self._finish_decodes()
        for sequence, tokens in rows:
            sequence.computed += tokens
            self.prompt_tokens += tokens
            if sequence.computed == sequence.known:
                sequence.first_step = self.steps - 1
                self.output_tokens += 1
                sequence.left -= 1
                if not sequence.left:
                    self._leave(sequence, self._blocks_for(sequence.known))
                    complete.append(sequence)
                    continue
                sequence.known += 1
                self._decode(sequence)
            elif sequence.computed == sequence.known - 1:
                # It holds the block of its last token already; the next step counts that as taken then.
                self.free_blocks += (sequence.known - 1) % self.limits.block_size == 0
                sequence.first_step = self.steps
                self._decode(sequence)
            else:
                self._partial = sequence
        return complete

    # -- a step -------------------------------------------------------------------------------------------------------

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.limits.block_size)

    def _extend(self) -> bool:
        """Blocks for the tokens that decodes compute next; the latest sequences make room. Returns whether any had to."""
        need = self._crossing[self.steps % self.limits.block_size]
        if need <= self.free_blocks:
            self.free_blocks -= need
            return False
        for sequence in list(self.running):
            crosses = sequence.last_step != _NEVER and (sequence.base + self.steps - 1) % self.limits.block_size == 0
            while crosses and not self.free_blocks and sequence in self.running:
                self._preempt(next(reversed(self.running)))
            if sequence not in self.running:
                break
            self.free_blocks -= crosses
        return True

    def _fill(self, now: float, *, admit: bool) -> StepShape:
        """Prefill chunks within the token budget, the running one first, then those that are admitted."""
        budget = self.limits.max_batch_tokens - self._decoding
        partial, self._partial = self._partial, None
        if partial is not None:
            budget -= self._chunk(partial, budget)
        while budget and admit and self.waiting and len(self.running) < self.limits.max_seqs:
            sequence = self.waiting[0]
            blocks = self._blocks_for(sequence.known)
            if blocks > self.free_blocks:
                break
            self.waiting.popleft()
            self.free_blocks -= blocks
            self.waiting_tokens -= sequence.known
            self.running[sequence] = None
            if sequence.admitted_s < 0:
                sequence.admitted_s = now
            budget -= self._chunk(sequence, budget)
        decodes, context = self._decoding, self._base_sum + self._decoding * self.steps
        longest = self._longest_base() + self.steps if decodes else 0
        sampled, prefills = decodes, []
        for sequence, count in self._rows:
            sampled += sequence.computed + count == sequence.known
            if count == 1 and sequence.computed:
                decodes, context, longest = (
                    decodes + 1,
                    context + sequence.computed + 1,
                    max(longest, sequence.computed + 1),
                )
            else:
                prefills.append((count, sequence.computed))
        return StepShape(decodes, context, longest, tuple(prefills), sampled)

    def _chunk(self, sequence: SimSequence, budget: int) -> int:
        count = min(sequence.known - sequence.computed, budget)
        self._rows.append((sequence, count))
        return count

    def _jump(self) -> int:
        """Steps until a sequence finishes or blocks are short."""
        while not self._is_current(self._finishing[0]):
            heapq.heappop(self._finishing)
        steps = self._finishing[0][0] - self.steps + 1
        size = self.limits.block_size
        if steps > 1 and self._decoding * (steps // size + 1) > self.free_blocks:
            at = (self.steps + 1) % size
            needs = np.cumsum(np.resize(self._crossing[at:] + self._crossing[:at], steps - 1))
            steps = 1 + int(needs.searchsorted(self.free_blocks, side="right"))
        return steps

    def _crossings(self, steps: int) -> int:
        """Blocks that the decodes take in so many steps after the one that began last."""
        if not steps:
            return 0
        size = self.limits.block_size
        whole, rest = divmod(steps, size)
        at = (self.steps + 1) % size
        partial = sum(self._crossing[at : at + rest]) + sum(self._crossing[: max(0, at + rest - size)])
        return whole * self._decoding + partial

    # -- sequences ----------------------------------------------------------------------------------------------------

    def _decode(self, sequence: SimSequence) -> None:
        """From the next step on, with its known tokens but the last one in the KV cache."""
        sequence.base = sequence.known - self.steps
        sequence.last_step = self.steps + sequence.left - 1
        self._decoding += 1
        self._base_sum += sequence.base
        self._crossing[(1 - sequence.base) % self.limits.block_size] += 1
        heapq.heappush(self._finishing, (sequence.last_step, sequence.order, sequence))
        heapq.heappush(self._longest, (-sequence.base, sequence.order, sequence))

    def _stop_decoding(self, sequence: SimSequence) -> None:
        self._decoding -= 1
        self._base_sum -= sequence.base
        self._crossing[(1 - sequence.base) % self.limits.block_size] -= 1
        sequence.last_step = _NEVER

    def _is_current(self, entry: tuple[int, int, SimSequence]) -> bool:
        return entry[2].last_step == entry[0]

    def _longest_base(self) -> int:
        heap = self._longest
        while heap[0][2].last_step == _NEVER or heap[0][2].base != -heap[0][0]:
            heapq.heappop(heap)
        return -heap[0][0]

    def _finish_decodes(self) -> list[SimSequence]:
        complete, heap, last = [], self._finishing, self.steps - 1
        while heap and heap[0][0] <= last:
            entry = heapq.heappop(heap)
            sequence = entry[2]
            if self._is_current(entry):
                self._stop_decoding(sequence)
                self._leave(sequence, self._blocks_for(sequence.base + last))
                complete.append(sequence)
        return complete

    def _leave(self, sequence: SimSequence, blocks: int) -> None:
        del self.running[sequence]
        self.free_blocks += blocks
        self.remaining_tokens -= 1  # the token that was sampled last is never computed
        sequence.stays.append((sequence.first_step, self.steps))

    def _preempt(self, victim: SimSequence) -> None:
        assert len(self.running) > 1, "a lone sequence ran out of blocks although it fits alone"
        del self.running[victim]
        held = victim.known
        self.remaining_tokens += victim.computed
        if victim.last_step != _NEVER:
            known = victim.base + self.steps
            held = known - 1
            self.remaining_tokens += known - 1 - victim.computed
            victim.known, victim.left = known, victim.last_step - self.steps + 1
            if victim.first_step < self.steps:
                victim.stays.append((victim.first_step, self.steps))
            self._stop_decoding(victim)
        else:
            self._partial = None
        self.free_blocks += self._blocks_for(held)
        victim.computed = 0
        victim.preemptions += 1
        self.preemptions += 1
        self.waiting.appendleft(victim)
        self.waiting_tokens += victim.known

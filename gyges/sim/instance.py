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

Sequences that leave in the middle (a merge, a split) carry with them how long they are, and the steps whose end times are the
times of their tokens.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections import deque
from collections.abc import Iterable

import numpy as np

from gyges.scheduling.batching import BatchLimits
from gyges.sim.cost.base import CostModel, StepShape
from gyges.sim.sequence import NEVER, Pace, SimSequence, by_order

_INFINITE = float("inf")


class SimInstance:
    """Serves sequences that are added in ascending order. ``begin`` starts what is next, ``end`` takes in what was computed.

    ``limits.max_batch_tokens`` must be at least ``limits.max_seqs``: every decode gets its token in every step.
    """

    def __init__(self, cost: CostModel, limits: BatchLimits, blocks: int) -> None:
        self.cost, self.limits = cost, limits
        self.total_blocks = self.free_blocks = blocks
        self.running: dict[SimSequence, None] = {}  # by order, as is everything: who is admitted came before who waits
        self.waiting: deque[SimSequence] = deque()
        self.steps = 0  # that have ended
        self.ends: list[np.ndarray] = []  # their end times, in pieces
        self.busy: np.ndarray | None = None  # end times of the steps under way
        self.first_end = self.until = _INFINITE  # of the first and of the last of them
        self.slowdown = 1.0  # steps that begin now take so many times as long
        self.pace: Pace | None = None  # what goes on beside the next ``pace_left`` steps; changed between steps only
        self.pace_left = 0
        self.remaining_tokens = self.waiting_tokens = 0
        self.output_tokens = self.prompt_tokens = self.preemptions = 0
        self._partials: list[SimSequence] = []  # those whose prefill is not complete and not under way, by order
        self._early: list[SimSequence] = []  # that hold the block which their next token will be counted as taking
        self._rows: list[tuple[SimSequence, int]] = []  # prefill chunks of the step under way
        self._tokens = 0  # of each step under way
        self.decoding = self._base_sum = 0
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
        self._wait(sequence)
        self.remaining_tokens += sequence.known + sequence.left
        if (held_up and self.waiting[0] is not sequence) or len(self.running) >= self.limits.max_seqs:
            return False
        return self.cut(now)

    def cut(self, now: float) -> bool:
        """Of a jump, only the step under way is left. Returns whether that ends earlier."""
        if self.busy is None or len(self.busy) == 1:
            return False
        stop = int(self.busy.searchsorted(now)) + 1
        if stop >= len(self.busy):
            return False
        self.busy = self.busy[:stop].copy()  # not a view: it would keep the whole jump alive
        self.until = float(self.busy[-1])
        return True

    def done(self, now: float) -> int:
        """Steps of those under way that have ended by ``now``."""
        if now < self.first_end or self.busy is None:
            return 0
        return int(self.busy.searchsorted(now, side="right"))

    def remaining_at(self, done: int) -> int:
        return self.remaining_tokens - done * self._tokens

    def free_at(self, done: int) -> int:
        """Free blocks while the step after ``done`` of those under way runs."""
        if done < 1 or self.busy is None:
            return self.free_blocks - len(self._early)
        return self.free_blocks - self._crossings(min(done, len(self.busy) - 1))

    def output_at(self, done: int) -> int:
        """Tokens sampled by then."""
        return self.output_tokens + done * self.decoding

    @property
    def prefill_tokens(self) -> int:
        """Known but in no KV cache, when the steps under way began."""
        partial = sum(s.missing for s in self._partials) + sum(s.missing for s, _ in self._rows)
        return self.waiting_tokens + self.decoding + partial

    def begin(self, now: float) -> bool:
        """Start the next step, or jump; False if there is nothing to do."""
        assert self.busy is None
        preempted = self._extend()
        shape = self._fill(now, admit=not preempted)
        if self._rows:
            self._tokens = self.decoding + sum(count for _, count in self._rows)
            self.busy = now + self._beside(np.array([self.cost.step_s(shape)]))
        elif self.decoding:
            steps = 1 if preempted else self._jump()  # blocks that were given back admit somebody in the next step
            self._tokens = self.decoding
            if self.pace is not None:
                steps = max(1, min(steps, self.pace_left))
            seconds = self.cost.decode_steps_s(self.decoding, shape.decode_context, shape.decode_longest, steps)
            # A running sum, as if step by step, to the last bit.
            self.busy = np.cumsum(np.concatenate(((now,), self._beside(seconds))))[1:]
        if self.busy is None:
            return False
        self.first_end, self.until = float(self.busy[0]), float(self.busy[-1])
        return True

    def _beside(self, seconds: np.ndarray) -> np.ndarray:
        """Steps beside what goes on."""
        if self.slowdown != 1.0:
            seconds = seconds * self.slowdown
        return seconds if self.pace is None else np.maximum(seconds + self.pace.more_s, self.pace.least_s)

    def end(self) -> list[SimSequence]:
        """The steps under way have ended. Returns the sequences that are complete."""
        assert self.busy is not None
        count = len(self.busy)
        self.free_blocks -= self._crossings(count - 1)
        self.ends.append(self.busy)
        self.busy, self.first_end, self.until = None, _INFINITE, _INFINITE
        self.steps += count
        self.pace_left -= count
        self.remaining_tokens -= count * self._tokens
        self.output_tokens += count * self.decoding
        rows, self._rows = self._rows, []
        later, self._partials = self._partials, []  # no token of the budget was left for these
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
                if (sequence.known - 1) % self.limits.block_size == 0:
                    # It holds the block of its last token already; the next step counts that as taken then.
                    self.free_blocks += 1
                    sequence.early = True
                    self._early.append(sequence)
                sequence.first_step = self.steps
                self._decode(sequence)
            else:
                self._partials.append(sequence)
        if later or len(self._partials) > 1:
            self._partials = sorted([*self._partials, *later], key=by_order)
        return complete

    # -- a step -------------------------------------------------------------------------------------------------------

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.limits.block_size)

    def _extend(self) -> bool:
        """Blocks for the tokens that decodes compute next; the latest sequences make room. Returns whether any had to."""
        for sequence in self._early:
            sequence.early = False
        self._early = []
        need = self._crossing[self.steps % self.limits.block_size]
        if need <= self.free_blocks:
            self.free_blocks -= need
            return False
        for sequence in list(self.running):
            crosses = sequence.last_step != NEVER and (sequence.base + self.steps - 1) % self.limits.block_size == 0
            while crosses and not self.free_blocks and sequence in self.running:
                self._preempt(next(reversed(self.running)))
            if sequence not in self.running:
                break
            self.free_blocks -= crosses
        return True

    def _fill(self, now: float, *, admit: bool) -> StepShape:
        """Prefill chunks within the token budget, the running ones first, then those that are admitted."""
        budget = self.limits.max_batch_tokens - self.decoding
        partials, self._partials = self._partials, []
        for sequence in partials:
            if budget:
                budget -= self._chunk(sequence, budget)
            else:
                self._partials.append(sequence)
        while budget and admit and self.waiting and len(self.running) < self.limits.max_seqs:
            sequence = self.waiting[0]
            blocks = self._blocks_for(sequence.known)
            if blocks > self.free_blocks:
                break
            self.waiting.popleft()
            self.free_blocks -= blocks
            self.waiting_tokens -= sequence.known
            self._join(sequence)
            if sequence.admitted_s < 0:
                sequence.admitted_s = now
            budget -= self._chunk(sequence, budget)
        decodes, context = self.decoding, self._base_sum + self.decoding * self.steps
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
        if steps > 1 and self.decoding * (steps // size + 1) > self.free_blocks:
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
        return whole * self.decoding + partial

    # -- sequences ----------------------------------------------------------------------------------------------------

    def _decode(self, sequence: SimSequence) -> None:
        """From the next step on, with its known tokens but the last one in the KV cache."""
        sequence.base = sequence.known - self.steps
        sequence.last_step = self.steps + sequence.left - 1
        self.decoding += 1
        self._base_sum += sequence.base
        self._crossing[(1 - sequence.base) % self.limits.block_size] += 1
        heapq.heappush(self._finishing, (sequence.last_step, sequence.order, sequence))
        heapq.heappush(self._longest, (-sequence.base, sequence.order, sequence))

    def _stop_decoding(self, sequence: SimSequence) -> None:
        self.decoding -= 1
        self._base_sum -= sequence.base
        self._crossing[(1 - sequence.base) % self.limits.block_size] -= 1
        sequence.last_step = NEVER

    def _is_current(self, entry: tuple[int, int, SimSequence]) -> bool:
        return entry[2].last_step == entry[0]

    def _longest_base(self) -> int:
        heap = self._longest
        while heap[0][2].last_step == NEVER or heap[0][2].base != -heap[0][0]:
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
        sequence.stays.append((self, sequence.first_step, self.steps))

    def _preempt(self, victim: SimSequence) -> None:
        assert len(self.running) > 1, "a lone sequence ran out of blocks although it fits alone"
        self.preempt(victim)

    def preempt(self, victim: SimSequence) -> None:
        """A running sequence gives its blocks back and waits to be computed anew. Between steps."""
        del self.running[victim]
        self.remaining_tokens += self._give_up(victim)
        victim.start_over()
        self.preemptions += 1
        self._wait(victim)

    def _give_up(self, sequence: SimSequence) -> int:
        """A running sequence is computed here no more. Returns its tokens in the KV cache."""
        held = sequence.known
        if sequence.last_step != NEVER:
            known = sequence.base + self.steps
            held = known - 1
            sequence.known, sequence.computed, sequence.left = known, known - 1, sequence.last_step - self.steps + 1
            if sequence.first_step < self.steps:
                sequence.stays.append((self, sequence.first_step, self.steps))
            self._stop_decoding(sequence)
            if sequence.early:
                self._early.remove(sequence)
        else:
            self._partials.remove(sequence)
        self.free_blocks += self._blocks_for(held)
        return sequence.computed

    def _wait(self, sequence: SimSequence) -> None:
        """In the line, by order. Nearly always at one of its ends."""
        waiting = self.waiting
        if not waiting or waiting[-1].order < sequence.order:
            waiting.append(sequence)
        elif sequence.order < waiting[0].order:
            waiting.appendleft(sequence)
        else:
            insort(waiting, sequence, key=by_order)
        self.waiting_tokens += sequence.known

    def _join(self, sequence: SimSequence) -> None:
        """Among the running, by order. Nearly always last."""
        late = bool(self.running) and next(reversed(self.running)).order > sequence.order
        self.running[sequence] = None
        if late:
            self.running = dict.fromkeys(sorted(self.running, key=by_order))

    # -- between instances --------------------------------------------------------------------------------------------

    def release(self) -> tuple[list[SimSequence], list[SimSequence]]:
        """(running, waiting), each by order; they are here no more. Between steps."""
        assert self.busy is None, "sequences move between steps"
        running, waiting = list(self.running), list(self.waiting)
        for sequence in running:
            self._give_up(sequence)
        self.running, self.waiting = {}, deque()
        self.remaining_tokens = self.waiting_tokens = 0
        return running, waiting

    def blocks_of(self, sequence: SimSequence) -> int:
        """That a running sequence holds. Between steps."""
        if sequence.last_step != NEVER:
            return self._blocks_for(sequence.base + self.steps - 1) + sequence.early
        return self._blocks_for(sequence.known)

    def adopt(self, running: Iterable[SimSequence], waiting: Iterable[SimSequence]) -> None:
        """Sequences that others have released; the running ones keep their KV cache, for which there must be room. Between steps.

        Where more are running than a step has tokens for, the latest are computed anew.
        """
        for sequence in running:
            self.remaining_tokens += sequence.missing + sequence.left
            self._join(sequence)
            if 0 < sequence.computed == sequence.known - 1:
                self.free_blocks -= self._blocks_for(sequence.computed)
                sequence.first_step = self.steps
                self._decode(sequence)
                if sequence.early:
                    self._early.append(sequence)
            else:
                self.free_blocks -= self._blocks_for(sequence.known)
                insort(self._partials, sequence, key=by_order)
        assert self.free_blocks >= 0, "what does not fit is not adopted"
        for sequence in waiting:
            self.remaining_tokens += sequence.missing + sequence.left
            self._wait(sequence)
        while len(self.running) > self.limits.max_batch_tokens:
            self.preempt(next(reversed(self.running)))

"""One worker of the instance that is profiled, in a process of its own (gyges.bench.child): steps without a controller.

A step needs no history: rows say where they start, and what lies in the KV cache before them does not change how long they
take. So any batch can be run at once, whatever it would take to get there. All ranks run the same points in the same order.
"""

from __future__ import annotations

import os
import random
import statistics
from collections.abc import Sequence
from typing import Any

from gyges.engine.messages import NewSequence, Setup, Step, pack_tokens
from gyges.profile.grid import Point

_WARM_UP = 1  # rounds


class Rank:
    def start(self, setup: dict[str, Any], arena: str) -> int:
        """``arena``: a path that opens the shared memory of the collectives, "" for a group of one. Returns KV blocks' tokens."""
        os.nice(5)  # as the engine's workers
        import torch  # noqa: F401  (before the runner's deadline counts)

        from gyges.engine.runner import ModelRunner
        from gyges.profile.timed import instrument

        fd = os.open(arena, os.O_RDWR) if arena else -1
        fields = {**setup, "members": tuple(setup["members"]), "arena_fd": fd}
        self._runner = ModelRunner(Setup(**fields))
        self._watch = instrument(self._runner)
        self._step, self._slots = 0, 0
        self._block = self._runner.host.block_size
        return self._block

    def measure(self, points: Sequence[dict[str, int]], repeats: int) -> list[dict[str, float]]:
        """Of each point: operator -> median seconds in one step. Every round runs all points in another order, so that a step
        finds caches and heap as another kind of step left them, as it does while serving."""
        chosen = [Point(**point) for point in points]
        taken: list[list[dict[str, float]]] = [[] for _ in chosen]
        shuffle = random.Random(0)
        for number in range(_WARM_UP + repeats):
            for index in shuffle.sample(range(len(chosen)), len(chosen)):
                spent = self._run(chosen[index])
                if number >= _WARM_UP:
                    taken[index].append(spent)
        return [{name: statistics.median(t.get(name, 0.0) for t in each) for name in each[0]} for each in taken]

    def _run(self, point: Point) -> dict[str, float]:
        """Decodes follow decodes, so only the last of three steps counts; a chunk alone is admitted by the one that is timed."""
        new, rows = self._sequences(point)
        self._time(Step(step=self._next(), rows=rows, new=new))
        for _ in range(2 if point.decodes else 0):
            self._watch.take()
            self._time(Step(step=self._next(), rows=rows))
        spent = self._watch.take()
        # Gone before the next point's blocks are taken; not timed.
        self._runner.step(Step(step=self._next(), rows=[], dropped=[each.slot for each in new]))
        self._watch.take()
        return spent

    def _time(self, step: Step) -> None:
        self._watch.enter("step")
        self._runner.step(step)
        self._watch.leave()

    def _next(self) -> int:
        self._step += 1
        return self._step

    def _sequences(self, point: Point) -> tuple[list[NewSequence], list[tuple[int, int, int, bool]]]:
        lengths = [(point.context - 1, 1)] * point.decodes + ([(point.before, point.chunk)] if point.chunk else [])
        new, rows, block = [], [], 0
        for start, count in lengths:
            self._slots += 1
            end = start + count
            blocks = list(range(block, block + -(-end // self._block)))
            block += len(blocks)
            tokens = pack_tokens([2 + i % 7 for i in range(end)])
            new.append(NewSequence(self._slots, 0, tokens, end, end + 1, blocks, 0.0, 1.0, 0, 0))
            rows.append((self._slots, start, count, True))
        return new, rows

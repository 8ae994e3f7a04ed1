"""One worker of the instance that is profiled, in a process of its own (gyges.bench.child): steps without a controller.

A step needs no history: rows say where they start, and what lies in the KV cache before them does not change how long they
take. So any batch can be run at once, whatever it would take to get there. All ranks run the same points in the same order.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from typing import Any

from gyges.engine.messages import NewSequence, Setup, Step, pack_tokens
from gyges.profile.grid import Point

_WARM_UP = 2


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
        """Of each point: operator -> median seconds in one step."""
        return [self._measure(Point(**point), repeats) for point in points]

    def _measure(self, point: Point, repeats: int) -> dict[str, float]:
        new, rows = self._sequences(point)
        taken = []
        for number in range(_WARM_UP + repeats):
            self._step += 1
            self._watch.enter("step")
            self._runner.step(Step(step=self._step, rows=rows, new=new if number == 0 else []))
            self._watch.leave()
            spent = self._watch.take()
            if number >= _WARM_UP:
                taken.append(spent)
        # Gone before the next point's blocks are taken; not timed.
        self._runner.step(Step(step=self._step, rows=[], dropped=[each.slot for each in new]))
        self._watch.take()
        return {name: statistics.median(each.get(name, 0.0) for each in taken) for name in taken[0]}

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

"""One transformation as the controller carries it out.

    gather     the instances concerned finish their steps
    stepping   (overlap on) the workers join; every step moves something, until only the end is left, or nothing can move
               while others run
    settling   what is left (overlap off: everything), and the end, between two steps; all workers answer

Whatever goes wrong on the way, the controller breaks the wide instance up (gyges.engine.recovery): no half state is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from gyges.engine.instance import Instance, LiveRequest
from gyges.engine.joint import Joint, JointBlocks
from gyges.engine.messages import NewSequence, Transform, encode
from gyges.engine.process import WorkerProcess
from gyges.kv_cache.blocks import BlockAllocator, GroupIds
from gyges.scheduling.batching import Sequence as Seq
from gyges.scheduling.homes import choose_homes
from gyges.transform.books import WorkerBook
from gyges.transform.host import HostShape
from gyges.transform.plan import PlanImpossible, Planner, join_of
from gyges.transform.shape import Transformation

Phase = Literal["gather", "stepping", "settling", "done"]


@dataclass(slots=True)
class TransformationReport:
    """What came of one transformation. Times: monotonic seconds; parts by worker: gyges.transform.device.Spent's fields.

    asked_s: when it was wanted.   start_s: when all instances concerned had finished their steps.   steps: computed meanwhile.
    stopped: why it went on in one stop although the overlap was on.   pause_s: longest gap between two tokens of a request
    that was decoding, if the gap touches the transformation.   error: set if it was not carried out.
    """

    kind: str
    devices: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    cause: str
    overlap: bool
    asked_s: float
    start_s: float = 0.0
    end_s: float = 0.0
    steps: int = 0
    tokens: int = 0
    stopped: str = ""
    pause_s: float = 0.0
    workers: dict[int, dict[str, Any]] = field(default_factory=dict)
    error: str = ""

    @property
    def bytes_moved(self) -> int:
        """Between devices."""
        return sum(int(w["kv_peer_bytes"] + w["weights_peer_bytes"]) for w in self.workers.values())

    @property
    def peak_extra_pages(self) -> int:
        """Pages beyond the larger of before and after, on the worker that needed most."""
        return max(
            (int(w["peak_pages"] - max(w["start_pages"], w["end_pages"])) for w in self.workers.values()), default=0
        )


@dataclass(frozen=True)
class Surroundings:
    """What a transformation needs to know of the engine it happens in."""

    host: HostShape
    host_ids: GroupIds
    parity: dict[int, int]
    workers: list[WorkerProcess]
    overlap: bool
    pages_per_step: int
    timeout: float
    make_instance: Callable[[tuple[int, ...], Any], Instance]


class Transformer:
    """``sources``: one instance for a split, several for a merge. ``future`` gets the report, or PlanImpossible."""

    def __init__(
        self,
        around: Surroundings,
        shape: Transformation,
        sources: list[Instance],
        cause: str,
        future: Future[Any],
        overlap: bool | None = None,
    ) -> None:
        self.overlap = around.overlap if overlap is None else overlap
        self.around, self.shape, self.sources, self.future = around, shape, sources, future
        self.phase: Phase = "gather"
        self.wide: Instance | None = sources[0] if shape.kind == "split" else None
        self.joint: Joint | None = None
        self._awaited: set[int] = set()
        self._first_step = 0
        self._first_tokens = 0
        self.deadline_s = time.monotonic() + around.timeout
        wide, narrow = (len(shape.wide),), tuple(len(members) for members in shape.narrow)
        before, after = (narrow, wide) if shape.kind == "merge" else (wide, narrow)
        self.report = TransformationReport(
            shape.kind, tuple(sorted(shape.wide)), before, after, cause, self.overlap, time.monotonic()
        )
        self.watched: list[LiveRequest] = []
        # Made while the instances still compute.
        self._books = {w: WorkerBook(around.host, w, shape.front_layout(w), around.parity[w]) for w in shape.wide}
        for source in sources:
            source.held = True

    @property
    def instances(self) -> list[Instance]:
        """Those that a failure now would break."""
        return self.sources if self.phase == "gather" or self.wide is None else [self.wide]

    def advance(self) -> list[Instance] | None:
        """Called on every turn of the controller. The instances that replace :attr:`sources`, once that is so."""
        if self.phase == "gather" and all(source.plan is None for source in self.sources):
            self._begin()
            return [self.wide] if self.shape.kind == "merge" and self.wide else None
        if self.phase == "stepping" and self.wide and self.joint and self.wide.plan is None and self.joint.over:
            self.report.stopped = self.joint.stuck
            self._send()
        return None

    def _begin(self) -> None:
        around, shape = self.around, self.shape
        running = [s for source in self.sources for s in source.batcher.running]
        homes = self._homes(running)
        fronts = [source.batcher.allocator for source in self.sources]
        assert all(isinstance(front, BlockAllocator) for front in fronts), "one transformation at a time"
        blocks = JointBlocks(around.host, shape, around.host_ids, fronts, homes, in_rounds=not self.overlap)  # type: ignore[arg-type]
        books = self._books
        for sequence, narrow in homes.items():
            for worker in shape.front_members(narrow):
                books[worker].kv.hold(np.asarray(sequence.blocks, np.int64))
        slots = {s: source.live[s].slot for source in self.sources for s in source.batcher.running}
        told = [(slots[s], narrow) for s, narrow in homes.items()] if shape.kind == "split" else []
        planner = Planner(around.host, shape, books, join_of(shape, books, told))
        self.joint = Joint(blocks, planner, slots, around.pages_per_step)
        if self.wide is None:
            self.wide = self._united(blocks)
        self.phase = "stepping"
        self.wide.joint, self.wide.batcher.allocator = self.joint, blocks
        self.wide.held = True
        self._first_step, self._first_tokens = self.wide.step, self.wide.output_tokens
        decoding = {s for s in running if s.missing == 1}
        self.watched = [live for s, live in self.wide.live.items() if s in decoding and live.token_times]
        self.report.start_s = time.monotonic()
        self.joint.begin()
        new = [self.wide.new_sequence(s, first=s.computed) for s in running] if shape.kind == "merge" else []
        if self.overlap:
            self.wide.held, self.wide.joined = False, new
        else:
            self._send(new)

    def _homes(self, running: list[Seq]) -> dict[Seq, int]:
        if self.shape.kind == "merge":
            return {s: index for index, source in enumerate(self.sources) for s in source.batcher.running}
        host = self.around.host
        degrees = [len(members) for members in self.shape.narrow]
        rooms = [host.allocator(d, self.around.host_ids).total for d in degrees]
        homes = choose_homes(running, rooms, host.block_size)
        if homes is None:
            raise PlanImpossible("a running request is too long for the instances of the split, or all are together")
        return homes

    def _united(self, blocks: JointBlocks) -> Instance:
        wide = self.around.make_instance(self.shape.wide, blocks)
        for source in self.sources:
            wide.live |= source.live
            wide.dropped += source.take_dropped()
            wide.sampled += source.sampled
            source.sampled = []
            wide.batcher.take_over(source.batcher.running, source.batcher.waiting)
            source.batcher.running, source.batcher.waiting, source.live = [], [], {}
        return wide

    def _send(self, new: Sequence[NewSequence] = ()) -> None:
        """A Transform message to all: the end, or (with the overlap off) everything from the Join on."""
        assert self.wide is not None
        assert self.joint is not None
        wide = self.wide
        ops = self.joint.settle_ops(self._make_room)
        gone = wide.take_dropped()
        data = encode(Transform(ops, list(new), gone, wide.take_sampled(gone)))
        wide.held = True
        self.phase = "settling"
        self._awaited = set(self.shape.wide)
        for worker in wide.workers:
            worker.send_bytes(data)

    def _make_room(self) -> bool:
        """The latest sequence that has not moved starts over once the transformation is done."""
        assert self.wide is not None
        assert self.joint is not None
        left = self.joint.unswitched
        if not left:
            return False
        victim = max(left, key=lambda s: s.order)
        self.wide.dropped.append(self.wide.live[victim].slot)
        self.wide.batcher.preempt(victim)
        self.wide.preemptions += 1
        return True

    def transformed(self, worker: int, spent: dict[str, Any]) -> bool:
        """A worker has carried out what was sent; whether that was the last one of the last message."""
        assert self.wide is not None
        self._awaited.discard(worker)
        self.report.workers[worker] = spent
        return not self._awaited

    def finish(self) -> tuple[list[Instance], list[LiveRequest]]:
        """(the instances that there are now, requests that none of them can hold)."""
        assert self.wide is not None
        assert self.joint is not None
        wide, blocks = self.wide, self.joint.blocks
        blocks.settle()
        for worker in self.shape.wide:
            self.around.parity[worker] ^= 1
        self.phase = "done"
        report = self.report
        report.end_s = time.monotonic()
        report.steps = wide.step - self._first_step
        report.tokens = wide.output_tokens - self._first_tokens
        wide.joint, wide.held = None, False
        if self.shape.kind == "merge":
            wide.batcher.allocator = blocks.back[0]
            return [wide], []
        return self._divided(wide, blocks)

    def _divided(self, wide: Instance, blocks: JointBlocks) -> tuple[list[Instance], list[LiveRequest]]:
        narrow = [
            self.around.make_instance(members, allocator)
            for members, allocator in zip(self.shape.narrow, blocks.back, strict=True)
        ]
        for index, instance in enumerate(narrow):
            own = [s for s in wide.batcher.running if blocks.spots[s].narrow == index]
            instance.batcher.take_over(own, [])
            instance.live = {s: wide.live[s] for s in own}
        homeless = []
        for sequence in wide.batcher.waiting:
            fitting = [i for i in narrow if i.batcher.fits_alone(sequence.max_length)]
            if fitting:
                min(fitting, key=lambda i: i.batcher.remaining_tokens / i.degree).add(wide.live[sequence])
            else:
                homeless.append(wide.live[sequence])
        return narrow, homeless

    def note_pauses(self, *, final: bool = False) -> bool:
        """Updates the report's pause; whether every watched request has had a token since the end (or is over)."""
        open_ended = False
        report = self.report
        end = report.end_s or time.monotonic()
        for live in self.watched:
            times = live.token_times
            after = len(times) - 1
            while after > 0 and times[after - 1] > end:
                after -= 1
            index = after
            while index > 0 and times[index] > report.start_s:
                if times[index - 1] < end:
                    report.pause_s = max(report.pause_s, times[index] - times[index - 1])
                index -= 1
            done = times[-1] > end or len(times) >= live.request.sampling.max_tokens
            open_ended |= not done
        return final or not open_ended

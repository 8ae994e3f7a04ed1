"""Replaying requests through an engine, and recording what came of each.

    open    each request is sent at its scheduled time, whatever the engine is doing (latency counts from that time)
    closed  N users; each sends its next request when the last one has ended
    asap    everything at once

The engine's tokens are stamped by the controller, deliveries by this client; both clocks are the machine's monotonic one.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from gyges.core import FinishReason, Request, RequestOutput
from gyges.engine.engine import Engine
from gyges.errors import EngineError, UnknownNameError, UserError
from gyges.metrics.records import RequestRecord, Status, TimelineSample

MODES = ("open", "closed", "asap")
_STATUS: dict[FinishReason, Status] = {
    FinishReason.STOP: "completed",
    FinishReason.LENGTH: "completed",
    FinishReason.REJECTED: "rejected",
    FinishReason.FAILED: "failed",
    FinishReason.ABORTED: "partial",
}


@dataclass(frozen=True, slots=True)
class TimedRequest:
    """``scheduled_s``: seconds after the replay's start at which an open-loop replay sends it."""

    scheduled_s: float
    request: Request


@dataclass(slots=True)
class ReplayResult:
    """One record per offered request, in trace order. ``state``: complete, partial (interrupted) or failed."""

    records: list[RequestRecord]
    samples: list[TimelineSample]
    state: Literal["complete", "partial", "failed"] = "complete"
    reason: str | None = None
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Progress:
    """Counts of requests so far, and the latest sample of each instance."""

    elapsed_s: float
    sent: int
    completed: int
    failed: int
    rejected: int
    instances: Sequence[TimelineSample]


@dataclass(slots=True)
class _Tally:
    sent: int = 0
    ended: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_STATUS.values(), 0))


class Replayer:
    """Replays once. ``on_tick`` is called about every ``tick_s`` seconds with a Progress, and must be quick.

    ``finished`` grows by one record as each request ends: what a checkpoint may write while the replay goes on.
    """

    def __init__(
        self,
        engine: Engine,
        items: Sequence[TimedRequest],
        *,
        mode: str = "open",
        users: int = 1,
        tick_s: float = 0.1,
        on_tick: Callable[[Progress], None] | None = None,
    ) -> None:
        if mode not in MODES:
            raise UnknownNameError("replay mode", mode, MODES)
        if users < 1:
            raise UserError(f"a closed-loop replay needs at least 1 user, got {users}")
        self.engine, self.items, self.mode, self.users = engine, items, mode, users
        self.tick_s, self.on_tick = tick_s, on_tick
        self.samples: list[TimelineSample] = []
        self.finished: list[RequestRecord] = []
        self._tally = _Tally()
        self._start = 0.0
        self._records = [
            RequestRecord(
                request_id=item.request.request_id,
                scheduled_s=item.scheduled_s if mode == "open" else 0.0,
                prompt_tokens=len(item.request.prompt),
                target_output_tokens=item.request.sampling.max_tokens,
            )
            for item in items
        ]

    def run(self) -> ReplayResult:
        """Blocks until every request has ended, Ctrl-C, or the engine's failure; keeps what it has in each case."""
        result = ReplayResult(self._records, self.samples)
        try:
            asyncio.run(self._run())
        except KeyboardInterrupt:
            result.state, result.reason = "partial", "interrupted"
        if self.engine.failure is not None:
            result.state, result.reason = "failed", str(self.engine.failure)
        result.duration_s = time.monotonic() - self._start
        return result

    def _now(self) -> float:
        return time.monotonic() - self._start

    async def _run(self) -> None:
        self._start = time.monotonic()
        sampler = asyncio.create_task(self._sample_forever())
        try:
            await {"open": self._open, "closed": self._closed, "asap": self._asap}[self.mode]()
        finally:
            sampler.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sampler
            self._sample()

    async def _open(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for index, item in enumerate(self.items):
                wait = item.scheduled_s - self._now()
                if wait > 0:
                    await asyncio.sleep(wait)
                if self.engine.failure is not None:
                    break
                tasks.create_task(self._one(index))
        self._fail_unsent()

    async def _asap(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for index in range(len(self.items)):
                tasks.create_task(self._one(index))

    async def _closed(self) -> None:
        indices = iter(range(len(self.items)))

        async def user() -> None:
            for index in indices:
                if self.engine.failure is not None:
                    return
                self._records[index].scheduled_s = self._now()
                await self._one(index)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(self.users):
                tasks.create_task(user())
        self._fail_unsent()

    def _fail_unsent(self) -> None:
        """After the engine broke: what was never sent counts as failed, so that nothing offered is forgotten."""
        for record in self._records:
            if record.sent_s is None:
                self._end(record, "failed", f"not sent: {self.engine.failure}")

    async def _one(self, index: int) -> None:
        record, request = self._records[index], self.items[index].request
        record.sent_s = self._now()
        self._tally.sent += 1
        try:
            async for output in self.engine.stream(request):
                self._note(record, output)
        except EngineError as error:
            self._end(record, "failed", str(error))

    def _note(self, record: RequestRecord, output: RequestOutput) -> None:
        if output.token_ids:
            record.chunk_times.append(self._now())
            record.token_times += [t - self._start for t in output.token_times]
            record.output_tokens += len(output.token_ids)
        if output.finish_reason is None:
            return
        if output.scheduled_s is not None:
            record.first_scheduled_s = output.scheduled_s - self._start
        record.instance, record.preemptions = output.instance, output.preemptions
        self._end(record, _STATUS[output.finish_reason], output.error)

    def _end(self, record: RequestRecord, status: Status, reason: str | None) -> None:
        if record.end_s is not None:
            return
        record.status, record.reason = status, reason
        record.end_s = record.token_times[-1] if status == "completed" else self._now()
        self._tally.ended[status] += 1
        self.finished.append(record)

    async def _sample_forever(self) -> None:
        while True:
            self._sample()
            await asyncio.sleep(self.tick_s)

    def _sample(self) -> None:
        now = self._now()
        latest = [
            TimelineSample(
                t_s=now,
                instance=s.name,
                devices=s.devices,
                tp=s.degree,
                running=s.running,
                waiting=s.waiting,
                kv_used_blocks=s.kv_used_blocks,
                kv_total_blocks=s.kv_total_blocks,
                output_tokens=s.output_tokens,
                prompt_tokens=s.prompt_tokens,
                preemptions=s.preemptions,
            )
            for s in self.engine.status()
        ]
        self.samples += latest
        if self.on_tick is not None:
            ended = self._tally.ended
            self.on_tick(
                Progress(
                    now, self._tally.sent, ended["completed"], ended["failed"], ended["rejected"], latest
                )
            )

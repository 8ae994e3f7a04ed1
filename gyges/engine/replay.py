"""Replaying requests through an engine, and recording what came of each.

    open    each request is sent at its scheduled time, whatever the engine is doing (latency counts from that time)
    closed  N users; each sends its next request when the last one has ended
    asap    everything at once

The engine's tokens are stamped by the controller, deliveries by this client; both clocks are the machine's monotonic one.

A thread of its own sends and does nothing else: an event loop that also handles deliveries was up to a millisecond late
by rounding alone, and much later whenever it was busy (docs/log.md, 2026-11-23).
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
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
        self.engine, self.items, self.mode = engine, items, mode
        self.tick_s, self.on_tick = tick_s, on_tick
        self.samples: list[TimelineSample] = []
        self.finished: list[RequestRecord] = []
        self._ended = dict.fromkeys(("completed", "rejected", "failed", "partial"), 0)
        self._start = 0.0
        self._news: queue.SimpleQueue[tuple[int, RequestOutput | EngineError]] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._free_users = threading.Semaphore(users)
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
        # The sender needs the interpreter within a millisecond of its time, not within the default five.
        interval = sys.getswitchinterval()
        sys.setswitchinterval(0.0005)
        self._start = time.monotonic()
        sender = threading.Thread(target=self._send, name="gyges-sender", daemon=True)
        sender.start()
        try:
            self._listen()
        except KeyboardInterrupt:
            result.state, result.reason = "partial", "interrupted"
        finally:
            sys.setswitchinterval(interval)
            self._stop.set()
            self._free_users.release()
            sender.join()
        if self.engine.failure is not None:
            result.state, result.reason = "failed", str(self.engine.failure)
        self._sample()
        result.duration_s = self._now()
        return result

    def _now(self) -> float:
        return time.monotonic() - self._start

    def _send(self) -> None:
        for index, record in enumerate(self._records):
            if self.mode == "open":
                # Waits on the event would be cut to the same wake-ups; a plain sleep is the most punctual.
                wait = record.scheduled_s - self._now()
                while wait > 0 and not self._stop.is_set():
                    time.sleep(min(wait, 0.2))
                    wait = record.scheduled_s - self._now()
            elif self.mode == "closed":
                self._free_users.acquire()
            if self._stop.is_set():
                return
            record.sent_s = self._now()
            if self.mode == "closed":
                record.scheduled_s = record.sent_s
            try:
                self.engine.submit(self.items[index].request, partial(self._deliver, index))
            except EngineError as error:
                self._news.put((index, error))

    def _deliver(self, index: int, output: RequestOutput) -> None:
        self._news.put((index, output))

    def _listen(self) -> None:
        next_tick = 0.0
        while len(self.finished) < len(self._records):
            now = self._now()
            if now >= next_tick:
                self._tick()
                next_tick = now + self.tick_s
            try:
                index, news = self._news.get(timeout=max(0.001, next_tick - now))
            except queue.Empty:
                if self.engine.failure is not None:
                    self._fail_the_rest()
                continue
            self._note(self._records[index], news)

    def _fail_the_rest(self) -> None:
        """The engine broke and has ended all it had: what was not sent failed too, so nothing offered is forgotten."""
        self._stop.set()
        for record in self._records:
            if record.end_s is None:
                self._end(record, "failed", f"not sent: {self.engine.failure}")

    def _note(self, record: RequestRecord, news: RequestOutput | EngineError) -> None:
        if isinstance(news, EngineError):
            self._end(record, "failed", str(news))
            return
        if news.token_ids:
            record.chunk_times.append(self._now())
            record.token_times += [t - self._start for t in news.token_times]
            record.output_tokens += len(news.token_ids)
        if news.finish_reason is None:
            return
        if news.scheduled_s is not None:
            record.first_scheduled_s = news.scheduled_s - self._start
        record.instance, record.preemptions = news.instance, news.preemptions
        self._end(record, _STATUS[news.finish_reason], news.error)

    def _end(self, record: RequestRecord, status: Status, reason: str | None) -> None:
        record.status, record.reason = status, reason
        record.end_s = record.token_times[-1] if status == "completed" else self._now()
        self._ended[status] += 1
        self.finished.append(record)
        self._free_users.release()

    def _tick(self) -> None:
        latest = self._sample()
        if self.on_tick is not None:
            sent = sum(1 for record in self._records if record.sent_s is not None)
            ended = self._ended
            self.on_tick(Progress(self._now(), sent, ended["completed"], ended["failed"], ended["rejected"], latest))

    def _sample(self) -> list[TimelineSample]:
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
        return latest

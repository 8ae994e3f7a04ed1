"""Replaying requests through an engine, and recording what came of each.

    open    each request is sent at its scheduled time, whatever the engine is doing (latency counts from that time)
    closed  N users; each sends its next request when the last one has ended
    asap    everything at once

Transformations asked for by hand (gyges.engine.by_hand) happen at their times, in every mode.

The engine's tokens are stamped by the controller, deliveries by this client; both clocks are the machine's monotonic one.

A thread of its own sends and does nothing else: an event loop that also handles deliveries was up to a millisecond late
by rounding alone, and much later whenever it was busy (docs/log.md, 2026-11-23).
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

from gyges.core import FinishReason, Request, RequestOutput
from gyges.engine.by_hand import ByHand, HandCommand, HandOutcome
from gyges.engine.engine import Engine
from gyges.engine.recovery import Incident
from gyges.engine.transformer import TransformationReport
from gyges.errors import EngineError, UnknownNameError, UserError
from gyges.metrics.records import RequestRecord, Status, TimelineSample, TokensHasher, TransformationEvent
from gyges.scheduling.routing import Ask

MODES = ("open", "closed", "asap")
NO_INSTANCE = "none"  # the instance of a sample of devices that no instance has: a worker died
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
    """One record per offered request, in trace order. ``state``: complete, partial (interrupted) or failed.

    events: transformations, those that broke included.   incidents: workers' deaths; ``at_s`` is seconds from the replay's
    start, as all times here.   by_hand: what came of each command.
    """

    records: list[RequestRecord]
    samples: list[TimelineSample]
    events: list[TransformationEvent] = field(default_factory=list)
    incidents: list[Incident] = field(default_factory=list)
    by_hand: list[HandOutcome] = field(default_factory=list)
    state: Literal["complete", "partial", "failed"] = "complete"
    reason: str | None = None
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Progress:
    """Counts of requests and output tokens so far, and the latest sample of each instance.

    transforming: instance -> "merge" or "split", for those in the middle of one.
    """

    elapsed_s: float
    sent: int
    completed: int
    failed: int
    rejected: int
    output_tokens: int
    instances: Sequence[TimelineSample]
    transforming: Mapping[str, str]


class Replayer:
    """Replays once. ``on_tick`` is called about every ``tick_s`` seconds with a Progress, and must be quick.

    ``finished`` and ``events`` grow by one as each request or transformation ends: what a checkpoint may write while the
    replay goes on.   by_hand: transformations at times of the replay.
    """

    def __init__(
        self,
        engine: Engine,
        items: Sequence[TimedRequest],
        *,
        mode: str = "open",
        users: int = 1,
        by_hand: Sequence[HandCommand] = (),
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
        self.events: list[TransformationEvent] = []
        self._by_hand = ByHand(engine, by_hand, engine.config.transform_timeout)
        self._transforming: dict[str, str] = {}
        self._hashers: dict[int, TokensHasher] = {}  # of requests under way, by index
        self._tokens = 0
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
        self._let_the_policy_foresee()
        sender = threading.Thread(target=self._send, name="gyges-sender", daemon=True)
        sender.start()
        self._by_hand.start(self._start)
        try:
            self._listen()
            if self.engine.failure is None:
                self._by_hand.stop(wait=True)
                self._let_transformations_end()
        except KeyboardInterrupt:
            result.state, result.reason = "partial", "interrupted"
        finally:
            sys.setswitchinterval(interval)
            self._stop.set()
            self._free_users.release()
            sender.join()
            self._by_hand.stop(wait=False)
        if self.engine.failure is not None:
            result.state, result.reason = "failed", str(self.engine.failure)
        self._sample()
        for index, hasher in self._hashers.items():
            self._records[index].tokens_digest = hasher.hexdigest()
        # Made anew: a pause is known only when the last request that it concerned has had its next token.
        result.events = self.events = [self._event(report) for report in self.engine.reports]
        result.by_hand = self._by_hand.outcomes()
        result.incidents = [replace(each, at_s=each.at_s - self._start) for each in self.engine.incidents]
        result.duration_s = self._now()
        return result

    def _let_the_policy_foresee(self) -> None:
        """The trace, to a policy that asks for it; only an open replay knows when requests come."""
        foresee = getattr(self.engine.policy, "foresee", None)
        if foresee is None or self.mode != "open":
            return
        foresee(
            [
                Ask(
                    item.request.max_length,
                    len(item.request.prompt),
                    self._start + item.scheduled_s,
                    item.request.request_id,
                )
                for item in self.items
            ]
        )

    def _let_transformations_end(self) -> None:
        """What the end of the last request has set off is carried out, and recorded, before the engine is closed."""
        deadline = time.monotonic() + self.engine.config.transform_timeout
        # The end of a request reaches this thread before the controller lets the policy review: look more than once.
        quiet = 0
        while quiet < 3 and time.monotonic() < deadline and self.engine.failure is None:
            time.sleep(0.01)
            quiet = 0 if any(status.transforming for status in self.engine.status()) else quiet + 1

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
            self._note(index, news)

    def _fail_the_rest(self) -> None:
        """The engine broke and has ended all it had: what was not sent failed too, so nothing offered is forgotten."""
        self._stop.set()
        for record in self._records:
            if record.end_s is None:
                self._end(record, "failed", f"not sent: {self.engine.failure}")

    def _note(self, index: int, news: RequestOutput | EngineError) -> None:
        record = self._records[index]
        if isinstance(news, EngineError):
            self._end(record, "failed", str(news))
            return
        if news.token_ids:
            record.chunk_times.append(self._now())
            record.token_times += [t - self._start for t in news.token_times]
            record.output_tokens += len(news.token_ids)
            self._tokens += len(news.token_ids)
            self._hashers.setdefault(index, TokensHasher()).update(news.token_ids)
        if news.finish_reason is None:
            return
        if news.scheduled_s is not None:
            record.first_scheduled_s = news.scheduled_s - self._start
        record.instance, record.preemptions = news.instance, news.preemptions
        if index in self._hashers:
            record.tokens_digest = self._hashers.pop(index).hexdigest()
        self._end(record, _STATUS[news.finish_reason], news.error)

    def _end(self, record: RequestRecord, status: Status, reason: str | None) -> None:
        record.status, record.reason = status, reason
        record.end_s = record.token_times[-1] if status == "completed" else self._now()
        self._ended[status] += 1
        self.finished.append(record)
        self._free_users.release()

    def _tick(self) -> None:
        latest = self._sample()
        self.events += [self._event(report) for report in self.engine.reports[len(self.events) :]]
        if self.on_tick is not None:
            sent = sum(1 for record in self._records if record.sent_s is not None)
            ended = self._ended
            self.on_tick(
                Progress(
                    elapsed_s=self._now(),
                    sent=sent,
                    completed=ended["completed"],
                    failed=ended["failed"],
                    rejected=ended["rejected"],
                    output_tokens=self._tokens,
                    instances=latest,
                    transforming=self._transforming,
                )
            )

    def _event(self, report: TransformationReport) -> TransformationEvent:
        assert report.kind in ("merge", "split")
        return TransformationEvent(
            kind=report.kind,  # type: ignore[arg-type]
            devices=report.devices,
            start_s=(report.start_s or report.asked_s) - self._start,  # one that broke may not have begun
            end_s=report.end_s - self._start,
            bytes_moved=report.bytes_moved,
            pause_s=report.pause_s,
            cause=report.cause,
            asked_s=report.asked_s - self._start,
            before=report.before,
            after=report.after,
            overlap=report.overlap,
            stopped=report.stopped,
            steps=report.steps,
            tokens=report.tokens,
            error=report.error,
            extra_bytes=report.peak_extra_pages * self.engine.config.page_bytes,
        )

    def _sample(self) -> list[TimelineSample]:
        now, statuses = self._now(), self.engine.status()
        self._transforming = {s.name: s.transforming for s in statuses if s.transforming}
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
            for s in statuses
        ]
        held = {device for sample in latest for device in sample.devices}
        bare = tuple(device for device in range(self.engine.config.num_devices) if device not in held)
        if bare:
            latest.append(TimelineSample(now, NO_INSTANCE, bare, 0, 0, 0, 0, 0))
        self.samples += latest
        return latest

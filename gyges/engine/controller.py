"""The controller's loop: one thread that owns all engine state, and waits for whatever happens next.

    commands (submit, abort) --queue + wake-up--> |          | --Step-->     worker 0 .. n
    worker messages          --sockets----------> |   loop   |
    worker deaths            --pidfds-----------> |          | --RequestOutput--> callers

Every wait ends: at a message, a death, a command, or the deadline of the step that has run longest.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial

from gyges.core import FinishReason, Request, RequestOutput
from gyges.engine.instance import Instance, LiveRequest, final_output
from gyges.engine.messages import Failed, StepDone
from gyges.engine.process import WorkerProcess
from gyges.errors import EngineError
from gyges.scheduling.batching import Sequence
from gyges.scheduling.routing import Reject, RoutingPolicy

Deliver = Callable[[RequestOutput], None]


class Controller:
    """Runs from :meth:`start` to :meth:`stop`. ``submit`` and ``abort`` may be called from any thread."""

    def __init__(self, instances: list[Instance], policy: RoutingPolicy, max_context: int, step_timeout: float) -> None:
        self.instances, self.policy = instances, policy
        self.max_context, self.step_timeout = max_context, step_timeout
        self.failure: EngineError | None = None
        self._live: dict[str, tuple[LiveRequest, Instance]] = {}
        self._order = 0
        self._commands: deque[Callable[[], None]] = deque()
        self._wake_r, self._wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._stopping = False
        self._lock = threading.Lock()  # orders submissions against the final drain
        self._thread = threading.Thread(target=self._run, name="gyges-controller", daemon=True)
        self._aborting: set[str] = set()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake_r, selectors.EVENT_READ, self._drain_commands)
        for instance in instances:
            for worker in instance.workers:
                talks, dies = partial(self._handle, instance, worker), partial(self._mourn, instance, worker)
                self._selector.register(worker.connection, selectors.EVENT_READ, talks)
                self._selector.register(worker.pidfd, selectors.EVENT_READ, dies)
        self.busy_s = 0.0  # spent outside of waiting
        self.steps = 0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the loop; what is unfinished ends as ABORTED. Idempotent."""
        self._stopping = True
        self._wake()
        if self._thread.ident is not None:
            self._thread.join()
        with self._lock:
            if self._wake_w >= 0:
                self._selector.close()
                os.close(self._wake_r)
                os.close(self._wake_w)
            self._wake_r = self._wake_w = -1

    def submit(self, request: Request, deliver: Deliver) -> None:
        """``deliver`` is called on the controller's thread, in order, the last time with a finish reason."""
        submitted = time.monotonic()
        self._post(lambda: self._admit(request, deliver, submitted))

    def abort(self, request_id: str) -> None:
        self._post(lambda: self._aborting.add(request_id))

    def _post(self, command: Callable[[], None]) -> None:
        with self._lock:
            if self.failure is not None:
                raise EngineError(f"the engine has failed: {self.failure}") from self.failure
            if self._stopping:
                raise EngineError("the engine is closed; start a new one")
            self._commands.append(command)
        self._wake()

    def _wake(self) -> None:
        if self._wake_w >= 0:
            with contextlib.suppress(BlockingIOError):  # the pipe is full of wake-ups already
                os.write(self._wake_w, b"x")

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._turn()
            self._end_all(FinishReason.ABORTED, "the engine was closed")
        except EngineError as error:
            self._fail(error)
        except BaseException as error:
            self._fail(EngineError(f"the controller failed: {type(error).__name__}: {error}"))
            raise

    def _fail(self, error: EngineError) -> None:
        with self._lock:
            self.failure = error
        self._end_all(FinishReason.FAILED, str(error))

    def _turn(self) -> None:
        for key, _ in self._selector.select(self._timeout()):
            key.data()
        started = time.monotonic()
        for request_id in list(self._aborting):
            self._try_abort(request_id)
        for instance in self.instances:
            if instance.launch(started):
                self.steps += 1
        self.busy_s += time.monotonic() - started

    def _timeout(self) -> float | None:
        """Seconds until the step that has run longest is overdue. Raises EngineError once it is."""
        under_way = [i for i in self.instances if i.plan is not None]
        if not under_way:
            return None
        oldest = min(under_way, key=lambda i: i.step_started_s)
        left = oldest.step_started_s + self.step_timeout - time.monotonic()
        if left <= 0:
            raise EngineError(
                f"instance {oldest.name} (workers {oldest.placement.members}) did not finish a step within "
                f"{self.step_timeout:.0f} s; raise step_timeout if the step is really that long"
            )
        return left

    def _mourn(self, instance: Instance, worker: WorkerProcess) -> None:
        """Its last message, if there is one, explains more than its exit code."""
        while worker.connection.poll():
            self._handle(instance, worker)
        raise worker.death()

    def _drain_commands(self) -> None:
        try:
            os.read(self._wake_r, 1 << 16)
        except BlockingIOError:
            return
        while self._commands:
            self._commands.popleft()()

    def _handle(self, instance: Instance, worker: WorkerProcess) -> None:
        message = worker.receive()
        now = time.monotonic()
        if isinstance(message, Failed):
            raise EngineError(
                f"worker {worker.worker} of instance {instance.name} failed: {message.error}\n{worker.last_words()}"
            )
        assert isinstance(message, StepDone), f"unexpected {type(message).__name__}"
        for live, output in instance.complete(message, now):
            if output.finished:
                del self._live[live.request.request_id]
            live.deliver(output)
        self.busy_s += time.monotonic() - now

    def _admit(self, request: Request, deliver: Deliver, submitted: float) -> None:
        sequence = Sequence(
            order=self._order,
            prompt_tokens=len(request.prompt),
            max_tokens=request.sampling.max_tokens,
            known=len(request.prompt),
        )
        live = LiveRequest(request, sequence, self._order, deliver, submitted)
        self._order += 1
        context = len(request.prompt) + request.sampling.max_tokens
        decision = (
            Reject(f"needs a context of {context} tokens; the longest allowed is {self.max_context}")
            if context > self.max_context
            else self.policy.route(sequence.max_length, [i.view() for i in self.instances])
        )
        if isinstance(decision, Reject):
            deliver(final_output(live, FinishReason.REJECTED, time.monotonic(), None, error=decision.reason))
            return
        instance = self.instances[decision.index]
        self._live[request.request_id] = (live, instance)
        instance.add(live)

    def _try_abort(self, request_id: str) -> None:
        """Ends a request between steps: while one is under way its blocks are in use, so it is asked again after."""
        live, instance = self._live.get(request_id, (None, None))
        if live is not None and instance is not None:
            if instance.plan is not None:
                return
            del self._live[request_id]
            instance.drop(live)
            live.deliver(final_output(live, FinishReason.ABORTED, time.monotonic(), instance.name))
        self._aborting.discard(request_id)

    def _end_all(self, reason: FinishReason, error: str) -> None:
        with self._lock:
            self._stopping = True
            commands, self._commands = self._commands, deque()
        for command in commands:
            command()  # submissions that came too late are admitted, to be ended like the rest
        now = time.monotonic()
        for live, instance in list(self._live.values()):
            live.deliver(final_output(live, reason, now, instance.name, error=error))
        self._live.clear()

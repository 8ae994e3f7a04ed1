"""The controller's loop: one thread that owns all engine state, and waits for whatever happens next.

    commands (submit, abort, transform) --queue + wake-up--> |          | --Step, Transform--> worker 0 .. n
    worker messages                     --sockets----------> |   loop   |
    worker deaths                       --pidfds-----------> |          | --RequestOutput--> callers

Every wait ends: at a message, a death, a command, or the deadline of whatever has run longest. Here is who waits for what, and
which request goes where; which instances there are is the business of gyges.engine.live_host.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial

from gyges.core import FinishReason, Request, RequestOutput
from gyges.engine.instance import Instance, LiveRequest, final_output
from gyges.engine.live_host import LiveHost
from gyges.engine.messages import Failed, Parked, Ready, StepDone, Transformed
from gyges.engine.process import WorkerProcess
from gyges.engine.recovery import Workers
from gyges.engine.transformer import Surroundings, TransformationReport
from gyges.errors import EngineError
from gyges.scheduling.batching import Sequence
from gyges.scheduling.routing import Ask, Merge, Restart, RoutingPolicy, Send, Wait
from gyges.transform.plan import PlanImpossible

Deliver = Callable[[RequestOutput], None]


class Controller:
    """Runs from :meth:`start` to :meth:`stop`. ``submit``, ``abort`` and ``transform`` may be called from any thread."""

    def __init__(
        self,
        instances: list[Instance],
        policy: RoutingPolicy,
        around: Surroundings,
        workers: Workers,
        *,
        max_context: int,
        step_timeout: float,
    ) -> None:
        self.policy, self.max_context = policy, max_context
        self.failure: EngineError | None = None
        self._pending: list[LiveRequest] = []  # admitted, and no instance can take them now
        self._woken_s: float | None = None  # the last of its times at which the policy was asked
        self._live: dict[str, LiveRequest] = {}
        self._order = 0
        self._commands: deque[Callable[[], None]] = deque()
        self._wake_r, self._wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._stopping = False
        self._lock = threading.Lock()  # orders submissions against the final drain
        self._thread = threading.Thread(target=self._run, name="gyges-controller", daemon=True)
        self._aborting: set[str] = set()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake_r, selectors.EVENT_READ, self._drain_commands)
        self.host = LiveHost(
            instances, around, workers, step_timeout=step_timeout, watch=self._watch, unwatch=self._unwatch
        )
        self.busy_s = 0.0  # spent outside of waiting
        self.steps = 0

    def _watch(self, worker: WorkerProcess) -> None:
        self._selector.register(worker.connection, selectors.EVENT_READ, partial(self._handle, worker))
        self._selector.register(worker.pidfd, selectors.EVENT_READ, partial(self._mourn, worker))

    def _unwatch(self, worker: WorkerProcess) -> None:
        for watched in (worker.connection, worker.pidfd):
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(watched)

    # -- from any thread ----------------------------------------------------------------------------------------------

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

    def transform(
        self, devices: tuple[int, ...], degrees: tuple[int, ...], cause: str, overlap: bool | None = None
    ) -> Future[TransformationReport]:
        """Instances on exactly these devices become instances of ``degrees``. The future gets the report once it is over, or
        PlanImpossible (nothing has changed), UserError (it makes no sense), EngineError (it broke; see incidents)."""
        future: Future[TransformationReport] = Future()
        self._post(lambda: self.host.ask(devices, degrees, cause, future, overlap))
        return future

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

    # -- the loop -----------------------------------------------------------------------------------------------------

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
            try:
                key.data()
            except EngineError as error:
                self.host.broke(error)
        started, host = time.monotonic(), self.host
        self._pending += host.take_homeless()
        for request_id in list(self._aborting):
            self._try_abort(request_id)
        if host.changed or self._is_time_to_wake(started):
            self._review(started)
        while host.restart is not None and host.is_drained:
            host.carry_out_restart()
            self._review(time.monotonic())
        try:
            host.advance()
            if host.retry:
                host.retry = False
                self._place_all(started)
            for instance in list(host.instances):
                if instance.launch(started):
                    self.steps += 1
        except EngineError as error:
            host.broke(error)
        host.note_pauses()
        self.busy_s += time.monotonic() - started

    def _timeout(self) -> float | None:
        """Seconds until the first deadline."""
        now = time.monotonic()
        due, wake_s = self.host.next_deadline(now), self.policy.wake_s
        if wake_s is not None and wake_s != self._woken_s:
            due = max(wake_s, now) if due is None else min(due, max(wake_s, now))
        return None if due is None else due - now

    def _is_time_to_wake(self, now: float) -> bool:
        """Once for each time that the policy names."""
        wake_s = self.policy.wake_s
        if wake_s is None or wake_s == self._woken_s or now < wake_s:
            return False
        self._woken_s = wake_s
        return True

    def _mourn(self, worker: WorkerProcess) -> None:
        """Its last message, if there is one, explains more than its exit code."""
        while worker.connection.poll():
            self._handle(worker)
        raise worker.death()

    def _drain_commands(self) -> None:
        try:
            os.read(self._wake_r, 1 << 16)
        except BlockingIOError:
            return
        while self._commands:
            self._commands.popleft()()

    def _handle(self, worker: WorkerProcess) -> None:
        message = worker.receive()
        now = time.monotonic()
        if isinstance(message, Failed):
            raise worker.failed(message.error)
        if isinstance(message, Parked | Ready):
            self.host.recovering(worker.worker, message)
        elif self.host.is_recovering(worker.worker):
            pass  # an answer to something that broke
        elif isinstance(message, StepDone):
            self._step_done(worker, message, now)
        else:
            assert isinstance(message, Transformed), f"unexpected {type(message).__name__}"
            self.host.transformed(worker.worker, message)
        self.busy_s += time.monotonic() - now

    def _step_done(self, worker: WorkerProcess, message: StepDone, now: float) -> None:
        instance = self.host.instance_of(worker.worker)
        assert instance is not None, f"worker {worker.worker} answers for no instance"
        if instance.plan is not None and instance.joint is None:
            self.host.prices.note_step(instance.plan.tokens, instance.degree, now - instance.step_started_s)
        for live, output in instance.complete(message, now):
            if output.finished:
                del self._live[live.request.request_id]
                self.host.changed = True
            live.deliver(output)

    # -- requests -----------------------------------------------------------------------------------------------------

    def _admit(self, request: Request, deliver: Deliver, submitted: float) -> None:
        sequence = Sequence(
            order=self._order,
            prompt_tokens=len(request.prompt),
            max_tokens=request.sampling.max_tokens,
            known=len(request.prompt),
        )
        live = LiveRequest(request, sequence, self._order, deliver, submitted)
        self._order += 1
        self._live[request.request_id] = live
        context = len(request.prompt) + request.sampling.max_tokens
        if context > self.max_context:
            self._reject(live, f"needs a context of {context} tokens; the longest allowed is {self.max_context}")
            return
        self._pending.append(live)  # placed in this very turn, after those that wait already
        self.host.changed = True

    def _review(self, now: float) -> None:
        host = self.host
        host.changed = False
        if host.restart is not None:
            return
        self._place_all(now)
        if not host.instances or host.restart is not None:
            return
        for wish in self.policy.review(*host.views(self._pending), now):
            try:
                if isinstance(wish, Restart):
                    host.begin_restart(wish)
                else:
                    host.begin(wish)
            except PlanImpossible:
                continue  # not yet; it is asked again when something has changed

    def _place_all(self, now: float) -> None:
        """Those that wait, in order of arrival."""
        pending, self._pending = sorted(self._pending, key=lambda live: live.sequence.order), []
        for index, live in enumerate(pending):
            self._place(live, pending[index + 1 :], now)

    def _place(self, live: LiveRequest, later: list[LiveRequest], now: float) -> None:
        """Asks the policy. A request that no instance can take now, but one later, waits."""
        if not self.host.instances or self.host.restart is not None:
            self._pending.append(live)
            return
        sequence = live.sequence
        ask = Ask(sequence.max_length, sequence.missing, live.submitted_s, live.request.request_id)
        decision = self.policy.route(ask, *self.host.views(self._pending + later, len(self._pending)), now)
        if isinstance(decision, Merge):
            try:
                target = self.host.begin(decision)
            except PlanImpossible:
                target = None
            if target is not None and target.wide is not None:
                self._give(live, target.wide)
                return
            decision = Wait()
        if isinstance(decision, Restart):
            self.host.begin_restart(decision)
            decision = Wait()
        if isinstance(decision, Send):
            self._give(live, self.host.instances[decision.index])
        elif isinstance(decision, Wait) or self.host.recoveries:
            self._pending.append(live)
        else:
            self._reject(live, decision.reason)

    def _give(self, live: LiveRequest, instance: Instance) -> None:
        if instance.batcher.fits_alone(live.sequence.max_length):
            instance.add(live)
        else:
            self._pending.append(live)

    def _reject(self, live: LiveRequest, reason: str) -> None:
        """What was computed once and can be held nowhere any more has failed; what never began is rejected."""
        del self._live[live.request.request_id]
        kind = FinishReason.FAILED if live.sequence.preemptions else FinishReason.REJECTED
        live.deliver(final_output(live, kind, time.monotonic(), None, error=reason))

    def _try_abort(self, request_id: str) -> None:
        """Ends a request between steps: while one is under way its blocks are in use, so it is asked again after."""
        live = self._live.get(request_id)
        if live is not None:
            instance = next((i for i in self.host.instances if live.sequence in i.live), None)
            if instance is not None:
                settling = instance.held and instance.joint is not None
                if instance.plan is not None or settling:
                    return
                instance.drop(live)
            elif live in self._pending:
                self._pending.remove(live)
            else:
                return  # between two instances
            del self._live[request_id]
            self.host.changed = True
            live.deliver(
                final_output(live, FinishReason.ABORTED, time.monotonic(), instance.name if instance else None)
            )
        self._aborting.discard(request_id)

    def _end_all(self, reason: FinishReason, error: str) -> None:
        with self._lock:
            self._stopping = True
            commands, self._commands = self._commands, deque()
        for command in commands:
            command()  # what came too late is taken, to be ended like the rest
        self.host.abandon(error)
        now = time.monotonic()
        for live in list(self._live.values()):
            instance = next((i.name for i in self.host.instances if live.sequence in i.live), None)
            live.deliver(final_output(live, reason, now, instance, error=error))
        self._live.clear()

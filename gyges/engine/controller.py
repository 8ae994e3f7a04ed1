"""The controller's loop: one thread that owns all engine state, and waits for whatever happens next.

    commands (submit, abort, transform) --queue + wake-up--> |          | --Step, Transform--> worker 0 .. n
    worker messages                     --sockets----------> |   loop   |
    worker deaths                       --pidfds-----------> |          | --RequestOutput--> callers

Every wait ends: at a message, a death, a command, or the deadline of whatever has run longest. A worker that dies takes its
instance with it; what is left of that instance starts again (gyges.engine.recovery), and its requests are computed anew.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import Future
from functools import partial

from gyges.core import FinishReason, Request, RequestOutput
from gyges.engine.instance import Instance, LiveRequest, final_output
from gyges.engine.messages import Failed, Parked, Ready, StepDone, Transformed
from gyges.engine.prices import MeasuredPrices
from gyges.engine.process import WorkerProcess
from gyges.engine.recovery import Incident, Recovery, Workers
from gyges.engine.restarting import Restarting
from gyges.engine.transformer import Surroundings, TransformationReport, Transformer
from gyges.errors import EngineError, UserError
from gyges.scheduling.batching import Sequence
from gyges.scheduling.routing import Ask, HostView, InstanceView, Merge, Restart, RoutingPolicy, Send, Split, Wait
from gyges.transform.plan import PlanImpossible
from gyges.transform.shape import Transformation, merge, split

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
        self.instances, self.policy, self.around, self._workers = instances, policy, around, workers
        self.max_context, self.step_timeout = max_context, step_timeout
        self.max_tokens = self._max_tokens(around.host.num_devices)
        self.prices = MeasuredPrices(around.host)
        self.failure: EngineError | None = None
        self.reports: list[TransformationReport] = []
        self.incidents: list[Incident] = []
        self._transformers: list[Transformer] = []
        self._paused: list[Transformer] = []  # over, but some request has not had its next token
        self._recoveries: list[Recovery] = []
        self._pending: list[LiveRequest] = []  # admitted, and no instance can take them now
        self._changed = False  # something for the policy to review
        self._restart: Restarting | None = None  # nothing is placed until the host has been restarted
        self._woken_s: float | None = None  # the last of its times at which the policy was asked
        self._live: dict[str, LiveRequest] = {}
        self._order = 0
        self._commands: deque[Callable[[], None]] = deque()
        self._wake_r, self._wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._stopping = False
        self._lock = threading.Lock()  # orders submissions against the final drain
        self._thread = threading.Thread(target=self._run, name="gyges-controller", daemon=True)
        self._aborting: set[str] = set()
        self._buried: set[int] = set()  # workers that are known to be dead
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake_r, selectors.EVENT_READ, self._drain_commands)
        self._watch()
        self.busy_s = 0.0  # spent outside of waiting
        self.steps = 0

    def _watch(self) -> None:
        for instance in self.instances:
            for worker in instance.workers:
                self._selector.register(worker.connection, selectors.EVENT_READ, partial(self._handle, worker))
                self._selector.register(worker.pidfd, selectors.EVENT_READ, partial(self._mourn, worker))

    def _unwatch(self, worker: WorkerProcess) -> None:
        for watched in (worker.connection, worker.pidfd):
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(watched)

    def _max_tokens(self, devices: int) -> dict[int, int]:
        """TP degree -> longest context, for all that the host can take with that many devices alive."""
        host = self.around.host
        return {d: host.max_tokens(d) for d in host.degrees if host.max_groups(d) >= 1 and d <= devices}

    def _views(self, waiting: Collection[LiveRequest], ahead: int = 0) -> tuple[list[InstanceView], HostView]:
        """What the policy sees now; ``waiting``: requests outside of all instances, the first ``ahead`` before the asked one."""
        lowest = min(self.max_tokens.values())
        becoming = {
            source: t.report.after for t in self._transformers for source in (t.sources if t.wide is None else [t.wide])
        }
        prompts = sum(live.sequence.missing for live in waiting)
        host = HostView(self.max_tokens, len(waiting), ahead, prompts, self.prices)
        return [i.view(lowest, becoming.get(i, ())) for i in self.instances], host

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
        self._post(lambda: self._ask(devices, degrees, cause, future, overlap))
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
                self._broke(error)
        started = time.monotonic()
        for request_id in list(self._aborting):
            self._try_abort(request_id)
        if self._changed or self._is_time_to_wake(started):
            self._review(started)
        while self._restart is not None and self._is_drained():
            self._carry_out_restart()
        try:
            for transformer in list(self._transformers):
                self._advance(transformer)
            for instance in list(self.instances):
                if instance.launch(started):
                    self.steps += 1
        except EngineError as error:
            self._broke(error)
        if self._paused:
            self._paused = [t for t in self._paused if not t.note_pauses()]
        self.busy_s += time.monotonic() - started

    def _broke(self, error: EngineError) -> None:
        """A worker could not be reached or told that it failed: its instance is broken up. Anything else ends the engine."""
        worker = getattr(error, "worker", None)
        if worker is None:
            raise error
        if worker not in self._buried:  # a death is seen twice in one round: by the socket and by the pidfd
            self._lose({worker}, error)

    def _timeout(self) -> float | None:
        """Seconds until the first deadline. Deals with what is overdue."""
        now = time.monotonic()
        deadlines: list[float] = []
        for instance in list(self.instances):
            if instance.plan is not None:
                left = instance.step_started_s + self.step_timeout
                if left <= now:
                    self._overdue(instance)
                    return 0.0
                deadlines.append(left)
        for transformer in list(self._transformers):
            if transformer.deadline_s <= now:
                self._late(transformer)
                return 0.0
            deadlines.append(transformer.deadline_s)
        for recovery in list(self._recoveries):
            if recovery.deadline_s <= now:
                self._lose(recovery.silent(), EngineError(f"{recovery.silent_names()} did not answer after a failure"))
                return 0.0
            deadlines.append(recovery.deadline_s)
        wake_s = self.policy.wake_s
        if wake_s is not None and wake_s != self._woken_s:
            deadlines.append(max(wake_s, now))
        return min(deadlines) - now if deadlines else None

    def _is_time_to_wake(self, now: float) -> bool:
        """Once for each time that the policy names."""
        wake_s = self.policy.wake_s
        if wake_s is None or wake_s == self._woken_s or now < wake_s:
            return False
        self._woken_s = wake_s
        return True

    def _overdue(self, instance: Instance) -> None:
        error = EngineError(
            f"instance {instance.name} (workers {instance.members}) did not finish a step within "
            f"{self.step_timeout:.0f} s; raise step_timeout if the step is really that long"
        )
        self._lose(set(instance.members) if instance.degree == 1 else set(), error, suspects=instance.members)

    def _late(self, transformer: Transformer) -> None:
        error = EngineError(
            f"the {transformer.shape.kind} of workers {transformer.report.devices} was not over within "
            f"{self.around.timeout:.0f} s (phase {transformer.phase}); raise transform_timeout if it really takes that long"
        )
        members = tuple(worker for instance in transformer.instances for worker in instance.members)
        self._lose(set(), error, suspects=members)

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

    def _instance_of(self, worker: int) -> Instance | None:
        return next((i for i in self.instances if worker in i.members), None)

    def _handle(self, worker: WorkerProcess) -> None:
        message = worker.receive()
        now = time.monotonic()
        if isinstance(message, Failed):
            raise worker.failed(message.error)
        recovery = next((r for r in self._recoveries if worker.worker in r.workers), None)
        if isinstance(message, Parked | Ready):
            if recovery is None or message.recovery != recovery.number:
                pass  # of a recovery that another death has overtaken
            elif isinstance(message, Parked):
                recovery.parked(worker.worker)
                if recovery.impossible:
                    self._recovered(recovery)
            elif recovery.ready(worker.worker):
                self._recovered(recovery)
        elif recovery is not None:
            pass  # an answer to something that broke
        elif isinstance(message, StepDone):
            self._step_done(worker, message, now)
        else:
            assert isinstance(message, Transformed), f"unexpected {type(message).__name__}"
            transformer = next(t for t in self._transformers if worker.worker in t.shape.wide)
            if transformer.transformed(worker.worker, message.spent):
                self._finished(transformer)
        self.busy_s += time.monotonic() - now

    def _step_done(self, worker: WorkerProcess, message: StepDone, now: float) -> None:
        instance = self._instance_of(worker.worker)
        assert instance is not None, f"worker {worker.worker} answers for no instance"
        if instance.plan is not None and instance.joint is None:
            self.prices.note_step(instance.plan.tokens, instance.degree, now - instance.step_started_s)
        for live, output in instance.complete(message, now):
            if output.finished:
                del self._live[live.request.request_id]
                self._changed = True
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
        self._changed = True

    def _place(self, live: LiveRequest, later: list[LiveRequest], now: float) -> None:
        """Asks the policy. A request that no instance can take now, but one later, waits."""
        if not self.instances or self._restart is not None:
            self._pending.append(live)
            return
        sequence = live.sequence
        ask = Ask(sequence.max_length, sequence.missing, live.submitted_s, live.request.request_id)
        decision = self.policy.route(ask, *self._views(self._pending + later, len(self._pending)), now)
        if isinstance(decision, Merge):
            try:
                target = self._start_merge(decision)
            except PlanImpossible:
                target = None
            if target is not None and target.wide is not None:
                self._give(live, target.wide)
                return
            decision = Wait()
        if isinstance(decision, Restart):
            self._begin_restart(decision)
            decision = Wait()
        if isinstance(decision, Send):
            self._give(live, self.instances[decision.index])
        elif isinstance(decision, Wait) or self._recoveries:
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
            instance = next((i for i in self.instances if live.sequence in i.live), None)
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
            self._changed = True
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
        for transformer in self._transformers:
            if not transformer.future.done():
                transformer.future.set_exception(EngineError(error))
        now = time.monotonic()
        for live in list(self._live.values()):
            instance = next((i.name for i in self.instances if live.sequence in i.live), None)
            live.deliver(final_output(live, reason, now, instance, error=error))
        self._live.clear()

    # -- transformations ----------------------------------------------------------------------------------------------

    def _review(self, now: float) -> None:
        self._changed = False
        if self._restart is not None:
            return
        self._place_all(now)
        if not self.instances or self._restart is not None:
            return
        for wish in self.policy.review(*self._views(self._pending), now):
            try:
                if isinstance(wish, Restart):
                    self._begin_restart(wish)
                elif isinstance(wish, Merge):
                    self._start_merge(wish)
                else:
                    self._start_split(wish)
            except PlanImpossible:
                continue  # not yet; it is asked again when something has changed

    def _place_all(self, now: float) -> None:
        """Those that wait, in order of arrival."""
        pending, self._pending = sorted(self._pending, key=lambda live: live.sequence.order), []
        for index, live in enumerate(pending):
            self._place(live, pending[index + 1 :], now)

    def _start_merge(self, wish: Merge) -> Transformer | None:
        sources = [self.instances[i] for i in wish.indices]
        shape = merge(tuple(s.members for s in sources), self.around.host.shards)
        return self._start(shape, sources, wish.cause, Future(), None)

    def _start_split(self, wish: Split) -> Transformer | None:
        source = self.instances[wish.index]
        shape = split(source.members, wish.degrees, self.around.host.shards)
        return self._start(shape, [source], wish.cause, Future(), None)

    def _ask(
        self,
        devices: tuple[int, ...],
        degrees: tuple[int, ...],
        cause: str,
        future: Future[TransformationReport],
        overlap: bool | None,
    ) -> None:
        try:
            sources = [i for i in self.instances if set(i.members) & set(devices)]
            held = {worker for source in sources for worker in source.members}
            now = tuple(source.degree for source in sources)
            if held != set(devices) or (len(sources) > 1) == (len(degrees) > 1) or sum(degrees) != len(held):
                raise UserError(
                    f"instances {now} of devices {sorted(held)} cannot become {degrees} on devices {sorted(devices)}; "
                    "a merge takes several whole instances to one, a split one to several, on the same devices"
                )
            shards = self.around.host.shards
            if len(degrees) == 1:
                shape = merge(tuple(s.members for s in sources), shards)
            else:
                shape = split(sources[0].members, degrees, shards)
            self._start(shape, sources, cause, future, overlap)
        except (UserError, PlanImpossible) as error:
            future.set_exception(error)

    def _start(
        self,
        shape: Transformation,
        sources: list[Instance],
        cause: str,
        future: Future[TransformationReport],
        overlap: bool | None,
    ) -> Transformer:
        """Raises PlanImpossible where it cannot be begun, UserError for a degree that the host cannot take."""
        if any(source.held or source.joint is not None for source in sources):
            raise PlanImpossible("another transformation is under way on these devices")
        for degree in {len(shape.wide), *(len(members) for members in shape.narrow)}:
            if degree not in self.max_tokens:
                known = ", ".join(f"TP{d}" for d in self.max_tokens)
                raise UserError(f"TP{degree} is not among the degrees of this host ({known}); add it to --tp-degrees")
        if shape.kind == "split":
            longest = max(self.max_tokens[len(members)] for members in shape.narrow)
            if any(sequence.max_length > longest for sequence in sources[0].batcher.running):
                raise PlanImpossible(
                    f"a running request needs more than the {longest} tokens that these instances hold"
                )
        transformer = Transformer(self.around, shape, sources, cause, future, overlap)
        self._transformers.append(transformer)
        return transformer

    def _advance(self, transformer: Transformer) -> None:
        try:
            replacing = transformer.advance()
        except PlanImpossible as error:
            if transformer.phase == "gather":
                self._called_off(transformer, error)
                return
            # It has begun and cannot end: better to compute everything there anew than to stay half way.
            self._lose(set(), error, suspects=transformer.shape.wide)
            return
        if replacing is not None:
            self.instances = [i for i in self.instances if i not in transformer.sources] + replacing
            self._changed = True

    def _called_off(self, transformer: Transformer, error: EngineError) -> None:
        """Before anything has changed."""
        assert transformer.phase == "gather", f"{transformer.phase} fell through: {error}"
        for source in transformer.sources:
            source.held = False
        self._transformers.remove(transformer)
        transformer.future.set_exception(error)
        # A request may wait for it. The policy's own wish is not asked again before something else has changed.
        self._place_all(time.monotonic())

    def _finished(self, transformer: Transformer) -> None:
        now, homeless = transformer.finish()
        self._transformers.remove(transformer)
        self.instances = [i for i in self.instances if i is not transformer.wide and i not in transformer.sources] + now
        self.reports.append(transformer.report)
        self.prices.note_transformation(transformer.report)
        self._paused.append(transformer)
        self._pending += homeless
        self._changed = True
        transformer.future.set_result(transformer.report)

    # -- restarts -----------------------------------------------------------------------------------------------------

    def _begin_restart(self, wish: Restart) -> None:
        self._restart = Restarting(wish, self.instances, time.monotonic())

    def _is_drained(self) -> bool:
        busy = any(instance.plan is not None or instance.live for instance in self.instances)
        return not (busy or self._transformers or self._recoveries)

    def _carry_out_restart(self) -> None:
        """Replaces the processes. Nobody can be served meanwhile, so the thread may wait; and asks the policy again."""
        assert self._restart is not None
        restart, self._restart = self._restart, None
        for instance in self.instances:
            for worker in instance.workers:
                self._unwatch(worker)
        report = restart.begun(time.monotonic())
        self.around, self.instances = self._workers.restart(restart.wish.degrees)
        report.end_s = time.monotonic()
        self.reports.append(report)
        self._buried.clear()
        self._watch()
        self._review(time.monotonic())

    # -- failures -----------------------------------------------------------------------------------------------------

    def _lose(self, dead: set[int], error: EngineError, suspects: tuple[int, ...] = ()) -> None:
        """``dead`` workers are gone. Their instances, and that of ``suspects`` (one of whom must have died), are broken up."""
        touched = dead | set(suspects)
        survivors: set[int] = set()
        orphans: list[LiveRequest] = []
        for transformer in [t for t in self._transformers if set(t.shape.wide) & touched]:
            self._transformers.remove(transformer)
            transformer.report.error, transformer.report.end_s = str(error), time.monotonic()
            self.reports.append(transformer.report)
            for source in transformer.sources:
                source.held = False
            transformer.future.set_exception(EngineError(f"the transformation broke: {error}"))
        for instance in [i for i in self.instances if set(i.members) & touched]:
            self.instances = [i for i in self.instances if i is not instance]
            survivors |= set(instance.members)
            orphans += instance.live.values()
        for recovery in [r for r in self._recoveries if r.workers & touched]:
            self._recoveries.remove(recovery)
            survivors |= recovery.workers
        for worker in dead:
            self._bury(worker)
        survivors -= dead
        alive = (
            survivors
            | {w for i in self.instances for w in i.members}
            | {w for r in self._recoveries for w in r.workers}
        )
        self.max_tokens = self._max_tokens(len(alive))
        for live in orphans:
            live.sequence.start_over()
        self.incidents.append(Incident(time.monotonic(), tuple(sorted(touched)), str(error), len(orphans)))
        if not self.max_tokens and not self.instances and not self._recoveries:
            raise error  # the workers that are left can form no instance
        if survivors:
            self._recoveries.append(Recovery(self._workers, self.around, survivors, len(self.incidents), error))
        elif not self.instances and not self._recoveries:
            raise error
        self._pending += orphans
        self._changed = True

    def _bury(self, worker: int) -> None:
        self._buried.add(worker)
        process = self.around.workers[worker]
        if process.pidfd < 0:
            return
        self._unwatch(process)
        process.kill()

    def _recovered(self, recovery: Recovery) -> None:
        self._recoveries.remove(recovery)
        self.instances = self.instances + recovery.instances()
        if not self.instances and not self._recoveries:
            raise recovery.cause
        self._changed = True

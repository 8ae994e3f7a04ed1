"""The host as the controller holds it: its instances, and all that changes which there are (merges, splits, restarts, failures).

Driven by the controller's thread alone. A worker that dies takes its instance with it; what is left of that instance starts
again (gyges.engine.recovery), and its requests are computed anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from concurrent.futures import Future

from gyges.engine.instance import Instance, LiveRequest
from gyges.engine.messages import Parked, Ready, Transformed
from gyges.engine.prices import MeasuredPrices
from gyges.engine.process import WorkerProcess
from gyges.engine.recovery import Incident, Recovery, Workers
from gyges.engine.restarting import Restarting
from gyges.engine.transformer import Surroundings, TransformationReport, Transformer
from gyges.errors import EngineError, UserError
from gyges.scheduling.routing import HostView, InstanceView, Merge, Restart, Split
from gyges.transform.plan import PlanImpossible
from gyges.transform.shape import Transformation, merge, split


class LiveHost:
    """``watch`` is called with each worker whose messages and death matter from now on, ``unwatch`` when they no longer do.

    changed: something for the policy to review.   retry: requests that wait must be asked for again though nothing has changed.
    homeless: requests that lost their instance; whoever drives takes them.   restart: nothing is placed until it has been
    carried out.
    """

    def __init__(
        self,
        instances: list[Instance],
        around: Surroundings,
        workers: Workers,
        *,
        step_timeout: float,
        watch: Callable[[WorkerProcess], None],
        unwatch: Callable[[WorkerProcess], None],
    ) -> None:
        self.instances, self.around, self._workers = instances, around, workers
        self.step_timeout = step_timeout
        self._watch, self._unwatch = watch, unwatch
        self.max_tokens = self._max_tokens(around.host.num_devices)
        self.prices = MeasuredPrices(around.host)
        self.reports: list[TransformationReport] = []
        self.incidents: list[Incident] = []
        self.recoveries: list[Recovery] = []
        self.restart: Restarting | None = None
        self.homeless: list[LiveRequest] = []
        self.changed = self.retry = False
        self._transformers: list[Transformer] = []
        self._paused: list[Transformer] = []  # over, but some request has not had its next token
        self._buried: set[int] = set()  # workers that are known to be dead
        self._watch_all()

    def _watch_all(self) -> None:
        for instance in self.instances:
            for worker in instance.workers:
                self._watch(worker)

    def _max_tokens(self, devices: int) -> dict[int, int]:
        """TP degree -> longest context, for all that the host can take with that many devices alive."""
        host = self.around.host
        return {d: host.max_tokens(d) for d in host.degrees if host.max_groups(d) >= 1 and d <= devices}

    def views(self, waiting: Collection[LiveRequest], ahead: int = 0) -> tuple[list[InstanceView], HostView]:
        """What the policy sees now; ``waiting``: requests outside of all instances, the first ``ahead`` before the asked one."""
        lowest = min(self.max_tokens.values())
        becoming = {
            source: t.report.after for t in self._transformers for source in (t.sources if t.wide is None else [t.wide])
        }
        prompts = sum(live.sequence.missing for live in waiting)
        host = HostView(self.max_tokens, len(waiting), ahead, prompts, self.prices)
        return [i.view(lowest, becoming.get(i, ())) for i in self.instances], host

    def instance_of(self, worker: int) -> Instance | None:
        return next((i for i in self.instances if worker in i.members), None)

    def is_recovering(self, worker: int) -> bool:
        return any(worker in recovery.workers for recovery in self.recoveries)

    def take_homeless(self) -> list[LiveRequest]:
        taken, self.homeless = self.homeless, []
        return taken

    # -- deadlines ----------------------------------------------------------------------------------------------------

    def next_deadline(self, now: float) -> float | None:
        """Monotonic seconds, None if nothing is under way. What is overdue is dealt with, and ``now`` the answer."""
        deadlines: list[float] = []
        for instance in self.instances:
            if instance.plan is not None:
                left = instance.step_started_s + self.step_timeout
                if left <= now:
                    self._overdue(instance)
                    return now
                deadlines.append(left)
        for transformer in self._transformers:
            if transformer.deadline_s <= now:
                self._late(transformer)
                return now
            deadlines.append(transformer.deadline_s)
        for recovery in self.recoveries:
            if recovery.deadline_s <= now:
                self._lose(recovery.silent(), EngineError(f"{recovery.silent_names()} did not answer after a failure"))
                return now
            deadlines.append(recovery.deadline_s)
        return min(deadlines, default=None)

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

    # -- transformations ----------------------------------------------------------------------------------------------

    def begin(self, wish: Merge | Split) -> Transformer:
        """What a policy wishes. Raises PlanImpossible where it cannot be begun now."""
        shards = self.around.host.shards
        if isinstance(wish, Merge):
            sources = [self.instances[i] for i in wish.indices]
            shape = merge(tuple(s.members for s in sources), shards)
        else:
            sources = [self.instances[wish.index]]
            shape = split(sources[0].members, wish.degrees, shards)
        return self._start(shape, sources, wish.cause, Future(), None)

    def ask(
        self,
        devices: tuple[int, ...],
        degrees: tuple[int, ...],
        cause: str,
        future: Future[TransformationReport],
        overlap: bool | None,
    ) -> None:
        """What a user wishes: errors go to the ``future``."""
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

    def advance(self) -> None:
        """Every turn: begins what has been waited for, ends what has nothing left to do between steps."""
        for transformer in list(self._transformers):
            self._advance(transformer)

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
            self.changed = True

    def _called_off(self, transformer: Transformer, error: EngineError) -> None:
        """Before anything has changed."""
        assert transformer.phase == "gather", f"{transformer.phase} fell through: {error}"
        for source in transformer.sources:
            source.held = False
        self._transformers.remove(transformer)
        transformer.future.set_exception(error)
        # A request may wait for it. The policy's own wish is not asked again before something else has changed.
        self.retry = True

    def transformed(self, worker: int, message: Transformed) -> None:
        """A worker has carried out what it was sent."""
        transformer = next(t for t in self._transformers if worker in t.shape.wide)
        if not transformer.transformed(worker, message.spent):
            return
        now, homeless = transformer.finish()
        self._transformers.remove(transformer)
        self.instances = [i for i in self.instances if i is not transformer.wide and i not in transformer.sources] + now
        self.reports.append(transformer.report)
        self.prices.note_transformation(transformer.report)
        self._paused.append(transformer)
        self.homeless += homeless
        self.changed = True
        transformer.future.set_result(transformer.report)

    def note_pauses(self) -> None:
        self._paused = [t for t in self._paused if not t.note_pauses()]

    def abandon(self, error: str) -> None:
        """Nobody goes on with what is under way; whoever waits for it is told."""
        for transformer in self._transformers:
            if not transformer.future.done():
                transformer.future.set_exception(EngineError(error))

    # -- restarts -----------------------------------------------------------------------------------------------------

    def begin_restart(self, wish: Restart) -> None:
        self.restart = Restarting(wish, self.instances, time.monotonic())

    @property
    def is_drained(self) -> bool:
        busy = any(instance.plan is not None or instance.live for instance in self.instances)
        return not (busy or self._transformers or self.recoveries)

    def carry_out_restart(self) -> None:
        """Replaces the processes. Nobody can be served meanwhile, so the thread may wait."""
        assert self.restart is not None
        restart, self.restart = self.restart, None
        for instance in self.instances:
            for worker in instance.workers:
                self._unwatch(worker)
        report = restart.begun(time.monotonic())
        self.around, self.instances = self._workers.restart(restart.wish.degrees)
        report.end_s = time.monotonic()
        self.reports.append(report)
        self._buried.clear()
        self._watch_all()

    # -- failures -----------------------------------------------------------------------------------------------------

    def broke(self, error: EngineError) -> None:
        """A worker could not be reached or told that it failed: its instance is broken up. Anything else ends the engine."""
        worker = getattr(error, "worker", None)
        if worker is None:
            raise error
        if worker not in self._buried:  # a death is seen twice in one round: by the socket and by the pidfd
            self._lose({worker}, error)

    def recovering(self, worker: int, message: Parked | Ready) -> None:
        """An answer to a recovery; of one that another death has overtaken, it says nothing any more."""
        recovery = next((r for r in self.recoveries if worker in r.workers), None)
        if recovery is None or message.recovery != recovery.number:
            return
        if isinstance(message, Parked):
            recovery.parked(worker)
            if recovery.impossible:
                self._recovered(recovery)
        elif recovery.ready(worker):
            self._recovered(recovery)

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
        for recovery in [r for r in self.recoveries if r.workers & touched]:
            self.recoveries.remove(recovery)
            survivors |= recovery.workers
        for worker in dead:
            self._bury(worker)
        survivors -= dead
        alive = (
            survivors | {w for i in self.instances for w in i.members} | {w for r in self.recoveries for w in r.workers}
        )
        self.max_tokens = self._max_tokens(len(alive))
        for live in orphans:
            live.sequence.start_over()
        self.incidents.append(Incident(time.monotonic(), tuple(sorted(touched)), str(error), len(orphans)))
        if not self.max_tokens and not self.instances and not self.recoveries:
            raise error  # the workers that are left can form no instance
        if survivors:
            self.recoveries.append(Recovery(self._workers, self.around, survivors, len(self.incidents), error))
        elif not self.instances and not self.recoveries:
            raise error
        self.homeless += orphans
        self.changed = True

    def _bury(self, worker: int) -> None:
        self._buried.add(worker)
        process = self.around.workers[worker]
        if process.pidfd < 0:
            return
        self._unwatch(process)
        process.kill()

    def _recovered(self, recovery: Recovery) -> None:
        self.recoveries.remove(recovery)
        self.instances = self.instances + recovery.instances()
        if not self.instances and not self.recoveries:
            raise recovery.cause
        self.changed = True

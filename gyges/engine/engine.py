"""The engine as callers see it.

with gyges.Engine(gyges.EngineConfig(model="tiny", instances=(1, 1, 2))) as engine:
    for output in engine.generate([gyges.Request("a", (1, 2, 3))]):
        print(output.request_id, output.token_ids)
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import select
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import asdict, replace
from types import TracebackType
from typing import TYPE_CHECKING

from gyges.config import EngineConfig
from gyges.core import FinishReason, Request, RequestOutput
from gyges.engine.controller import Controller, Deliver
from gyges.engine.instance import Instance, InstanceStatus
from gyges.engine.messages import Failed, Peers, Ready, Setup
from gyges.engine.placement import HostPlacement, Placer, with_degrees
from gyges.engine.process import WorkerProcess, receive_descriptors, send_descriptors
from gyges.engine.recovery import Incident
from gyges.engine.transformer import Surroundings, TransformationReport
from gyges.errors import EngineError, UserError
from gyges.memory.cpu import require_memory
from gyges.models.hub import resolve_model
from gyges.scheduling.batching import BatchLimits, BlockSource
from gyges.scheduling.specification import layout_of, make_policy

if TYPE_CHECKING:
    from gyges.parallel.arena import SharedArena


class Engine:
    """Starts worker processes on entry, ends them on exit. Methods may be called from any thread.

    Raises UserError from the constructor for what cannot work (unknown model or layout, impossible TP degree, a budget
    too small), before any process starts; WorkerDied or EngineError from the others once something has broken.
    """

    def __init__(self, config: EngineConfig, policy: str = "static") -> None:
        self.policy = make_policy(policy)
        config = config.with_(instances=layout_of(self.policy, config.num_devices) or config.instances)
        resolved = resolve_model(config.model, seed=config.seed, revision=config.revision)
        self.dtype = config.dtype if config.dtype != "auto" else self._own_dtype(config, resolved.config.dtype)
        self.model = resolved
        self.geometry = resolved.config.geometry(self.dtype)
        if self.policy.transforms:
            config = with_degrees(config, self.geometry, policy)
        self.placer = Placer(config, resolved.config, self.geometry)
        self.config = self.placer.config
        self.placement: HostPlacement = self.placer.host()
        self.workers: list[WorkerProcess] = []
        self.ready: list[Ready] = []
        self.arena: SharedArena | None = None
        self._store = -1  # with the arena
        self.start_timeout = self.config.start_timeout
        self.start_s = 0.0
        self._named = 0
        self._descriptors: dict[int, tuple[int, ...]] = {}
        self._controller: Controller | None = None
        self._ids: set[str] = set()
        self._ids_lock = threading.Lock()

    # -- life ---------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Engine:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Starts the workers and waits until all have their weights. Leaves nothing behind if that fails."""
        assert self._controller is None, "an engine starts once; make a new one"
        started = time.monotonic()
        if self.config.device == "cpu":
            require_memory(self.config.num_devices * self.config.device_memory)
        try:
            self._spawn()
            self.ready = self._await_ready(started + self.config.start_timeout)
        except BaseException:
            self.close()
            raise
        around, instances = self._form()
        self._controller = Controller(
            instances,
            self.policy,
            around,
            self,
            max_context=self.placement.max_context,
            step_timeout=self.config.step_timeout,
        )
        self._controller.start()
        self.start_s = time.monotonic() - started

    @staticmethod
    def _own_dtype(config: EngineConfig, checkpoint: str) -> str:
        return "bfloat16" if config.device == "cuda" else checkpoint

    def _form(self) -> tuple[Surroundings, list[Instance]]:
        """The instances of workers that are ready."""
        around = Surroundings(
            host=self.placer.shape,
            host_ids=self.placer.shape.host_ids(),
            parity=dict.fromkeys(range(self.config.num_devices), 0),
            workers=self.workers,
            overlap=self.config.overlap,
            pages_per_step=self.config.pages_per_step or max(1, self.placer.device_pages // 64),
            timeout=self.config.transform_timeout,
            make_instance=self._make_instance,
        )
        instances = [
            self._make_instance(p.members, around.host.allocator(p.degree, around.host_ids))
            for p in self.placement.instances
        ]
        return around, instances

    def restart(self, degrees: tuple[int, ...]) -> tuple[Surroundings, list[Instance]]:
        """Ends all workers and starts new ones as instances of these TP degrees. Of the controller, while nothing runs.

        Raises EngineError if they do not come up; then there is no engine any more.
        """
        self._end_workers()
        devices = sum(degrees)
        self.config = self.config.with_(instances=degrees, tp_degrees=self.config.candidate_degrees)
        self.placer = Placer(self.config, self.model.config, self.geometry)
        self.placement = self.placer.host()
        self._spawn()
        assert devices == len(self.workers)
        self.ready = self._await_ready(time.monotonic() + self.config.start_timeout)
        return self._form()

    def _make_instance(self, members: tuple[int, ...], blocks: BlockSource) -> Instance:
        limits = BatchLimits(self.config.max_batch_tokens, self.config.max_seqs, self.placement.block_size)
        name, self._named = f"i{self._named}", self._named + 1
        workers = tuple(self.workers[w] for w in members)
        return Instance(name, workers, limits, self.model.config.eos_token_ids, blocks)

    def _spawn(self) -> None:
        from gyges.parallel.arena import SharedArena

        if max(self.config.candidate_degrees) > 1:
            self.arena = SharedArena.create(self.config.num_devices, self._message_bytes())
            self._store = os.memfd_create("gyges-store", os.MFD_CLOEXEC)
        arena = self.arena
        inherit = (arena.fd, self._store) if arena else ()
        for worker in range(self.config.num_devices):
            self.workers.append(WorkerProcess(worker, self.config.worker_threads, inherit))
        for instance in self.placement.instances:
            for worker in instance.members:
                self.workers[worker].send(
                    Setup(
                        worker=worker,
                        engine=self.config.to_dict(),
                        hf_config=self.model.hf_config,
                        source=asdict(self.model.source_spec),
                        dtype=self.dtype,
                        members=instance.members,
                        max_positions=self.placement.max_positions,
                        arena_fd=arena.fd if arena else -1,
                        arena_bytes=arena.buffer_bytes if arena else 0,
                        store_fd=self._store,
                    )
                )

    def _message_bytes(self) -> int:
        """The largest collective: hidden states of a full step, or one rank's logits of all sequences."""
        g, c = self.geometry, self.config
        hidden = c.max_batch_tokens * g.hidden_size
        # A merged instance goes on with what all of its parts were running.
        logits = min(c.max_seqs * (c.num_devices if c.transforms else 1), c.max_batch_tokens) * g.vocab_size
        return max(hidden, logits) * g.item_size

    def _await_ready(self, deadline: float) -> list[Ready]:
        ready: dict[int, Ready] = {}
        while len(ready) < len(self.workers):
            waiting = [w for w in self.workers if w.worker not in ready]
            sources = {w.connection.fileno(): w for w in waiting} | {w.pidfd: w for w in self.workers}
            left = deadline - time.monotonic()
            readable, _, _ = select.select(list(sources), [], [], max(0.0, left))
            if not readable:
                raise EngineError(
                    f"workers {[w.worker for w in waiting]} were not ready within {self.config.start_timeout:.0f} s; "
                    "raise start_timeout, or use a smaller model or fewer devices"
                )
            for fd in readable:
                worker = sources[fd]
                if worker.worker in ready:
                    raise worker.death()
                message = worker.receive()
                if isinstance(message, Failed) and message.user:
                    raise UserError(message.error)
                if isinstance(message, Failed):
                    raise EngineError(f"worker {worker.worker} could not start: {message.error}\n{worker.last_words()}")
                assert isinstance(message, Ready), f"unexpected {type(message).__name__}"
                ready[worker.worker] = message
                if self.config.transforms:
                    self._descriptors[worker.worker] = receive_descriptors(worker.connection.fileno(), self._each)
        if self.config.transforms:
            self._introduce()
        return [ready[w.worker] for w in self.workers]

    @property
    def _each(self) -> int:
        """Descriptors of one worker's pages: its memory and its page table; on a GPU every page has one."""
        return 2 if self.config.device == "cpu" else 1 + self.placer.device_pages

    def _introduce(self) -> None:
        """Every worker gets the descriptors of all workers' pages: what a transformation reads, it reads from the peer itself."""
        names = tuple(self._descriptors)
        flat = tuple(fd for name in names for fd in self._descriptors[name])
        try:
            for worker in self.workers:
                worker.send(Peers(names, self._each))
                send_descriptors(worker.connection.fileno(), flat)
        finally:
            for fd in flat:
                os.close(fd)
            self._descriptors.clear()

    def close(self) -> None:
        """Ends everything; unfinished requests end as aborted. Idempotent, and safe after a failure."""
        with _deferred_interrupt():
            if self._controller is not None:
                self._controller.stop()
            self._end_workers()

    def _end_workers(self) -> None:
        for worker in self.workers:
            with contextlib.suppress(OSError):
                worker.connection.close()  # all at once, so that they leave side by side
        for worker in self.workers:
            worker.close()
        self.workers = []
        if self.arena is not None:
            self.arena.close()
            self.arena = None  # the mapping holds a descriptor of its own
            os.close(self._store)
            self._store = -1
        for fds in self._descriptors.values():
            for fd in fds:
                os.close(fd)
        self._descriptors.clear()

    # -- requests -----------------------------------------------------------------------------------------------------

    @property
    def failure(self) -> EngineError | None:
        """What broke the engine, if anything has."""
        return self._controller.failure if self._controller else None

    def submit(self, request: Request, deliver: Deliver) -> None:
        """``deliver`` is called on the controller's thread with each output; it must be quick and must not raise."""
        controller = self._running
        vocab = self.geometry.vocab_size
        if min(request.prompt) < 0 or max(request.prompt) >= vocab:
            raise UserError(f"request {request.request_id!r}: token ids must be in [0, {vocab})")
        with self._ids_lock:
            if request.request_id in self._ids:
                raise UserError(f"request id {request.request_id!r} is already in use; ids are unique while they run")
            self._ids.add(request.request_id)

        def relay(output: RequestOutput) -> None:
            if output.finished:
                with self._ids_lock:
                    self._ids.discard(request.request_id)
            deliver(output)

        try:
            controller.submit(request, relay)
        except BaseException:
            with self._ids_lock:
                self._ids.discard(request.request_id)
            raise

    def abort(self, request_id: str) -> None:
        """Withdraws a request; its last output says ABORTED. Unknown or ended ids are ignored."""
        self._running.abort(request_id)

    def generate(self, requests: Iterable[Request]) -> Iterator[RequestOutput]:
        """Runs all requests at once; yields one output per request, with all its tokens, as they end.

        Rejected requests are yielded too. Raises EngineError if the engine breaks.
        """
        done: queue.SimpleQueue[RequestOutput] = queue.SimpleQueue()
        pending = 0
        tokens: dict[str, RequestOutput] = {}

        def collect(output: RequestOutput) -> None:
            whole = tokens.get(output.request_id)
            if whole is None:
                whole = tokens[output.request_id] = RequestOutput(output.request_id, [], [])
            whole.token_ids += output.token_ids
            whole.token_times += output.token_times
            if output.finished:
                del tokens[output.request_id]
                done.put(replace(output, token_ids=whole.token_ids, token_times=whole.token_times))

        for request in requests:
            self.submit(request, collect)
            pending += 1
        for _ in range(pending):
            output = done.get()  # ends: the controller ends every request, on failure too
            if output.finish_reason is FinishReason.FAILED:
                raise self.failure or EngineError(output.error or "the engine failed")
            yield output

    async def stream(self, request: Request) -> AsyncIterator[RequestOutput]:
        """Outputs of one request as they come; the last has ``finish_reason``. Leaving early aborts it."""
        loop = asyncio.get_running_loop()
        news: asyncio.Queue[RequestOutput] = asyncio.Queue()

        def deliver(output: RequestOutput) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                loop.call_soon_threadsafe(news.put_nowait, output)

        self.submit(request, deliver)
        finished = False
        try:
            while not finished:
                output = await news.get()
                finished = output.finished
                yield output
        finally:
            if not finished and self.failure is None:
                with contextlib.suppress(EngineError):
                    self.abort(request.request_id)

    # -- what can be seen ---------------------------------------------------------------------------------------------

    def status(self) -> list[InstanceStatus]:
        """One entry per instance, as of now."""
        return [instance.status() for instance in self._running.host.instances]

    @property
    def instances(self) -> list[Instance]:
        """As of now; a transformation replaces them."""
        return self._running.host.instances

    @property
    def reports(self) -> list[TransformationReport]:
        """Transformations that are over, in that order; broken ones have an error."""
        return list(self._running.host.reports)

    @property
    def incidents(self) -> list[Incident]:
        """Workers that died or did not answer, and what became of their requests."""
        return list(self._running.host.incidents)

    # -- transformations ----------------------------------------------------------------------------------------------

    def merge(
        self, devices: Iterable[int], cause: str = "by hand", *, overlap: bool | None = None
    ) -> Future[TransformationReport]:
        """The instances on these devices become one. The future gets the report once it serves requests.

        ``overlap``: None as configured. The future's exception is a UserError where it makes no sense, PlanImpossible where
        it cannot be done now (nothing has changed), EngineError where a worker failed on the way.
        """
        devices = tuple(sorted(devices))
        return self._running.transform(devices, (len(devices),), cause, overlap)

    def split(
        self, devices: Iterable[int], degrees: Iterable[int], cause: str = "by hand", *, overlap: bool | None = None
    ) -> Future[TransformationReport]:
        """The instance on these devices becomes several of these TP degrees; see :meth:`merge`."""
        return self._running.transform(tuple(sorted(devices)), tuple(degrees), cause, overlap)

    def controller_overhead_s(self) -> float:
        """Mean seconds the controller spent per step, outside of waiting."""
        return self._running.busy_s / max(1, self._running.steps)

    @property
    def _running(self) -> Controller:
        assert self._controller is not None, "start the engine first (use it as a context manager)"
        return self._controller


@contextlib.contextmanager
def _deferred_interrupt() -> Iterator[None]:
    """A second Ctrl-C must not leave processes behind: it is held back until everything is closed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda number, frame: caught.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        if caught:
            raise KeyboardInterrupt

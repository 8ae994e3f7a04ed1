"""The engine as callers see it.

with gyges.Engine(gyges.EngineConfig(model="tiny", instances=(1, 1, 2))) as engine:
    for output in engine.generate([gyges.Request("a", (1, 2, 3))]):
        print(output.request_id, output.token_ids)
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import select
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import asdict, replace
from types import TracebackType

from gyges.config import EngineConfig
from gyges.core import FinishReason, Request, RequestOutput
from gyges.engine.controller import Controller, Deliver
from gyges.engine.instance import Instance, InstanceStatus
from gyges.engine.messages import Failed, Ready, Setup
from gyges.engine.placement import HostPlacement, Placer
from gyges.engine.process import WorkerProcess
from gyges.errors import EngineError, UserError
from gyges.memory.cpu import require_memory
from gyges.models.hub import resolve_model
from gyges.scheduling.batching import BatchLimits
from gyges.scheduling.routing import POLICIES


class Engine:
    """Starts worker processes on entry, ends them on exit. Methods may be called from any thread.

    Raises UserError from the constructor for what cannot work (unknown model or layout, impossible TP degree, a budget
    too small), before any process starts; WorkerDied or EngineError from the others once something has broken.
    """

    def __init__(self, config: EngineConfig, policy: str = "llf") -> None:
        self.policy = POLICIES.get(policy)()
        resolved = resolve_model(config.model, seed=config.seed, revision=config.revision)
        self.dtype = resolved.config.dtype if config.dtype == "auto" else config.dtype
        self.model = resolved
        self.geometry = resolved.config.geometry(self.dtype)
        self.placer = Placer(config, resolved.config, self.geometry)
        self.config = self.placer.config
        self.placement: HostPlacement = self.placer.host()
        self.workers: list[WorkerProcess] = []
        self.ready: list[Ready] = []
        self.instances: list[Instance] = []
        self.start_s = 0.0
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
        require_memory(self.config.num_devices * self.config.device_memory)
        try:
            self._spawn()
            self.ready = self._await_ready(started + self.config.start_timeout)
        except BaseException:
            self.close()
            raise
        limits = BatchLimits(self.config.max_batch_tokens, self.config.max_seqs, self.placement.block_size)
        self.instances = [
            Instance(
                f"i{index}",
                placement,
                tuple(self.workers[w] for w in placement.members),
                limits,
                self.model.config.eos_token_ids,
            )
            for index, placement in enumerate(self.placement.instances)
        ]
        self._controller = Controller(self.instances, self.policy, self.placement.max_context, self.config.step_timeout)
        self._controller.start()
        self.start_s = time.monotonic() - started

    def _spawn(self) -> None:
        from gyges.parallel.arena import SharedArena

        arena = None
        if any(p.degree > 1 for p in self.placement.instances):
            arena = SharedArena.create(self.config.num_devices, self._message_bytes())
        try:
            for instance in self.placement.instances:
                for worker in instance.members:
                    inherit = (arena.fd,) if arena and instance.degree > 1 else ()
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
                            groups=(instance.groups.start, instance.groups.stop),
                            max_positions=self.placement.max_positions,
                            arena_fd=arena.fd if arena and instance.degree > 1 else -1,
                            arena_bytes=arena.buffer_bytes if arena else 0,
                        )
                    )
        finally:
            if arena:
                arena.close()

    def _message_bytes(self) -> int:
        """The largest collective: hidden states of a full step, or one rank's logits of all sequences."""
        g, c = self.geometry, self.config
        hidden = c.max_batch_tokens * g.hidden_size
        logits = min(c.max_seqs, c.max_batch_tokens) * g.vocab_size
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
                if isinstance(message, Failed):
                    raise EngineError(f"worker {worker.worker} could not start: {message.error}\n{worker.last_words()}")
                assert isinstance(message, Ready), f"unexpected {type(message).__name__}"
                ready[worker.worker] = message
        return [ready[w.worker] for w in self.workers]

    def close(self) -> None:
        """Ends everything; unfinished requests end as aborted. Idempotent, and safe after a failure."""
        with _deferred_interrupt():
            if self._controller is not None:
                self._controller.stop()
            for worker in self.workers:
                with contextlib.suppress(OSError):
                    worker.connection.close()  # all at once, so that they leave side by side
            for worker in self.workers:
                worker.close()
            self.workers = []

    # -- requests -----------------------------------------------------------------------------------------------------

    @property
    def failure(self) -> EngineError | None:
        """What broke the engine, if anything has."""
        return self._controller.failure if self._controller else None

    def submit(self, request: Request, deliver: Deliver) -> None:
        """``deliver`` is called on the controller's thread with each output; it must be quick and must not raise."""
        assert self._controller is not None, "start the engine first (use it as a context manager)"
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
            self._controller.submit(request, relay)
        except BaseException:
            with self._ids_lock:
                self._ids.discard(request.request_id)
            raise

    def abort(self, request_id: str) -> None:
        """Withdraws a request; its last output says ABORTED. Unknown or ended ids are ignored."""
        assert self._controller is not None, "start the engine first"
        self._controller.abort(request_id)

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
        return [instance.status() for instance in self.instances]

    def controller_overhead_s(self) -> float:
        """Mean seconds the controller spent per step, outside of waiting."""
        assert self._controller is not None, "start the engine first"
        return self._controller.busy_s / max(1, self._controller.steps)


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

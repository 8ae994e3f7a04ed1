"""The worker processes of the micro-benchmark as their caller holds them: a task to all, an answer from all, or an error.

Every wait has a deadline; leaving the ``with`` block ends the processes, by force if need be. Everything shared is a descriptor,
so nothing stays behind.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, Self

from gyges.bench.child import ChildError, child_environment
from gyges.bench.transform.tasks import Meet, Open, Task, decode_answer, encode
from gyges.engine.process import receive_descriptors, send_descriptors
from gyges.parallel.arena import SharedArena

_ARENA_BYTES = 4096  # barriers need no buffers
_LAST_WORDS_BYTES = 4000
TASK_TIMEOUT_S = 120.0


class Crew:
    """``size`` workers, each on its own device and with one thread."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._connections: list[Connection] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._log = os.memfd_create("gyges-bench-transform", os.MFD_CLOEXEC)
        self._arena = SharedArena.create(size, _ARENA_BYTES)
        try:
            for worker in range(size):
                self._start(worker)
        except BaseException:
            self.close(0.0)
            raise

    def _start(self, worker: int) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._connections.append(Connection(ours.detach()))
        numbers = (theirs.fileno(), worker, self.size, self._arena.fd, self._arena.buffer_bytes)
        with theirs:
            self._processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "gyges.bench.transform.worker", *map(str, numbers)],
                    stdin=subprocess.DEVNULL,
                    stdout=self._log,
                    stderr=self._log,
                    pass_fds=(theirs.fileno(), self._arena.fd),
                    env=child_environment(1),
                    process_group=0,  # Ctrl-C at the terminal reaches the caller alone
                )
            )

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def ask(self, tasks: Task | Sequence[Task], timeout_s: float = TASK_TIMEOUT_S) -> list[dict[str, Any]]:
        """One task for all, or one for each; their results in the order of the workers.

        Raises ChildError if one fails, dies or does not answer within ``timeout_s`` seconds; all are ended then.
        """
        each = [tasks] * self.size if isinstance(tasks, Task) else list(tasks)
        try:
            for connection, task in zip(self._connections, each, strict=True):
                connection.send_bytes(encode(task))
            return self._answers(type(each[0]).__name__, time.monotonic() + timeout_s)
        except OSError as error:
            raise self._broken(f"a worker process ended: {error}") from error
        except BaseException:
            self.close(0.0)
            raise

    def _answers(self, what: str, deadline: float) -> list[dict[str, Any]]:
        results: dict[int, dict[str, Any]] = {}
        while len(results) < self.size:
            missing = {self._connections[w]: w for w in range(self.size) if w not in results}
            ready = wait(list(missing), max(0.0, deadline - time.monotonic()))
            if not ready:
                raise self._broken(f"{what}: no answer in time from workers {sorted(missing.values())}")
            for connection in ready:
                assert isinstance(connection, Connection)
                worker = missing[connection]
                try:
                    answer = decode_answer(connection.recv_bytes())
                except EOFError:
                    raise self._broken(f"{what}: worker {worker} ended") from None
                if answer.error:
                    raise self._broken(f"{what}: worker {worker}: {answer.error}")
                results[worker] = answer.result
        return [results[worker] for worker in range(self.size)]

    def open(self, page_bytes: int, device_pages: int) -> None:
        """A device for each worker, whose pages all others can read."""
        self.ask(Open(page_bytes, device_pages))
        descriptors: list[int] = []
        try:
            for connection in self._connections:
                descriptors += receive_descriptors(connection.fileno(), 2)
            for connection in self._connections:
                connection.send_bytes(encode(Meet()))
                send_descriptors(connection.fileno(), tuple(descriptors))
            self._answers("Meet", time.monotonic() + TASK_TIMEOUT_S)
        except (OSError, EOFError) as error:
            raise self._broken(f"a worker process ended: {error}") from error
        finally:
            for fd in descriptors:
                os.close(fd)

    def _broken(self, what: str) -> ChildError:
        # Those that wait for the broken one at a barrier would say so much later: only what was said by now counts.
        size = os.fstat(self._log).st_size if self._log >= 0 else 0
        said = os.pread(self._log, _LAST_WORDS_BYTES, max(0, size - _LAST_WORDS_BYTES)) if size else b""
        self.close(0.0)
        return ChildError("\n".join(filter(None, [what, said.decode(errors="replace").strip()])))

    def close(self, grace_s: float = 5.0) -> None:
        """Idempotent."""
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.close()  # they leave when their sockets hang up
        until = time.monotonic() + grace_s
        for process in self._processes:
            try:
                process.wait(timeout=max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._arena.close()
        if self._log >= 0:
            os.close(self._log)
            self._log = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(5.0 if kind is None else 0.0)

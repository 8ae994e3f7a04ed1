"""A process of its own for whatever is measured, and calls into it that always end.

``python -m gyges.bench.child FD module:Class`` makes one object and answers calls on it, JSON both ways over a socket
pair. The child leaves when the socket hangs up, even in the middle of a call, so nothing stays behind if the caller dies.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import gyges
from gyges.errors import EngineError

_LAST_WORDS_BYTES = 4000
# By default glibc gives large blocks back to the system at once, and every step of a peer that makes large temporaries
# then waits for the pages of new ones: transformers peers were up to twice as slow. All peers get the same.
KEEP_FREED_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
}


class ChildError(EngineError):
    """A call failed in the child; the text is the child's exception, or how the child ended."""


def child_environment(threads: int) -> dict[str, str]:
    """This process's, with ``threads`` threads for every numeric library and this package importable."""
    path = filter(None, [str(Path(gyges.__file__).parents[1]), os.environ.get("PYTHONPATH")])
    count = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    return os.environ | count | {"PYTHONPATH": os.pathsep.join(path), "TOKENIZERS_PARALLELISM": "false"}


class Child:
    """One object in a process of its own. A context manager: leaving it ends the process, by force if need be."""

    def __init__(
        self, target: str, threads: int, environment: Mapping[str, str] | None = None, *, guards: str = ""
    ) -> None:
        """``environment``: variables besides this process's.   guards: a folder that the child removes if we vanish."""
        self.target = target
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._log = os.memfd_create("gyges-bench-child", os.MFD_CLOEXEC)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gyges.bench.child", str(theirs.fileno()), target, guards],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=(theirs.fileno(),),
                env=child_environment(threads) | dict(environment or {}),
                process_group=0,  # Ctrl-C at the terminal reaches the caller alone
            )
        self._connection = Connection(ours.detach())

    def call(self, method: str, timeout_s: float, **arguments: Any) -> Any:
        """Raises ChildError if the method raised, the child died, or ``timeout_s`` seconds passed (it is then ended)."""
        try:
            self._connection.send_bytes(json.dumps([method, arguments]).encode())
            if not self._connection.poll(timeout_s):
                self._end(0.0)
                raise ChildError(f"{method} did not finish within {timeout_s:.0f} s")
            answer = json.loads(self._connection.recv_bytes())
        except (OSError, EOFError) as error:
            code = self._end(2.0)
            said = self.last_words()
            raise ChildError(f"the process ended in {method} (exit code {code}); last words:\n{said}") from error
        if "error" in answer:
            raise ChildError(answer["error"])
        return answer["result"]

    def last_words(self) -> str:
        if self._log < 0:
            return ""
        start = max(0, os.fstat(self._log).st_size - _LAST_WORDS_BYTES)
        return os.pread(self._log, _LAST_WORDS_BYTES, start).decode(errors="replace").strip()

    def close(self, grace_s: float = 10.0) -> None:
        """Idempotent."""
        self._end(grace_s)
        if self._log >= 0:
            os.close(self._log)
            self._log = -1

    def _end(self, grace_s: float) -> int | None:
        with contextlib.suppress(OSError):
            self._connection.close()
        try:
            return self.process.wait(timeout=grace_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(10.0 if kind is None else 0.0)


def peak_rss_bytes(pid: int | str = "self") -> int | None:
    """Peak resident set of a process in bytes, shared pages that it touched included; None where it cannot be read."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _exit_with_caller(fd: int, guards: str) -> None:
    poll = select.poll()
    poll.register(fd, 0)  # hang-up only
    poll.poll()
    if guards:
        shutil.rmtree(guards, ignore_errors=True)  # a caller that leaves in good order does this itself
    os._exit(3)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    fd, target, guards = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    connection = Connection(fd)
    threading.Thread(target=_exit_with_caller, args=(fd, guards), daemon=True).start()
    served: Any = None
    while True:
        try:
            method, arguments = json.loads(connection.recv_bytes())
        except EOFError:
            threading.Event().wait()  # the other thread ends the process
        try:
            if served is None:
                module, name = target.split(":")
                served = getattr(importlib.import_module(module), name)()
            answer = {"result": getattr(served, method)(**arguments)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        connection.send_bytes(json.dumps(answer).encode())


if __name__ == "__main__":
    main()

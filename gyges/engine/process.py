"""A worker process as the controller holds it: starting it, talking to it, noticing its death, ending it.

Workers are started with ``python -m gyges.engine.worker`` (no fork of a process that has threads). What must be shared is
passed as inherited descriptors: one end of a socket pair, the collectives' memfd, and a memfd as stderr, from which the
last words are read. So nothing has a name in the file system, and nothing stays behind however a process ends. A worker
whose controller vanishes sees its socket hang up and exits.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import gyges
from gyges.engine.messages import FromWorker, ToWorker, decode_from_worker, encode
from gyges.errors import WorkerDied

_LAST_WORDS_BYTES = 4000
_AT_ONCE = 250  # descriptors of one message; Linux takes 253


def send_descriptors(fd: int, descriptors: tuple[int, ...]) -> None:
    """Passes open files over a Unix socket, between two messages."""
    with socket.socket(fileno=os.dup(fd)) as channel:
        for first in range(0, len(descriptors), _AT_ONCE):
            socket.send_fds(channel, [b"F"], list(descriptors[first : first + _AT_ONCE]))


def receive_descriptors(fd: int, count: int) -> tuple[int, ...]:
    """The other end of :func:`send_descriptors`. Raises UserError where a process may not have so many files open."""
    if count > _AT_ONCE:  # a GPU's pages have one each
        from gyges.memory.cuda import allow_descriptors

        allow_descriptors(count)
    received: list[int] = []
    with socket.socket(fileno=os.dup(fd)) as channel:
        while len(received) < count:
            data, some, _, _ = socket.recv_fds(channel, 1, min(_AT_ONCE, count - len(received)))
            received += some
            if data != b"F" or not some:
                for descriptor in received:
                    os.close(descriptor)
                raise EOFError(f"{count} descriptors expected, {len(received)} came")
    return tuple(received)


class WorkerProcess:
    """``connection`` is readable when a message waits; ``pidfd`` is readable once the process has ended."""

    def __init__(self, worker: int, threads: int, inherit: tuple[int, ...] = ()) -> None:
        self.worker = worker
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._stderr = os.memfd_create(f"gyges-worker-{worker}-stderr", os.MFD_CLOEXEC)
        # A worker that spins at an OpenMP barrier takes a core from the kernel threads and from its peers.
        env = os.environ | {
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "20000"),
            "PYTHONPATH": os.pathsep.join(
                filter(None, [str(Path(gyges.__file__).parents[1]), os.environ.get("PYTHONPATH")])
            ),
        }
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gyges.engine.worker", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=self._stderr,
                stderr=self._stderr,
                pass_fds=(theirs.fileno(), *inherit),
                env=env,
                process_group=0,  # Ctrl-C at the terminal reaches the controller alone
            )
        self.connection = Connection(ours.detach())
        self.pidfd = os.pidfd_open(self.process.pid)

    @property
    def pid(self) -> int:
        return self.process.pid

    def send(self, message: ToWorker) -> None:
        self.send_bytes(encode(message))

    def send_bytes(self, data: bytes) -> None:
        """Raises WorkerDied if nobody is there to read."""
        try:
            self.connection.send_bytes(data)
        except OSError as error:
            raise self.death() from error

    def receive(self) -> FromWorker:
        """The next message; call when ``connection`` is readable. Raises WorkerDied at its end."""
        try:
            return decode_from_worker(self.connection.recv_bytes())
        except (EOFError, OSError) as error:
            raise self.death() from error

    def death(self) -> WorkerDied:
        """What became of it; waits briefly for an exit that is under way, then makes sure of it."""
        try:
            code: int | None = self.process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        return WorkerDied(self.worker, code, self.last_words())

    def failed(self, error: str) -> WorkerDied:
        """It said that it cannot go on, and is about to exit."""
        died = self.death()
        return WorkerDied(self.worker, died.exit_code, f"{error}\n{died.last_words}")

    def kill(self) -> None:
        """Ends it now; its death is seen through ``pidfd`` like any other."""
        self.process.kill()

    def last_words(self) -> str:
        if self._stderr < 0:
            return ""
        size = os.fstat(self._stderr).st_size
        start = max(0, size - _LAST_WORDS_BYTES)
        return os.pread(self._stderr, _LAST_WORDS_BYTES, start).decode(errors="replace").strip()

    def close(self, grace_s: float = 2.0) -> None:
        """Ends the process, by force after ``grace_s``, and gives every descriptor back. Idempotent."""
        if self.pidfd < 0:
            return
        with contextlib.suppress(OSError):
            self.connection.close()  # the worker exits when its socket hangs up
        try:
            self.process.wait(timeout=grace_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.pidfd)
        os.close(self._stderr)
        self.pidfd = self._stderr = -1

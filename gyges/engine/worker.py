"""The process that owns one device: its pages, its weights, its part of the KV cache. ``python -m gyges.engine.worker FD``.

It answers messages (gyges.engine.messages) until told to stop, and exits when the controller vanishes, even from inside a
collective.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import select
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from gyges.engine.faults import arm
from gyges.engine.messages import (
    Failed,
    Park,
    Parked,
    Peers,
    Ready,
    Reset,
    Setup,
    Step,
    Stop,
    Transform,
    Transformed,
    decode_to_worker,
    encode,
)
from gyges.engine.process import receive_descriptors, send_descriptors
from gyges.errors import UserError
from gyges.parallel.comm import CollectiveAborted

if TYPE_CHECKING:
    from gyges.engine.runner import ModelRunner


def _exit_with_controller(fd: int) -> None:
    """Polls for hang-up only: the main thread may be anywhere, in a collective too."""
    poll = select.poll()
    poll.register(fd, 0)
    poll.poll()
    os._exit(3)


def serve(connection: Connection) -> None:
    setup = decode_to_worker(connection.recv_bytes())
    assert isinstance(setup, Setup), f"the first message must be Setup, got {type(setup).__name__}"
    arm(setup.worker)
    started = time.monotonic()
    # torch and the model come in here, after the socket is up. They stay: looking for garbage among them takes a sixth of
    # the start's CPU time, and later 0.1 s out of some step.
    gc.disable()
    from gyges.engine.runner import ModelRunner

    runner = ModelRunner(setup)
    gc.freeze()
    gc.enable()
    try:
        _say_ready(connection, runner, started)
        if runner.config.transforms:
            send_descriptors(connection.fileno(), runner.device.pool.export())
        parked = False  # what was sent before a Park and is read after it is out of date
        while True:
            message = decode_to_worker(connection.recv_bytes())
            try:
                if isinstance(message, Stop):
                    return
                if isinstance(message, Park):
                    parked = True
                    connection.send_bytes(encode(Parked(setup.worker, message.recovery)))
                elif isinstance(message, Reset):
                    started = time.monotonic()
                    runner.reset(message.members)
                    parked = False
                    _say_ready(connection, runner, started, message.recovery)
                elif isinstance(message, Peers):
                    _connect(connection, runner, message)
                elif not parked:
                    _work(connection, runner, message)
            except CollectiveAborted:
                parked = True  # the Park that comes next says why
    finally:
        runner.close()


def _say_ready(connection: Connection, runner: ModelRunner, started: float, recovery: int = 0) -> None:
    weights, free = runner.page_counts()
    took = time.monotonic() - started
    connection.send_bytes(encode(Ready(runner.worker, weights, free, took, runner.resident_bytes(), recovery)))


def _connect(connection: Connection, runner: ModelRunner, message: Peers) -> None:
    received = receive_descriptors(connection.fileno(), len(message.workers) * message.each)
    for index, worker in enumerate(message.workers):
        own = received[index * message.each : (index + 1) * message.each]
        if worker != runner.worker:
            runner.device.connect(worker, own)
        for fd in own:
            os.close(fd)


def _work(connection: Connection, runner: ModelRunner, message: object) -> None:
    if isinstance(message, Step):
        done = runner.step(message)
        if done is not None:
            connection.send_bytes(encode(done))
        return
    assert isinstance(message, Transform), f"unexpected {type(message).__name__}"
    spent = runner.transform(message)
    connection.send_bytes(encode(Transformed(runner.worker, spent)))


def main() -> None:
    faulthandler.enable()  # a crash in native code leaves last words too
    # Where workers outnumber cores, the controller and the client that sends on schedule must still get theirs.
    os.nice(5)
    fd = int(sys.argv[1])
    connection = Connection(fd)
    threading.Thread(target=_exit_with_controller, args=(fd,), daemon=True).start()
    try:
        serve(connection)
    except EOFError:
        os._exit(3)  # the controller is gone; nobody is left to tell
    except BaseException as error:
        traceback.print_exc()
        user = isinstance(error, UserError)
        try:
            connection.send_bytes(encode(Failed(str(error) if user else f"{type(error).__name__}: {error}", user)))
        finally:
            sys.stderr.flush()
            os._exit(1)


if __name__ == "__main__":
    main()

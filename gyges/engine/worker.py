"""The process that owns one device: its pages, its weights, its part of the KV cache. ``python -m gyges.engine.worker FD``.

It answers messages (gyges.engine.messages) until told to stop, and exits when the controller vanishes, even from inside a
collective.
"""

from __future__ import annotations

import faulthandler
import os
import select
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection

from gyges.engine.messages import Failed, Ready, Setup, Step, Stop, decode_to_worker, encode


def _exit_with_controller(fd: int) -> None:
    """Polls for hang-up only: the main thread may be anywhere, in a collective too."""
    poll = select.poll()
    poll.register(fd, 0)
    poll.poll()
    os._exit(3)


def serve(connection: Connection) -> None:
    setup = decode_to_worker(connection.recv_bytes())
    assert isinstance(setup, Setup), f"the first message must be Setup, got {type(setup).__name__}"
    started = time.monotonic()
    # torch and the model come in here, after the socket is up.
    from gyges.engine.runner import ModelRunner

    runner = ModelRunner(setup)
    try:
        weight_pages, kv_pages, free_pages = runner.page_counts()
        connection.send_bytes(
            encode(
                Ready(
                    setup.worker,
                    weight_pages,
                    kv_pages,
                    free_pages,
                    time.monotonic() - started,
                    runner.resident_bytes(),
                )
            )
        )
        while True:
            message = decode_to_worker(connection.recv_bytes())
            if isinstance(message, Stop):
                return
            assert isinstance(message, Step), f"unexpected {type(message).__name__}"
            done = runner.step(message)
            if done is not None:
                connection.send_bytes(encode(done))
    finally:
        runner.close()


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
        try:
            connection.send_bytes(encode(Failed(f"{type(error).__name__}: {error}")))
        finally:
            sys.stderr.flush()
            os._exit(1)


if __name__ == "__main__":
    main()

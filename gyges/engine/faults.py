"""Faults on request, so that tests can strike a worker at an exact point: the environment variable ``GYGES_FAULT``.

    GYGES_FAULT="worker=2 at=Transfer count=3 do=kill"      the third Transfer of worker 2 kills it

at: "step", or the name of an operation (gyges.transform.ops).   do: kill (SIGKILL), raise, hang; or slow, from the count-th time
on, which lets the others run ahead as far as nothing holds them.   Unset, it costs a comparison.
"""

from __future__ import annotations

import os
import signal
import time

_WANTED: dict[str, str] = {}
_seen = 0


def arm(worker: int) -> None:
    """Reads the variable; called once, at a worker's start."""
    wanted = dict(part.split("=", 1) for part in os.environ.get("GYGES_FAULT", "").split())
    if wanted.get("worker") == str(worker):
        _WANTED.update(wanted)


def fault_point(name: str) -> None:
    """Strikes if it is this point's turn."""
    global _seen
    if _WANTED.get("at") != name:
        return
    _seen += 1
    if _WANTED.get("do") == "slow" and _seen >= int(_WANTED.get("count", "1")):
        time.sleep(0.02)
        return
    if _seen != int(_WANTED.get("count", "1")):
        return
    action = _WANTED.get("do", "kill")
    if action == "raise":
        raise RuntimeError(f"fault injected at {name}")
    if action == "hang":
        time.sleep(3600)  # until somebody kills us
    os.kill(os.getpid(), signal.SIGKILL)

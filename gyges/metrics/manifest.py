"""What a result needs beside its figures: where the code, the machine and the command came from.

Versions are read from package metadata: collecting a manifest imports neither torch nor any other heavy library.
"""

from __future__ import annotations

import os
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from gyges.config import available_cores
from gyges.version import __version__

_PACKAGES = (
    "torch",
    "triton",
    "transformers",
    "safetensors",
    "numpy",
    "numba",
    "pandas",
    "pyarrow",
    "matplotlib",
    "msgspec",
    "cuda-bindings",
)


def collect(
    *,
    kind: str = "run",
    configuration: Mapping[str, Any] | None = None,
    seed: int | None = None,
    trace: Mapping[str, Any] | None = None,
    trace_sha256: str | None = None,
    gpus: Sequence[str] | None = None,
    argv: Sequence[str] | None = None,
) -> dict[str, Any]:
    """A manifest in the state "running". ``gpus`` are names that the caller knows; None: not asked."""
    argv = list(sys.argv if argv is None else argv)
    return {
        "kind": kind,
        "state": "running",
        "reason": None,
        "started": utc_now(),
        "ended": None,
        "command": shlex.join([Path(argv[0]).name, *argv[1:]]),
        "configuration": dict(configuration) if configuration is not None else None,
        "seed": seed,
        "trace": dict(trace) if trace is not None else None,
        "trace_sha256": trace_sha256,
        "git": git_state(),
        "versions": versions(),
        "hardware": hardware(gpus),
        "cores": available_cores(),
        "process": process_identity(),
        "warnings": [],
    }


def utc_now() -> str:
    """Wall time, ISO 8601, UTC, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def versions() -> dict[str, str | None]:
    """gyges, python and the packages that can change a result; None: not installed."""
    found: dict[str, str | None] = {"gyges": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def hardware(gpus: Sequence[str] | None = None) -> dict[str, Any]:
    """The machine; memory in bytes. It has ``machine_cores``; how many the run may use is the manifest's ``cores``."""
    import psutil

    return {
        "cpu": _cpu_model(),
        "machine_cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": list(gpus) if gpus is not None else None,
        "platform": platform.platform(),
    }


def git_state(folder: Path | None = None) -> dict[str, Any] | None:
    """commit and dirty of the gyges source tree; None if gyges does not run from a checkout of its own."""
    folder = (folder or Path(__file__).resolve().parents[2]).resolve()
    top = _git(folder, "rev-parse", "--show-toplevel")
    # An installed gyges may lie inside somebody else's repository (a virtual environment): that commit is not ours.
    if top is None or Path(top).resolve() != folder:
        return None
    commit, changes = _git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)} if commit else None


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def process_identity() -> dict[str, Any]:
    """Which process writes the folder, so that a reader can tell a running run from one that was killed."""
    import psutil

    return {"host": socket.gethostname(), "pid": os.getpid(), "create_time": psutil.Process().create_time()}


def is_alive(identity: Mapping[str, Any]) -> bool:
    """Whether that process may still be writing; a process on another host is taken to be alive."""
    import psutil

    if identity.get("host") != socket.gethostname():
        return True
    try:
        # A pid is used again sooner or later; its creation time is not.
        return bool(abs(psutil.Process(identity["pid"]).create_time() - identity["create_time"]) < 1.0)
    except psutil.Error:
        return False

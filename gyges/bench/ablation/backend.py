"""Who runs a cell. A backend is one class and one registration; it leaves a result folder as ``gyges bench run`` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gyges.config import EngineConfig
from gyges.errors import EngineError
from gyges.registry import Registry
from gyges.sim.simulation import THIS_ENGINE, Simulation


class CellError(EngineError):
    """A cell could not be run; the text says why. ``lasting``: it will not go better in another repeat."""

    def __init__(self, text: str, *, lasting: bool = False) -> None:
        super().__init__(text)
        self.lasting = lasting


@dataclass(frozen=True, slots=True)
class CellTask:
    """One run of one cell. ``work``: file of requests (gyges.bench.ablation.work).   folder: where its results go, not there yet.

    about: for the manifest (gyges.metrics.manifest.collect: configuration, seed, trace, trace_sha256, argv).
    more: further fields of the manifest.   timeout_s: for all of it.   simulation: what a backend that simulates has to assume.
    """

    config: EngineConfig
    scheduler: str
    work: Path
    folder: Path
    mode: str
    users: int
    slo: str | None
    about: Mapping[str, Any]
    more: Mapping[str, Any]
    timeout_s: float
    simulation: Simulation = THIS_ENGINE


class Backend(Protocol):
    """``simulated``: no figure of it was measured.   modes: of replays that it can do."""

    simulated: bool
    modes: Sequence[str]

    def run(self, task: CellTask) -> None:
        """Leaves requests.parquet, timeline.parquet, summary.json and a manifest in the state "complete" in ``task.folder``.
        Raises CellError; may leave a folder in another state then."""

    def lowest_tokens(self, config: EngineConfig, scheduler: str, simulation: Simulation) -> int:
        """What an instance of the host's lowest degree holds. Raises UserError for what cannot work."""
        ...

    def estimate_s(self, duration_s: float) -> float:
        """Roughly how long a run takes that has ``duration_s`` seconds of arrivals."""


BACKENDS: Registry[Backend] = Registry("ablation backend")


def backend(name: str) -> Backend:
    """Raises UnknownNameError."""
    from gyges.bench.ablation import engine, simulated  # noqa: F401 - register themselves

    return BACKENDS.get(name)

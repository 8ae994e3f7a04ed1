"""After a worker's death: the other workers of its instance leave whatever they were in, and form whole instances again.

    survivors   called out of collectives (arena epoch), told to Park        -> Parked from each, or it counts as dead too
                told to Reset as members of new instances of the lowest degree that fits -> Ready from each

A dead worker took FFN shards with it, so weights are read from the source again; its share of the KV cache is lost, so requests
are computed anew from their tokens. Nothing depends on the state in which the survivors were.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

from gyges.engine.instance import Instance
from gyges.engine.messages import Park, Reset
from gyges.engine.transformer import Surroundings
from gyges.errors import EngineError
from gyges.parallel.arena import SharedArena

_PARK_S = 5.0


@dataclass(frozen=True, slots=True)
class Incident:
    """``at_s``: monotonic seconds.   workers: those that died, or one of whom did.   requeued: requests that start over."""

    at_s: float
    workers: tuple[int, ...]
    error: str
    requeued: int


class Workers(Protocol):
    """What recoveries and restarts need of the engine."""

    arena: SharedArena | None
    start_timeout: float

    def restart(self, degrees: tuple[int, ...]) -> tuple[Surroundings, list[Instance]]:
        """Ends all processes and starts them anew as instances of these TP degrees. Raises EngineError where that fails."""
        ...


class Recovery:
    """Of the workers that are left of one or several broken instances."""

    def __init__(
        self, engine: Workers, around: Surroundings, survivors: set[int], number: int, cause: EngineError
    ) -> None:
        self.engine, self.around, self.workers, self.number, self.cause = engine, around, survivors, number, cause
        self._awaited = set(survivors)
        self.deadline_s = time.monotonic() + _PARK_S
        self._groups: list[tuple[int, ...]] = []
        for worker in sorted(survivors):
            if engine.arena is not None:
                engine.arena.abort(worker)
            around.workers[worker].send(Park(number))

    def parked(self, worker: int) -> None:
        """All have to park before any goes on: the collectives' semaphores are shared."""
        self._awaited.discard(worker)
        if self._awaited:
            return
        if self.engine.arena is not None:
            self.engine.arena.reset(self.workers)
        self._groups = self._regroup()
        self._awaited = {worker for group in self._groups for worker in group}
        self.deadline_s = time.monotonic() + self.engine.start_timeout
        for group in self._groups:
            for member in group:
                self.around.parity[member] = 0
                self.around.workers[member].send(Reset(self.number, group))

    def _regroup(self) -> list[tuple[int, ...]]:
        """As many instances as there can be; workers that are left over stay parked."""
        host, left = self.around.host, sorted(self.workers)
        degrees = [d for d in host.degrees if host.max_groups(d) >= 1 and d <= len(left)]
        if not degrees:
            return []
        degree = degrees[0]
        return [tuple(left[i : i + degree]) for i in range(0, len(left) - degree + 1, degree)]

    def ready(self, worker: int) -> bool:
        """Whether that was the last one."""
        self._awaited.discard(worker)
        return not self._awaited

    @property
    def impossible(self) -> bool:
        """The survivors can form no instance at all."""
        return not self._groups and not self._awaited

    def instances(self) -> list[Instance]:
        around = self.around
        return [around.make_instance(g, around.host.allocator(len(g), around.host_ids)) for g in self._groups]

    def silent(self) -> set[int]:
        return set(self._awaited)

    def silent_names(self) -> str:
        return f"workers {sorted(self._awaited)}"

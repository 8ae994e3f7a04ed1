"""The front of a simulated cluster: a router places requests on the hosts that are up, and failures happen at their times."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from gyges.scheduling.routing import Ask
from gyges.sim.changes import NEVER
from gyges.sim.cluster.failures import Failure, check_failures
from gyges.sim.cluster.host import ClusterHost
from gyges.sim.cluster.routers import Router
from gyges.sim.sequence import SimSequence


class Cluster:
    """Implements :class:`gyges.sim.simulator.Front`.   failures: of these hosts. Raises UserError as ``check_failures`` does."""

    def __init__(self, hosts: Sequence[ClusterHost], router: Router, failures: Iterable[Failure] = ()) -> None:
        failures = sorted(failures, key=lambda failure: failure.at_s)
        check_failures(failures, len(hosts), len(hosts[0].devices))
        self.hosts = hosts
        self._router = router
        self._failures = deque(failures)
        self._loads = [host.load for host in hosts]  # of those that are up
        self._kept: list[SimSequence] = []  # no host is up
        self._alike = True  # whether every host has all of its devices

    @property
    def waiting(self) -> int:
        return len(self._kept)

    @property
    def next_s(self) -> float:
        """When something fails next, or a host is back for which requests wait; infinite: never."""
        at = self._failures[0].at_s if self._failures else NEVER
        return min(at, *(host.back_s for host in self.hosts)) if self._kept else at

    def happen(self, now: float) -> list[int]:
        """What fails now, and what is back. Returns the hosts that this concerns."""
        concerned: list[int] = []
        homeless: list[SimSequence] = []
        while self._failures and self._failures[0].at_s <= now:
            failure = self._failures.popleft()
            host = self.hosts[failure.host]
            host.now = now
            chosen = host.devices if failure.device is None else [host.devices[failure.device]]
            homeless += host.lose(chosen, failure.back_s, f"{failure} failed")
            concerned.append(failure.host)
            self._note_hosts()
        if self._kept and any(host.back_s <= now for host in self.hosts):
            homeless, self._kept = [*self._kept, *homeless], []
        for sequence in homeless:
            index = self.place(sequence, now)
            if index is not None:
                self.hosts[index].offer(sequence)
                concerned.append(index)
        return concerned

    def place(self, sequence: SimSequence, now: float) -> int | None:
        """The host that the router chooses among those that are up; None: there is none, and the request waits here."""
        if not self._alike:
            self._note_hosts(now)
        loads = self._loads
        if not self._alike:
            loads = [load for load in loads if load.wide_tokens >= sequence.max_length] or loads
        if not loads:
            self._kept.append(sequence)
            return None
        ask = Ask(sequence.max_length, sequence.missing, sequence.arrival_s, f"r{sequence.order}")
        return self._router(ask, loads).index

    def end(self) -> None:
        """Nothing happens any more; what waits for a host never gets one."""
        for sequence in self._kept:
            sequence.reason, sequence.lost = "no host was up", True

    def _note_hosts(self, now: float = -1.0) -> None:
        """Which hosts are up. One that is back at this very moment counts: requests that arrive then find it."""
        up = [host for host in self.hosts if host.up_at(now)]
        self._loads = [host.load for host in up]
        self._alike = all(host.whole for host in self.hosts)

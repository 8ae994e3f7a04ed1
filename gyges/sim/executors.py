"""Who runs the cells of a sweep: processes on this machine, or a Ray cluster. Neither changes what a cell comes to."""

from __future__ import annotations

import multiprocessing
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol

from gyges.errors import EngineError, UserError

# What a cell leaves behind: why it could not be run, or "", and its files by name.
Outcome = tuple[str, dict[str, bytes]]
RunCell = Callable[[list[str]], Outcome]

_REACH_S = 10.0


class Executor(Protocol):
    """``run_cell`` is a function of a module, so that other processes can import it."""

    def run(self, run_cell: RunCell, cells: Sequence[list[str]]) -> Iterator[tuple[int, Outcome]]:
        """(index, outcome) of each cell as it ends. Raises EngineError where a process is lost; leaving early ends the others."""
        ...


class LocalExecutor:
    """``jobs`` processes of this machine, each started anew, so that none inherits threads or state."""

    def __init__(self, jobs: int) -> None:
        if jobs < 1:
            raise UserError(f"at least one job is needed, got {jobs}")
        self.jobs = jobs

    def run(self, run_cell: RunCell, cells: Sequence[list[str]]) -> Iterator[tuple[int, Outcome]]:
        if not cells:
            return
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(min(self.jobs, len(cells)), mp_context=context)
        try:
            futures = {pool.submit(run_cell, cell): index for index, cell in enumerate(cells)}
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise EngineError(
                "a process of the sweep died (out of memory?); the same command with --out goes on where it was, "
                "with fewer --jobs in less memory"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _reach(address: str) -> None:
    """UserError where nobody listens at ``[ray://]host:port``: Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return  # auto, local
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_S).close()
    except OSError as error:
        raise UserError(f"no Ray cluster at {address!r}: {error}") from error


class RayExecutor:
    """A Ray cluster (extra ``ray``): one core for each cell. Nodes need this package, and files under the same paths.

    ``address``: of a cluster, ``auto`` for the one that this machine belongs to, or ``local`` to start one here for the sweep.
    Raises UserError without Ray, or where the cluster cannot be reached.
    """

    def __init__(self, address: str) -> None:
        try:
            import ray
        except ImportError:
            raise UserError("--ray needs Ray: pip install 'gyges[ray]'") from None
        self._ray, self._address = ray, address
        self._ours = not ray.is_initialized()

    def run(self, run_cell: RunCell, cells: Sequence[list[str]]) -> Iterator[tuple[int, Outcome]]:
        ray = self._ray
        if self._ours:
            _reach(self._address)
            try:
                ray.init(address=self._address, log_to_driver=False, include_dashboard=False, logging_level="error")
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise UserError(f"no Ray cluster at {self._address!r}: {error}") from error
        left: dict[Any, int] = {}
        try:
            remote = ray.remote(num_cpus=1)(run_cell)
            left |= {remote.remote(cell): index for index, cell in enumerate(cells)}
            while left:
                (done, *_), _ = ray.wait(list(left), num_returns=1)
                try:
                    yield left.pop(done), ray.get(done)
                except ray.exceptions.RayError as error:
                    raise EngineError(
                        f"Ray lost a cell ({type(error).__name__}: {error}); the same command with --out goes on where it was"
                    ) from error
        finally:
            for reference in left:
                ray.cancel(reference, force=True)
            if self._ours:
                ray.shutdown()

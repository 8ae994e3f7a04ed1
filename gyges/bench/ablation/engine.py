"""The backend that measures: a real engine, started and ended for each run in a process of its own.

A crash is then a failed cell, and no cell finds anything warm that another one left.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from gyges.bench.ablation.backend import BACKENDS, CellError, CellTask
from gyges.bench.child import Child, ChildError
from gyges.config import EngineConfig, available_cores
from gyges.engine.replay import MODES
from gyges.sim.simulation import Simulation

_USER_ERRORS = ("UserError:", "UnknownNameError:")
_TARGET = "gyges.bench.ablation.engine:EngineRun"
_START_S = 6.0  # until the first request, and from the last one to the end of the process


class EngineRun:
    """Lives in the child; one run."""

    def run(
        self,
        *,
        config: dict[str, Any],
        scheduler: str,
        work: str,
        folder: str,
        mode: str,
        users: int,
        slo: str | None,
        about: dict[str, Any],
        more: dict[str, Any],
    ) -> dict[str, Any]:
        """Serves the requests of the file ``work``; results go to ``folder``. Returns how the replay ended."""
        from gyges.bench.ablation.work import read_work
        from gyges.bench.serving import engine_facts, happenings, notes_of
        from gyges.engine.engine import Engine
        from gyges.engine.replay import Replayer
        from gyges.metrics.results import ResultFolder
        from gyges.metrics.slo import parse_slo
        from gyges.metrics.summary import summarize

        engine = Engine(EngineConfig.from_dict(config), scheduler)
        items = read_work(work)
        with ResultFolder.create(folder, "run", **about) as results:
            results.update_manifest(**more)
            with engine:
                results.update_manifest(engine=engine_facts(engine))
                replayer = Replayer(engine, items, mode=mode, users=users)
                result = replayer.run()
                results.update_manifest(**happenings(result))
            summary = summarize(
                result.records,
                result.samples,
                result.events,
                slo=parse_slo(slo) if slo else None,
                replay_mode=mode,
                duration_s=result.duration_s,
                partial=result.state != "complete",
                notes=notes_of(engine.config),
            )
            results.save(result.records, result.samples, result.events, summary)
            results.finish(result.state, result.reason)
        return {"state": result.state, "reason": result.reason}


class EngineBackend:
    simulated = False
    modes = MODES

    def run(self, task: CellTask) -> None:
        try:
            with Child(_TARGET, available_cores()) as child:
                done = child.call(
                    "run",
                    task.timeout_s,
                    config=asdict(task.config),
                    scheduler=task.scheduler,
                    work=str(Path(task.work).absolute()),
                    folder=str(Path(task.folder).absolute()),
                    mode=task.mode,
                    users=task.users,
                    slo=task.slo,
                    about=dict(task.about),
                    more=dict(task.more),
                )
        except ChildError as error:
            text = str(error)
            raise CellError(text, lasting=text.startswith(_USER_ERRORS)) from error
        if done["state"] != "complete":
            raise CellError(f"the replay ended {done['state']}: {done['reason']}")

    def lowest_tokens(self, config: EngineConfig, scheduler: str, simulation: Simulation) -> int:
        from gyges.engine.engine import Engine

        engine = Engine(config, scheduler)  # not started
        return engine.placer.shape.max_tokens(min(engine.config.candidate_degrees))

    def estimate_s(self, duration_s: float) -> float:
        return _START_S + 1.3 * duration_s


BACKENDS.add("engine", EngineBackend())

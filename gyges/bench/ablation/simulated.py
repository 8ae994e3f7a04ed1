"""The backend that simulates: no figure of it was measured, and a cell takes seconds of processor time, not of the trace."""

from __future__ import annotations

from gyges.bench.ablation.backend import BACKENDS, CellError, CellTask
from gyges.bench.simulated import simulate
from gyges.config import EngineConfig
from gyges.errors import UserError
from gyges.metrics.results import ResultFolder
from gyges.metrics.slo import parse_slo
from gyges.sim.of_engine import prepare_engine
from gyges.sim.simulation import MODES, Simulation


class SimBackend:
    simulated = True
    modes = MODES

    def run(self, task: CellTask) -> None:
        from gyges.bench.ablation.work import read_work

        try:
            prepared = prepare_engine(task.config, task.scheduler, task.simulation)
            items = read_work(task.work)
            lengths = [(i.scheduled_s, len(i.request.prompt), i.request.sampling.max_tokens) for i in items]
            with ResultFolder.create(task.folder, "run", **task.about) as results:
                results.update_manifest(**task.more)
                simulate(
                    prepared,
                    lengths,
                    results,
                    names=[item.request.request_id for item in items],
                    mode=task.mode,
                    slo=parse_slo(task.slo) if task.slo else None,
                )
        except UserError as error:
            raise CellError(str(error), lasting=True) from error

    def lowest_tokens(self, config: EngineConfig, scheduler: str, simulation: Simulation) -> int:
        system = prepare_engine(config, scheduler, simulation).system
        return system.kv_tokens[system.degrees[0]]

    def estimate_s(self, duration_s: float) -> float:
        return 2.0


BACKENDS.add("sim", SimBackend())

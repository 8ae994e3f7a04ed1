"""An ablation without an engine: a backend that makes up runs, and the folder it leaves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from metrics.factory import lost, request, sample

from gyges.bench.ablation.backend import BACKENDS, CellError, CellTask
from gyges.bench.ablation.document import build
from gyges.bench.ablation.grid import Grid
from gyges.bench.ablation.run import AblationConfig, plan, run_cells
from gyges.bench.ablation.work import Work
from gyges.config import MIB, EngineConfig
from gyges.core import Request, SamplingParams
from gyges.engine.replay import MODES, TimedRequest
from gyges.metrics.records import TransformationEvent
from gyges.metrics.results import ResultFolder
from gyges.metrics.summary import summarize

LENGTHS = [(0.0, 100), (0.5, 200), (1.0, 5000), (1.5, 300)]  # (arrival, prompt); the third is long
OUTPUT = 8


class MadeUp:
    """Short requests take 0.1 s to their first token, and half of that with the layout on; the long one is rejected by llf."""

    simulated = True
    modes = MODES

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.broken: set[str] = set()
        self.late: set[str] = set()
        self.interrupted = ""

    def run(self, task: CellTask) -> None:
        mark = task.more["ablation"]
        self.ran.append(f"{mark['cell']} {mark['repeat']}")
        if f"{mark['cell']} {mark['repeat']}" == self.interrupted:
            raise KeyboardInterrupt
        if mark["cell"] in self.broken:
            raise CellError("worker 1 died (signal 9)")
        first = 0.05 if task.config.layout == "shard-pages" else 0.1
        records, events = [], []
        for index, (at, prompt) in enumerate(LENGTHS):
            about = {"prompt_tokens": prompt, "target_output_tokens": OUTPUT}
            if prompt > 3000 and task.scheduler == "llf":
                records.append(lost(f"r{index}", at=at, status="rejected", **about))
            else:
                extra = 0.01 * mark["repeat"] * (index + 1)
                records.append(request(f"r{index}", at=at, first=first + extra, gap=0.02, tokens=OUTPUT, **about))
        if task.scheduler != "llf":
            events = [TransformationEvent("merge", (0, 1), 1.0, 1.25, 4096, 0.03, "long", extra_bytes=MIB)]
        samples = [sample(0.0, "a", (0,)), sample(0.0, "b", (1,)), sample(2.0, "a", (0,))]
        with ResultFolder.create(task.folder, "run", **task.about) as folder:
            folder.update_manifest(**task.more)
            late = f"{mark['cell']} {mark['repeat']}" in self.late
            for record in records:
                record.sent_s = record.scheduled_s + 0.04 * late
            folder.save(records, samples, events, summarize(records, samples, events))

    def lowest_tokens(self, config, scheduler, simulation) -> int:
        return BACKENDS.get("engine").lowest_tokens(config, scheduler, simulation)

    def estimate_s(self, duration_s: float) -> float:
        return 10.0


def make_work(settings, long_over) -> Work:
    items = [
        TimedRequest(at, Request(f"r{index}", (5,) * prompt, SamplingParams(max_tokens=OUTPUT, ignore_eos=True)))
        for index, (at, prompt) in enumerate(LENGTHS)
    ]
    return Work(items, f"sha-{sorted(settings.items())}", 0, {"name": "made-up"})


def config_of(sets=None, **more) -> AblationConfig:
    if "made-up" not in BACKENDS:
        BACKENDS.add("made-up", MadeUp())
    base = EngineConfig(instances=(1, 1, 1, 1), device_memory=16 * MIB)
    values = {"backend": "made-up", "slo": "ttft=0.085", "repeats": 2} | more
    return AblationConfig(Grid(sets or {}, kinds=values.pop("kinds", ("on", "off", "without", "only"))), base, **values)


def the_backend() -> MadeUp:
    config_of()
    found = BACKENDS.get("made-up")
    found.ran, found.broken, found.late, found.interrupted = [], set(), set(), ""
    return found


def run_made_up(root: Path, config: AblationConfig, **changes):
    """(planned cells, document) of an ablation in ``root``."""
    planned = plan(replace(config, **changes), make_work)
    run_cells(replace(config, **changes), planned, root, ["gyges", "bench", "ablation"], lambda text: None)
    return planned, build(replace(config, **changes), planned, root)

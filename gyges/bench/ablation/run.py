"""The ablation as a whole: every cell in turn, repeat after repeat (A B C A B C), so that a slow minute of the machine
falls on all.

What a run depends on is hashed; a run whose hash is in the folder already is kept, so that an ablation that was
interrupted, or is given more repeats or cells, goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import gyges
from gyges.bench.ablation.axes import AXES, engine_config
from gyges.bench.ablation.backend import CellError, CellTask, backend
from gyges.bench.ablation.grid import Cell, Grid
from gyges.bench.ablation.work import Work, write_work
from gyges.config import EngineConfig, available_cores
from gyges.errors import UnknownNameError, UserError
from gyges.metrics.manifest import hardware
from gyges.metrics.results import load_manifest
from gyges.metrics.slo import parse_slo
from gyges.sim.simulation import THIS_ENGINE, Simulation

Progress = Callable[[str], None]
# (settings of the trace's axes, tokens above which a request is long or None where that is not known) -> requests
MakeWork = Callable[[Mapping[str, str], int | None], Work]
_MEASURED = (
    "core.py",
    "config.py",
    "sampling.py",
    "engine",
    "kernels",
    "kv_cache",
    "memory",
    "models",
    "parallel",
    "scheduling",
    "sim",
    "transform",
)


@dataclass(frozen=True, slots=True)
class AblationConfig:
    """What to run. ``base``: engine options that no axis changes.   slo: what counts as good, as `--slo` takes it.

    users: of a closed-loop replay.   simulation: of a backend that simulates.
    """

    grid: Grid
    base: EngineConfig
    backend: str = "engine"
    repeats: int = 2
    mode: str = "open"
    users: int = 8
    slo: str = ""
    simulation: Simulation = THIS_ENGINE

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise UserError(f"repeats must be at least 1, got {self.repeats}")
        known = backend(self.backend).modes
        if self.mode not in known:
            raise UnknownNameError(f"replay mode of backend {self.backend}", self.mode, known)
        if self.slo:
            parse_slo(self.slo)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(slots=True)
class Planned:
    """A cell with all that its runs depend on. ``long_over``: tokens above which a request is long; None: not known.

    key: hash of what its runs depend on.   error: why it cannot be run, or what went wrong last.   lasting: it will again.
    """

    cell: Cell
    config: EngineConfig
    scheduler: str
    work: Work
    long_over: int | None
    key: str
    error: str = ""
    lasting: bool = False
    done: list[int] = field(default_factory=list)  # repeats, from 1

    def folder(self, root: Path, repeat: int) -> Path:
        return root / "cells" / self.cell.slug / f"r{repeat}"


def plan(config: AblationConfig, make_work: MakeWork) -> list[Planned]:
    """Every cell; those that cannot work have their error set. Raises UserError where the trace or an axis cannot be read."""
    works: dict[tuple[Any, ...], Work] = {}
    limits: dict[str, int | None] = {}
    planned = []
    cells = config.grid.cells()
    for cell in cells:
        scheduler = cell.settings["scheduler"]
        error = ""
        try:
            engine = engine_config(config.base, cell.settings)
            lowest = backend(config.backend).lowest_tokens(engine, scheduler, config.simulation)
        except UserError as problem:
            engine, lowest, error = config.base, None, str(problem)
        # A request is long in all cells that are compared or in none: by the first of them that works.
        if limits.get(cell.reference) is None:
            limits[cell.reference] = lowest
        long_over = limits[cell.reference]
        trace = {n: v for n, v in cell.settings.items() if AXES.get(n).of == "trace"}
        which = (tuple(trace.items()), long_over if "long-share" in trace else None)
        if which not in works:
            works[which] = make_work(trace, long_over)
        work = works[which]
        key = _key(config, engine, scheduler, work)
        planned.append(Planned(cell, engine, scheduler, work, long_over, key, error, bool(error)))
    return planned


def _key(config: AblationConfig, engine: EngineConfig, scheduler: str, work: Work) -> str:
    about = {
        "backend": config.backend,
        "engine": engine.to_dict(),
        "scheduler": scheduler,
        "trace": work.sha256,
        "prompts": work.seed,
        "mode": config.mode,
        "users": config.users if config.mode == "closed" else None,
        "code": code_digest(),
        "cpu": _cpu(),
        "cores": available_cores(),
    }
    if config.backend == "sim":
        about["simulation"] = asdict(config.simulation)
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


@cache
def code_digest() -> str:
    """sha256 of the source files that a run's figures depend on."""
    root = Path(gyges.__file__).parent
    digest = hashlib.sha256()
    for name in _MEASURED:
        for path in sorted((root / name).rglob("*.py")) if (root / name).is_dir() else [root / name]:
            if path.is_file():
                digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


@cache
def _cpu() -> str:
    return str(hardware()["cpu"])


def find_done(planned: Sequence[Planned], root: Path, repeats: int) -> None:
    """Notes in each cell which of its runs are in the folder already."""
    for each in planned:
        each.done = [repeat for repeat in range(1, repeats + 1) if _is_done(each.folder(root, repeat), each.key)]


def _is_done(folder: Path, key: str) -> bool:
    try:
        manifest = load_manifest(folder)
    except UserError:
        return False
    return bool(manifest["state"] == "complete" and manifest.get("ablation", {}).get("key") == key)


def estimate_s(config: AblationConfig, planned: Sequence[Planned], root: Path | None) -> float:
    """Seconds that the runs to come take, roughly: as long as those in the folder took, else by the backend's estimate."""
    total = 0.0
    for each in planned:
        left = config.repeats - len(each.done)
        if each.lasting or left <= 0:
            continue
        took = [_took_s(each.folder(root, repeat)) for repeat in each.done] if root else []
        total += left * (max(took) if took else backend(config.backend).estimate_s(each.work.duration_s))
    return total


def _took_s(folder: Path) -> float:
    from datetime import datetime

    manifest = load_manifest(folder)
    began, ended = (datetime.fromisoformat(manifest[name]) for name in ("started", "ended"))
    return (ended - began).total_seconds() + 1.5  # the process before and after


def run_cells(
    config: AblationConfig, planned: Sequence[Planned], root: Path, argv: Sequence[str], progress: Progress
) -> bool:
    """Runs what is not there yet. Returns False where Ctrl-C ended it; errors of cells are kept in them."""
    find_done(planned, root, config.repeats)
    with tempfile.TemporaryDirectory(prefix="gyges-ablation-") as temporary:
        files: dict[int, Path] = {}
        try:
            for repeat in range(1, config.repeats + 1):
                for each in planned:
                    said = _run_one(config, each, root, repeat, argv, files, Path(temporary))
                    progress(f"repeat {repeat} of {config.repeats}, {each.cell.name}: {said}")
        except KeyboardInterrupt:
            return False
    return True


def _run_one(
    config: AblationConfig,
    each: Planned,
    root: Path,
    repeat: int,
    argv: Sequence[str],
    files: dict[int, Path],
    temporary: Path,
) -> str:
    if repeat in each.done:
        return "kept"
    if each.lasting:
        return f"cannot run: {each.error}"
    work = files.get(id(each.work))
    if work is None:
        work = files[id(each.work)] = temporary / f"{len(files)}.parquet"
        write_work(work, each.work.items)
    folder = each.folder(root, repeat)
    shutil.rmtree(folder, ignore_errors=True)  # of a run that failed, or of other inputs
    about = {
        "configuration": {
            "engine": each.config.to_dict(),
            "scheduler": each.scheduler,
            "mode": config.mode,
            "users": config.users,
            "slo": config.slo or None,
        },
        "seed": each.work.seed,
        "trace": dict(each.work.trace),
        "trace_sha256": each.work.sha256,
        "argv": list(argv),
    }
    mark = {"cell": each.cell.name, "repeat": repeat, "key": each.key, "long_over": each.long_over}
    task = CellTask(
        each.config, each.scheduler, work, folder, config.mode, config.users, config.slo or None, about,
        {"ablation": mark}, _timeout_s(each), config.simulation,
    )  # fmt: skip
    try:
        backend(config.backend).run(task)
    except CellError as error:
        each.error, each.lasting = str(error), error.lasting
        return f"failed: {str(error).splitlines()[0]}"
    each.done.append(repeat)
    summary = json.loads((folder / "summary.json").read_text())
    requests, rate = summary["requests"], summary["throughput"]["output_tokens_per_s"]
    changes = summary["transformations"]["merges"] + summary["transformations"]["splits"]
    return (
        f"{requests['completed']} of {requests['offered']} requests, {rate or math.nan:.0f} tok/s, "
        f"{changes} transformations, {summary['window_s']:.1f} s"
    )


def _timeout_s(each: Planned) -> float:
    return each.config.start_timeout + 10 * each.work.duration_s + 300.0

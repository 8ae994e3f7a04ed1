"""The measurements that ``gyges sim agree --measure`` compares, by turns, so that each run lies between two profiles:

    profile-0/      gyges profile, TP1 and TP2
    transform-0/    gyges bench transform, part pause: 2 x TP1 become TP2, and back
    round-1/        the runs of a round:
        static/         a replay on one TP1 instance
        stopping/       a replay on two devices that merge and split by hand, all in one stop
        overlapping/    the same, between serving steps
    profile-1/, transform-1/, round-2/, profile-2/ …

A shared machine's speed changes within minutes. A run is simulated with the mean of what was measured just before and just after
its round, in which a steady drift largely cancels.

A worker has one thread, and there are no more workers than two: a machine needs a core for each, and one more is better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from cli.bench_run import bench_run
from cli.sim_options import Runner
from gyges.bench.transform.pause import DEVICE_MEMORY, PauseConfig, measure_pause
from gyges.config import EngineConfig
from gyges.errors import EngineError
from gyges.metrics.results import ResultFolder
from gyges.profile.run import ProfileConfig, profile
from gyges.sim.simulation import Simulation
from workloads.options import TraceOptions

MODEL, LAYOUT, WIDE = "tiny", "shard-pages", 2
_STATIC, _STATIC_S = "default", 50.0  # at half its rate, which is meant for four devices
# Short prompts: a chunk that is computed beside a transformation would be taken for its pause. About ten run at a time.
_DECODING = "synthetic:poisson?rate=2.5&prompt=uniform:32:96&output=uniform:500:900&duration={:g}"
_FIRST_S, _EVERY_S, _PAIRS = 3.0, 1.25, 6
_MAX_SEQS = 32  # more than ever run, and a grid of a size that is profiled in a minute
_FILLS = (0.1, 0.4, 0.8)

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Round:
    """Folders. ``runs``: by name.   ``profiles``, ``transforms``: those before the runs and those after."""

    runs: dict[str, Path]
    profiles: tuple[Path, Path]
    transforms: tuple[Path, Path]


def measure(folder: Path, progress: Progress, *, rounds: int, quick: bool = False) -> Iterator[Round]:
    """Each round once what follows its runs is there too. ``quick``: figures that mean little."""
    engine = EngineConfig(model=MODEL, layout=LAYOUT, device_memory=DEVICE_MEMORY[MODEL], threads=1, max_seqs=_MAX_SEQS)
    before = _prices(folder, 0, engine, progress, quick)
    for number in range(1, rounds + 1):

        def say(text: str, number: int = number) -> None:
            progress(f"round {number} of {rounds}: {text}")

        runs = _runs(folder / f"round-{number}", engine, say, quick)
        after = _prices(folder, number, engine, say, quick)
        (profiled, paused), (then_profiled, then_paused) = before, after
        yield Round(runs, (profiled, then_profiled), (paused, then_paused))
        before = after


def _prices(folder: Path, number: int, engine: EngineConfig, progress: Progress, quick: bool) -> tuple[Path, Path]:
    """Folders of a profile and of pauses."""
    profiled, paused = folder / f"profile-{number}", folder / f"transform-{number}"
    progress("profile")
    profile(ProfileConfig(engine, (1, WIDE), repeats=1 if quick else 3, quick=quick), profiled, progress)
    fills = _FILLS[1:] if quick else _FILLS
    pauses = PauseConfig(MODEL, (LAYOUT,), fills, WIDE, repeats=1 if quick else 4, seed=0, paddings=(True,))
    with ResultFolder.create(paused, "bench-transform", configuration=asdict(pauses)) as results:
        results.write_json("transform.json", {"pause": {"models": [measure_pause(pauses, progress)]}})
    return profiled, paused


def _runs(folder: Path, engine: EngineConfig, progress: Progress, quick: bool) -> dict[str, Path]:
    runs = {"static": (engine, _STATIC, TraceOptions(time_scale=2, duration=8 if quick else _STATIC_S), [])}
    pairs = 1 if quick else _PAIRS
    times = [_FIRST_S + index * _EVERY_S for index in range(2 * pairs)]
    by_hand = [f"{at:g}s split 0-1 tp1,tp1" if i % 2 else f"{at:g}s merge 0-1" for i, at in enumerate(times)]
    for name, overlap in (("stopping", False), ("overlapping", True)):
        two = engine.with_(instances=(1, 1), tp_degrees=(1, WIDE), overlap=overlap)
        runs[name] = (two, _DECODING.format(times[-1] + _EVERY_S), TraceOptions(), by_hand)
    for name, (config, trace, options, commands) in runs.items():
        progress(f"replay: {name}")
        outcome = bench_run(
            Console(quiet=True),
            runner=Runner("engine", Simulation()),
            config=config,
            trace_spec=trace,
            trace_options=options,
            scheduler="static",
            transform=commands,
            mode="open",
            users=1,
            slo=None,
            out=folder / name,
        )
        if outcome["state"] == "partial":
            raise KeyboardInterrupt  # the replay was ended by it; the rounds end with it
        if outcome["state"] == "failed":
            raise EngineError(outcome["reason"])
    return {name: folder / name for name in runs}

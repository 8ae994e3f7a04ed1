"""What ``gyges sim bench`` does: measure the simulator, keep, show. The figures are those of gyges.sim.bench."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from cli.bench_tables import met, stopwatch, table
from cli.render import number, seconds
from gyges.config import format_bytes
from gyges.errors import EngineError
from gyges.metrics.results import ResultFolder
from gyges.sim.bench import SimBenchConfig, bench_loop, bench_scale, goals
from workloads.load import load_trace
from workloads.options import TraceOptions

# Where the Azure trace is not at hand: as many requests in an hour, lengths of the same quartiles.
AZURE_LIKE = (
    "synthetic:poisson?rate=5.38&prompt=lognormal:720:0.98:3:14050&output=lognormal:150:0.86:1:1000&duration=3600"
)
_TIMEOUT_S = 600.0


def bench_command(
    console: Console, config: SimBenchConfig, trace_spec: str, out: Path | None, *, scale: bool
) -> dict[str, Any]:
    """Returns bench.json's fields plus ``folder`` and ``plots``. ``scale``: the many requests too, which takes minutes."""
    trace = load_trace(trace_spec, TraceOptions(seed=config.seed))
    lengths = [(each.arrival_s, each.prompt_tokens, each.output_tokens) for each in trace.requests]
    progress = stopwatch()
    about: dict[str, Any] = {"trace": trace.manifest(), "trace_sha256": trace.content_sha256, "seed": config.seed}
    with ResultFolder.create(out, "sim-bench", configuration=asdict(config), **about) as folder:
        document: dict[str, Any] = {"trace": trace.name, "loop": bench_loop(config, lengths, progress)}
        progress("the whole command")
        document["command"] = {"wall_s": [_command_s(config, trace_spec) for _ in range(config.repeats)]}
        document["scale"] = bench_scale(config, lengths, progress) if scale else None
        document["goals"] = goals(document)
        folder.write_json("bench.json", document)
        plots = []
        if scale:
            from gyges.sim.bench_plot import write_plot

            plots = write_plot(folder.plots, document)
    render(console, document)
    console.print(f"results: {folder.path}", soft_wrap=True, highlight=False)
    return {**document, "folder": str(folder.path), "plots": [str(path) for path in plots]}


def _command_s(config: SimBenchConfig, trace_spec: str) -> float:
    """Seconds of ``gyges sim run`` from its start to its end, with everything that it writes."""
    setup = config.host
    options = {"--trace": trace_spec, "--hardware": setup.hardware, "--model": setup.model, "--policy": setup.policy}
    words = [word for pair in options.items() for word in pair if pair[1]]
    with tempfile.TemporaryDirectory(prefix="gyges-sim-bench-") as temporary:
        command = [sys.executable, "-m", "cli.main", "sim", "run", *words, "--out", f"{temporary}/run"]
        started = time.perf_counter()
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            raise EngineError(f"gyges sim run took more than {_TIMEOUT_S:g} s") from None
        took = time.perf_counter() - started
    if done.returncode:
        raise EngineError(f"gyges sim run failed: {done.stderr.strip()[-500:]}")
    return took


def render(console: Console, document: Mapping[str, Any]) -> None:
    """Tables that fit in 80 columns."""
    loop = document["loop"]
    console.print(
        f"[bold]{document['trace']}[/]: {loop['requests']:,} requests, {loop['steps']:,} steps; loop "
        f"{seconds(min(loop['loop_s']))}, whole command {seconds(min(document['command']['wall_s']))}",
        highlight=False,
    )
    if document["scale"]:
        rows = table(f"{document['scale']['runs'][0]['devices']:,} devices")
        for head in ("requests", "in all", "event loop", "steps", "a request", "peak memory", "simulated"):
            rows.add_column(head, justify="right", no_wrap=True)
        for run in document["scale"]["runs"]:
            rows.add_row(
                f"{run['requests']:,}",
                seconds(run["wall_s"]),
                seconds(run["loop_s"]),
                number(run["steps"]),
                seconds(run["wall_s"] / run["requests"]),
                format_bytes(run["peak_bytes"]),
                seconds(run["simulated_s"]),
            )
        console.print(rows)
        fit = document["scale"]["fit"]
        console.print(
            f"time ~ requests^{fit['exponent']:.2f}; a straight line of {seconds(fit['seconds_per_request'])} a request "
            f"explains {fit['r2']:.2%} of it",
            highlight=False,
        )
    rows = table("Goals")
    for head in ("goal", "at most", "reached", "met"):
        rows.add_column(head, justify="left" if head == "goal" else "right", no_wrap=True)
    shown = {"s": seconds, "bytes": format_bytes, "count": lambda value: f"{value:.3g}"}
    for goal in document["goals"]:
        value, show = goal["reached"], shown[goal["unit"]]
        rows.add_row(goal["name"], show(goal["limit"]), "-" if value is None else show(value), met(goal["met"]))
    console.print(rows)

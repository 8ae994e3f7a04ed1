"""What ``gyges bench run`` does: trace -> engine -> replay -> result folder -> table."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from cli.live import LiveSnapshot, LiveView
from cli.render import render_summary
from cli.sim_options import Runner
from gyges.bench.serving import engine_facts, happenings, notes_of
from gyges.config import EngineConfig, format_bytes, format_instances
from gyges.core import Request, SamplingParams
from gyges.engine.by_hand import HandCommand, check_degrees, check_devices, degrees_of, parse_command
from gyges.engine.engine import Engine
from gyges.engine.replay import MODES, Progress, Replayer, ReplayResult, TimedRequest
from gyges.errors import UnknownNameError, UserError
from gyges.metrics.results import ResultFolder
from gyges.metrics.slo import parse_slo
from gyges.metrics.summary import summarize
from gyges.scheduling.specification import make_policy
from workloads.load import load_trace
from workloads.options import TraceOptions
from workloads.prompts import prompt_tokens
from workloads.schema import Trace


def timed_requests(trace: Trace, vocab_size: int, seed: int) -> list[TimedRequest]:
    """The trace's requests with seeded random prompts; each runs to the trace's output length."""
    return [
        TimedRequest(
            item.arrival_s,
            Request(
                f"r{index}",
                prompt_tokens(item, index, vocab_size, seed),
                SamplingParams(max_tokens=item.output_tokens, ignore_eos=True),
            ),
        )
        for index, item in enumerate(trace.requests)
    ]


def bench_run(
    console: Console,
    *,
    config: EngineConfig,
    runner: Runner,
    trace_spec: str,
    trace_options: TraceOptions,
    scheduler: str,
    transform: Sequence[str],
    mode: str,
    users: int,
    slo: str | None,
    out: Path | None,
) -> dict[str, Any]:
    """Runs to the end, an interruption, or a failure of the engine; what there is by then is in the folder.

    transform: merges and splits by hand (gyges.engine.by_hand).
    Returns summary.json's fields plus ``state``, ``reason``, ``folder`` and ``plots``.
    """
    if mode not in MODES:
        raise UnknownNameError("replay mode", mode, MODES)
    if runner.backend == "sim":
        from cli.sim_run import sim_engine_run

        if transform:
            raise UserError("--transform asks a running engine; a simulation merges and splits as its scheduler says")
        return sim_engine_run(console, config, scheduler, runner.simulation, trace_spec, trace_options, mode, slo, out)
    if runner.backend != "engine":
        raise UnknownNameError("backend", runner.backend, ("engine", "sim"))
    limits = parse_slo(slo) if slo else None
    trace = load_trace(trace_spec, trace_options)
    by_hand = [parse_command(text) for text in transform]
    engine = make_engine(config, scheduler, by_hand)
    items = timed_requests(trace, engine.geometry.vocab_size, trace_options.seed)
    title = _short(trace.name)
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", trace.name)[:40].strip("-") or "run"
    folder = ResultFolder.create(
        out,
        "run",
        name=name,
        configuration={
            "engine": engine.config.to_dict(),
            "scheduler": scheduler,
            "transform": [str(command) for command in by_hand],
            "mode": mode,
            "users": users,
            "slo": slo,
        },
        seed=trace_options.seed,
        trace=trace.manifest(),
        trace_sha256=trace.content_sha256,
    )
    with folder:
        console.print(
            f"{config.model} on {format_instances(config.instances)}, {format_bytes(config.device_memory)} a device, "
            f"{config.layout}; {len(items):,} requests of {title}; starting {config.num_devices} workers …",
            highlight=False,
        )
        with engine:
            folder.update_manifest(engine=engine_facts(engine))
            with LiveView(console, len(items), title=title) as view:
                rates = _Rate()

                def tick(progress: Progress) -> None:
                    view.update(
                        LiveSnapshot(
                            elapsed_s=progress.elapsed_s,
                            sent=progress.sent,
                            finished=progress.completed,
                            failed=progress.failed,
                            rejected=progress.rejected,
                            instances=progress.instances,
                            output_tokens_per_s=rates.update(progress.elapsed_s, progress.output_tokens),
                            transforming=progress.transforming,
                        )
                    )
                    folder.checkpoint(replayer.finished, replayer.samples, replayer.events)

                replayer = Replayer(engine, items, mode=mode, users=users, by_hand=by_hand, on_tick=tick)
                result = replayer.run()
            folder.update_manifest(**happenings(result))
            overhead = engine.controller_overhead_s()
        summary = summarize(
            result.records,
            result.samples,
            result.events,
            slo=limits,
            replay_mode=mode,
            duration_s=result.duration_s,
            partial=result.state != "complete",
            notes=notes_of(config),
        )
        summary["controller"] = {"overhead_per_step_s": overhead}
        folder.save(result.records, result.samples, result.events, summary)
        folder.finish(result.state, result.reason)
        from gyges.metrics.plots import write_plots

        label = f"{title} on {config.model}, {format_instances(config.instances)}"
        if engine.policy.transforms or by_hand:
            label += f", {scheduler}" + (" and by hand" if by_hand else "")
        if result.state != "complete":
            label += f" ({result.state} run)"

        plots = write_plots(folder.plots, result.records, result.samples, result.events, slo=limits, label=label)
    render_summary(console, summary, title=label)
    for line in told(result):
        console.print(line, highlight=False)
    if result.reason:
        console.print(f"[bold red]{result.state}[/]: {result.reason}", highlight=False)
    console.print(f"results: {folder.path}", soft_wrap=True, highlight=False)
    console.print(f"plots:   {folder.plots}", soft_wrap=True, highlight=False)
    return {
        **summary,
        "state": result.state,
        "reason": result.reason,
        "folder": str(folder.path),
        "plots": [str(path) for path in plots],
    }


def make_engine(config: EngineConfig, scheduler: str, by_hand: Sequence[HandCommand]) -> Engine:
    """An engine, not started, whose host can take the degrees that the commands lead to. UserError where it cannot."""
    check_devices(by_hand, config.num_devices)
    if by_hand and not config.tp_degrees and not make_policy(scheduler).transforms:
        config = config.with_(tp_degrees=degrees_of(by_hand))
    engine = Engine(config, scheduler)
    check_degrees(by_hand, engine.config)
    return engine


def told(result: ReplayResult) -> list[str]:
    """The same for people: only what went otherwise than wished."""
    lines = [
        f"[bold yellow]incident[/] at {incident.at_s:.1f} s: {escape(incident.error.splitlines()[0])}; "
        f"requests that started over: {incident.requeued}"
        for incident in result.incidents
    ]
    lines += [
        f"[bold yellow]{event.kind} failed[/] at {event.end_s:.1f} s, devices {_listed(event.devices)}: "
        f"{escape(event.error.splitlines()[0])}"
        for event in result.events
        if event.error
    ]
    for outcome in result.by_hand:
        if outcome.state != "done":
            lines.append(f"[bold yellow]{outcome.state}[/]: {outcome.command}: {escape(outcome.reason)}")
        elif outcome.attempts > 1:
            lines.append(f"{outcome.command}: begun at {outcome.start_s:.1f} s, before that {escape(outcome.reason)}")
    return lines


def _short(name: str) -> str:
    """A synthetic trace is named by its whole spec, which no title has room for; the manifest does."""
    return name if len(name) <= 40 else f"{name[:39]}…"


def _listed(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))


class _Rate:
    """Tokens per second over the last two seconds or so."""

    def __init__(self) -> None:
        self._points: list[tuple[float, int]] = []

    def update(self, now: float, tokens: int) -> float:
        self._points.append((now, tokens))
        while len(self._points) > 2 and now - self._points[0][0] > 2.0:
            self._points.pop(0)
        (t0, n0), (t1, n1) = self._points[0], self._points[-1]
        return (n1 - n0) / (t1 - t0) if t1 > t0 else 0.0

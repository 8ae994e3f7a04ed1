"""``gyges bench``: commands that run the engine and end in figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.engine_options import build_engine_config
from cli.option_groups import takes
from cli.output import JsonOption, emit, human_console
from cli.trace_options import build_trace_options
from gyges.config import EngineConfig
from workloads.options import TraceOptions

app = typer.Typer(
    name="bench",
    help="Run the engine and measure it.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


@app.command(
    epilog="Examples:  [cyan]gyges bench run[/cyan]   "
    "[cyan]gyges bench run --trace conv.csv --limit 200 --devices 4[/cyan]   "
    "[cyan]gyges bench run --model small --instances tp1,tp1,tp2 --device-memory 384MiB --slo ttft=10,tpot=0.1[/cyan]",
)
@takes(engine=build_engine_config, trace_options=build_trace_options)
def run(
    *,
    trace: Annotated[
        str,
        typer.Option("--trace", help="A file, hf:owner/name[:split], synthetic:SHAPE?..., or a name of `trace list`."),
    ] = "default",
    scheduler: Annotated[
        str, typer.Option("--scheduler", help="Where a request goes: llf (least load) or rr.")
    ] = "llf",
    mode: Annotated[
        str, typer.Option("--mode", help="open: at the trace's times; closed: --users at a time; asap: all at once.")
    ] = "open",
    users: Annotated[int, typer.Option("--users", min=1, help="Of a closed-loop replay.")] = 8,
    slo: Annotated[
        str | None, typer.Option("--slo", metavar="ttft=10,tpot=0.1", help="What counts as good, in seconds.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Result folder, new or empty. [default: runs/<time>-<trace>]")
    ] = None,
    json: JsonOption = False,
    engine: EngineConfig,
    trace_options: TraceOptions,
) -> None:
    """Replay a trace through a real engine: a table, plots, and a result folder."""
    from cli.bench_run import bench_run

    document = bench_run(
        human_console(json),
        config=engine,
        trace_spec=trace,
        trace_options=trace_options,
        scheduler=scheduler,
        mode=mode,
        users=users,
        slo=slo,
        out=out,
    )
    if json:
        emit(document)
    if document["state"] != "complete":
        raise typer.Exit(130 if document["state"] == "partial" else 1)


@app.command(
    epilog="Examples:  [cyan]gyges bench peers[/cyan]   "
    "[cyan]gyges bench peers --mixes mixed --skip generate_batch,start-up,all-reduce[/cyan]",
)
def peers(
    preset: Annotated[str, typer.Option("--preset", help="Model with seeded random weights, in fp32.")] = "small",
    mixes: Annotated[
        str, typer.Option("--mixes", metavar="NAME,...", help="Request mixes: mixed, decode-heavy.")
    ] = "mixed,decode-heavy",
    requests: Annotated[int, typer.Option("--requests", min=1, help="Of each mix, all at once.")] = 64,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Rounds of every peer in turn.")] = 2,
    skip: Annotated[
        str,
        typer.Option(
            "--skip", metavar="NAME,...", help="Of engine, generate, generate_batch (minutes), all-reduce, start-up."
        ),
    ] = "",
    seed: Annotated[int, typer.Option("--seed", help="Of lengths and prompts.")] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", help="Result folder, new or empty. [default: runs/<time>-bench-peers]")
    ] = None,
    json: JsonOption = False,
) -> None:
    """This engine beside transformers on the same weights and requests, and both beside the machine's floor."""
    from cli.bench_peers import names, peers_command
    from gyges.bench.run import PeersConfig

    config = PeersConfig(preset, names(mixes), requests, repeats, seed, names(skip))
    document = peers_command(human_console(json), config, out)
    if json:
        emit(document)

"""``gyges bench``: commands that run the engine and end in figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.engine_options import build_engine_config
from cli.option_groups import adapted, takes
from cli.output import JsonOption, emit, human_console
from cli.sim_options import Runner, build_runner
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
    "[cyan]gyges bench run --trace mixed-long --scheduler on-demand --device-memory 16MiB[/cyan]   "
    "[cyan]gyges bench run --model small --instances tp1,tp1,tp2 --device-memory 384MiB --slo ttft=10,tpot=0.1[/cyan]",
)
@takes(engine=build_engine_config, runner=build_runner, trace_options=build_trace_options)
def run(
    *,
    trace: Annotated[
        str,
        typer.Option("--trace", help="A file, hf:owner/name[:split], synthetic:SHAPE?..., or a name of `trace list`."),
    ] = "default",
    scheduler: Annotated[
        str,
        typer.Option(
            "--scheduler",
            help="static, static:tp2+tp1+tp1, gyges, gyges:paper, gyges+reserve=off, llf, rr, on-demand: see docs/scheduling.md.",
        ),
    ] = "static",
    transform: Annotated[
        list[str] | None,
        typer.Option(
            "--transform",
            metavar="'5s merge 0-3'",
            help="By hand, that long after the start; repeat it: '12s split 0-3 tp2,tp1,tp1'.",
        ),
    ] = None,
    mode: Annotated[
        str, typer.Option("--mode", help="open: at the trace's times; closed: --users at a time; asap: all at once.")
    ] = "open",
    users: Annotated[int, typer.Option("--users", min=1, help="Of a closed-loop replay.")] = 8,
    slo: Annotated[
        str | None, typer.Option("--slo", metavar="ttft=10,tpot=0.1", help="What counts as good, in seconds.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Result folder, new or empty. \\[default: runs/<time>-<trace>]")
    ] = None,
    json: JsonOption = False,
    engine: EngineConfig,
    runner: Runner,
    trace_options: TraceOptions,
) -> None:
    """Replay a trace through a real engine: a table, plots, and a result folder."""
    from cli.bench_run import bench_run

    document = bench_run(
        human_console(json),
        runner=runner,
        config=engine,
        trace_spec=trace,
        trace_options=trace_options,
        scheduler=scheduler,
        transform=transform or [],
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
        Path | None, typer.Option("--out", help="Result folder, new or empty. \\[default: runs/<time>-bench-peers]")
    ] = None,
    json: JsonOption = False,
) -> None:
    """This engine beside transformers on the same weights and requests, and both beside the machine's floor."""
    from cli.bench_peers import peers_command
    from cli.bench_tables import names
    from gyges.bench.run import PeersConfig

    config = PeersConfig(preset, names(mixes), requests, repeats, seed, names(skip))
    document = peers_command(human_console(json), config, out)
    if json:
        emit(document)


@app.command(
    epilog="Examples:  [cyan]gyges bench transform[/cyan]   [cyan]gyges bench transform --quick[/cyan]   "
    "[cyan]gyges bench transform --parts micro --models llama3-8b --degrees 2,4 --fills 90 --repeats 5[/cyan]",
)
def transform(
    models: Annotated[
        str | None,
        typer.Option("--models", metavar="NAME,...", help="Shapes of the micro-benchmark. \\[default: all]"),
    ] = None,
    layouts: Annotated[
        str | None, typer.Option("--layouts", metavar="NAME,...", help="KV layouts. \\[default: all]")
    ] = None,
    fills: Annotated[
        str | None, typer.Option("--fills", metavar="PERCENT,...", help="Of a TP1 KV cache. \\[default: 10,50,90]")
    ] = None,
    degrees: Annotated[str, typer.Option("--degrees", metavar="N,...", help="N x TP1 become TPN, and back.")] = "4",
    repeats: Annotated[
        int | None, typer.Option("--repeats", min=1, help="Of every combination, in turn. \\[default: 2]")
    ] = None,
    parts: Annotated[
        str,
        typer.Option("--parts", metavar="NAME,...", help="micro: no model; pause: real engine; padding: its price."),
    ] = "micro,pause,padding",
    pause_models: Annotated[
        str, typer.Option("--pause-models", metavar="NAME,...", help="Presets that serve requests: tiny, small.")
    ] = "tiny",
    device_memory: Annotated[
        str | None,
        typer.Option("--device-memory", metavar="SIZE", help="Of each device, part micro. \\[default: by the model]"),
    ] = None,
    page_size: Annotated[
        str | None,
        typer.Option("--page-size", metavar="SIZE", help="Part micro. \\[default: 2MiB; presets: the engine's choice]"),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="About a minute: two shapes, 90 % full, once; see that it works.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", help="Of prompts and of what is written into pages.")] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", help="Result folder, new or empty. \\[default: runs/<time>-bench-transform]")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Merges and splits taken apart: time, bytes, copies, memory and pauses, for every layout and toggle."""
    from cli.bench_tables import names
    from cli.bench_transform import degrees as read_degrees
    from cli.bench_transform import percentages, transform_command
    from gyges.bench.transform.run import QUICK, TransformConfig
    from gyges.config import parse_bytes

    given: dict[str, object] = {
        "models": names(models) if models else None,
        "layouts": names(layouts) if layouts else None,
        "fills": percentages(fills) if fills else None,
        "repeats": repeats,
        "device_memory": parse_bytes(device_memory) if device_memory else None,
        "page_bytes": parse_bytes(page_size) if page_size else None,
    }
    if layouts:
        given["pause_layouts"] = names(layouts)
    chosen = (QUICK if quick else {}) | {name: value for name, value in given.items() if value is not None}
    config = TransformConfig(
        degrees=read_degrees(degrees), parts=names(parts), pause_models=names(pause_models), seed=seed, **chosen
    )
    document = transform_command(human_console(json), config, out)
    if json:
        emit(document)


@app.command(
    epilog="Examples:  [cyan]gyges bench capacity[/cyan]   "
    "[cyan]gyges bench capacity --model small --device-memory 256MiB --devices 8[/cyan]   "
    "[cyan]gyges bench capacity --device-memory 16MiB --check[/cyan]",
)
@takes(engine=build_engine_config)
def capacity(
    *,
    check: Annotated[
        bool, typer.Option("--check", help="Try it: start an engine, merge step by step, send requests that just fit.")
    ] = False,
    json: JsonOption = False,
    engine: EngineConfig,
) -> None:
    """How long a context, and how many tokens in all, fit at TP1, TP2, TP4 ... of these devices."""
    from cli.bench_capacity import capacity_command

    document = capacity_command(human_console(json), engine, check=check)
    if json:
        emit(document)
    if document["check"] is not None and not all(c["completed"] and c["longer_rejected"] for c in document["check"]):
        raise typer.Exit(1)


@app.command(
    epilog="Examples:  [cyan]gyges bench ablation --dry-run[/cyan]   "
    "[cyan]gyges bench ablation --set scheduler=static,rr,llf,gyges:paper,gyges --cells on --trace paper-mix-tiny[/cyan]   "
    "[cyan]gyges bench ablation --set device-memory=16MiB,24MiB --cells on,off --repeats 3[/cyan]",
)
@takes(
    # The toggles of the grid decide these.
    engine=adapted(build_engine_config, without=("layout", "padding", "overlap"), device_memory="16MiB"),
    runner=build_runner,
    trace_options=build_trace_options,
)
def ablation(
    *,
    trace: Annotated[
        str, typer.Option("--trace", help="As of `bench run`; its own default takes seconds and has long requests.")
    ] = "ablation-tiny",
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="AXIS=VALUE,...",
            help="Every value of another axis; repeat it. Axes: scheduler, devices, device-memory, rate, long-share, seed ...",
        ),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Every combination of the toggles.")] = False,
    cells: Annotated[
        str | None,
        typer.Option(
            "--cells",
            metavar="KIND,...",
            help="Only these: on, off (everything), without, only (one). \\[default: all]",
        ),
    ] = None,
    repeats: Annotated[
        int | None, typer.Option("--repeats", min=1, help="Of every cell, in turn. \\[default: 2; of a simulation 1]")
    ] = None,
    mode: Annotated[
        str, typer.Option("--mode", help="open: at the trace's times; closed: --users at a time; asap: all at once.")
    ] = "open",
    users: Annotated[int, typer.Option("--users", min=1, help="Of a closed-loop replay.")] = 8,
    slo: Annotated[
        str, typer.Option("--slo", metavar="ttft=2,tpot=0.1", help="What counts as good, in seconds.")
    ] = "ttft=2,tpot=0.1",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the grid and how long it takes; run nothing.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Result folder; one of an ablation goes on. \\[default: runs/<time>-ablation]"),
    ] = None,
    json: JsonOption = False,
    engine: EngineConfig,
    runner: Runner,
    trace_options: TraceOptions,
) -> None:
    """What layout, padding, overlap and scheduler are worth: each on and off, by turns, on real engines or simulated."""
    from cli.bench_ablation import ablation_command, grid_of, work_maker
    from gyges.bench.ablation.run import AblationConfig

    grid = grid_of(sets or [], full=full, kinds=cells)
    times = repeats or (1 if runner.backend == "sim" else 2)
    config = AblationConfig(grid, engine, runner.backend, times, mode, users, slo, runner.simulation)
    document = ablation_command(
        human_console(json),
        config=config,
        make_work=work_maker(trace, trace_options, config),
        out=out,
        dry_run=dry_run,
    )
    if json:
        emit(document)
    if document["state"] in ("failed", "partial"):
        raise typer.Exit(130 if document["state"] == "partial" else 1)


@app.command(
    epilog="Examples:  [cyan]gyges bench compare runs/before runs/after[/cyan]   "
    "[cyan]gyges bench compare results/ablation/cells/all-off results/ablation/cells/all-on --metric ttft[/cyan]",
)
def compare(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="A B ...", help="Runs, cells, or ablations; all are compared with the first.", show_default=False
        ),
    ],
    any_trace: Annotated[
        bool,
        typer.Option("--any-trace", help="Even if they replayed different traces: requests of equal id and lengths."),
    ] = False,
    metric: Annotated[str, typer.Option("--metric", help="For the tables by request: ttft, tpot or e2e.")] = "e2e",
    out: Annotated[
        Path | None, typer.Option("--out", help="Result folder, new or empty. \\[default: runs/<time>-compare]")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Results that replayed the same requests, request by request: which got worse, and why."""
    from cli.bench_compare import compare_command

    document = compare_command(human_console(json), paths, any_trace=any_trace, metric=metric, out=out)
    if json:
        emit(document)


@app.command(
    epilog="Examples:  [cyan]gyges bench decisions[/cyan]   "
    "[cyan]gyges bench decisions --policies gyges,gyges:paper,gyges+cost=off --instances 8,1000[/cyan]",
)
def decisions(
    policies: Annotated[
        str | None,
        typer.Option("--policies", metavar="NAME,...", help="As for bench run --scheduler. \\[default: all there are]"),
    ] = None,
    instances: Annotated[
        str, typer.Option("--instances", metavar="N,...", help="Instances of the hosts to decide for.")
    ] = "8,64,1000",
    calls: Annotated[int, typer.Option("--calls", min=4, help="Timed calls, in each of two scenes.")] = 2000,
    seed: Annotated[int, typer.Option("--seed", help="Of the hosts' loads and of the requests.")] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", help="Result folder, new or empty. \\[default: runs/<time>-bench-decisions]")
    ] = None,
    json: JsonOption = False,
) -> None:
    """How long each scheduler takes to decide: where a request goes, and what to merge and split."""
    from cli.bench_decisions import decisions_command, sizes
    from cli.bench_tables import names
    from gyges.bench.decisions import DecisionsConfig, every_policy

    config = DecisionsConfig(
        policies=every_policy() if policies is None else names(policies),
        instances=sizes(instances),
        calls=calls,
        seed=seed,
    )
    document = decisions_command(human_console(json), config, out)
    if json:
        emit(document)

"""``gyges sim``: what no machine here can run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.option_groups import takes
from cli.output import JsonOption, emit, human_console
from cli.trace_options import build_trace_options
from gyges.errors import UserError
from workloads.options import TraceOptions

app = typer.Typer(
    name="sim", help="Simulate what no machine here can run; score it against what one did.", no_args_is_help=True
)


@app.command(
    epilog="Example:  [cyan]gyges sim run --trace conv.csv --hardware h20x4 --policy static:tp2 --slo ttft=10,tpot=0.1[/cyan]",
)
@takes(trace_options=build_trace_options)
def run(
    *,
    trace: Annotated[
        str,
        typer.Option("--trace", help="A file, hf:owner/name[:split], synthetic:SHAPE?..., or a name of `trace list`."),
    ] = "default",
    hardware: Annotated[
        str, typer.Option("--hardware", metavar="NAME[xN]|FILE", help="The devices of the host: h20x8, ./card.yaml.")
    ] = "h20x8",
    model: Annotated[
        str, typer.Option("--model", help="A hub id, or a folder with config.json; no weights.")
    ] = "Qwen/Qwen2.5-32B",
    policy: Annotated[
        str,
        typer.Option(
            "--policy",
            help="A scheduler: static, static:tp2+tp1+tp1, gyges, llf, restart ... (docs/scheduling.md). \\[default: what the "
            "system is meant for, or static]",
        ),
    ] = "",
    system: Annotated[
        str,
        typer.Option(
            "--system",
            metavar="NAME[+OPTION=VALUE]",
            help="How instances are served and changed: fixed, gyges, gyges:paper, gyges+overlap=off, kunserve, ... "
            "(gyges sim systems). \\[default: gyges if the policy merges and splits, else fixed]",
        ),
    ] = "",
    instances: Annotated[
        str | None,
        typer.Option(
            "--instances",
            metavar="tp2,tp1,...",
            help="TP degrees at first. \\[default: the lowest that fits, on all devices]",
        ),
    ] = None,
    tp_degrees: Annotated[
        str | None,
        typer.Option("--tp-degrees", metavar="1,2,4", help="That instances may take. \\[default: all that fit]"),
    ] = None,
    cost: Annotated[str, typer.Option("--cost", help="Step times: analytic, or tables (with --profile).")] = "analytic",
    profile: Annotated[
        Path | None, typer.Option("--profile", metavar="DIR", help="Operator times of the card, for --cost tables.")
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="auto (config.json's), bfloat16 or float32.")] = "auto",
    kv_tokens: Annotated[
        str | None,
        typer.Option(
            "--kv-tokens",
            metavar="N|tp1=N,tp2=N,...",
            help="Of KV cache: for each device, or of an instance by TP degree. \\[default: the memory that weights leave over]",
        ),
    ] = None,
    max_batch_tokens: Annotated[int, typer.Option("--max-batch-tokens", min=1, help="Of one step.")] = 2048,
    max_seqs: Annotated[int, typer.Option("--max-seqs", min=1, help="Sequences of one step.")] = 256,
    block_size: Annotated[
        int, typer.Option("--block-size", min=0, help="Tokens of a KV block. 0: what the system wants.")
    ] = 0,
    hosts: Annotated[int, typer.Option("--hosts", min=1, help="Of this hardware each, behind a router.")] = 1,
    router: Annotated[
        str, typer.Option("--router", help="Of several hosts: round-robin, least-loaded, length-aware.")
    ] = "least-loaded",
    fail: Annotated[
        list[str] | None,
        typer.Option(
            "--fail", metavar="120s:host3", help="A failure; 60s:host0.dev2:30s is back after 30 s. Repeat it."
        ),
    ] = None,
    slo: Annotated[
        str | None, typer.Option("--slo", metavar="ttft=10,tpot=0.1", help="What counts as good, in seconds.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Result folder, new or empty. \\[default: runs/<time>-sim-<trace>]")
    ] = None,
    json: JsonOption = False,
    trace_options: TraceOptions,
) -> None:
    """Replay a trace on simulated devices: the same table, plots and result folder as `bench run`."""
    from cli.engine_options import parse_degrees
    from cli.sim_run import sim_run
    from gyges.sim.setup import SimSetup, parse_kv_tokens

    setup = SimSetup(
        model=model,
        hardware=hardware,
        policy=policy,
        system=system,
        instances=instances,
        tp_degrees=parse_degrees(tp_degrees) if tp_degrees else (),
        cost=cost,
        profile=profile,
        dtype=dtype,
        kv_tokens=parse_kv_tokens(kv_tokens) if kv_tokens else None,
        max_batch_tokens=max_batch_tokens,
        max_seqs=max_seqs,
        block_size=block_size,
        hosts=hosts,
        router=router,
        failures=tuple(fail or ()),
    )
    document = sim_run(human_console(json), setup, trace, trace_options, slo, out)
    if json:
        emit(document)


@app.command(
    epilog="Example:  [cyan]gyges sim validate --requests requests.jsonl --meta meta.json --profile profile[/cyan]",
)
def validate(
    requests: Annotated[Path, typer.Option("--requests", metavar="FILE", help="Measured requests, JSON lines.")],
    meta: Annotated[Path, typer.Option("--meta", metavar="FILE", help="The run's model, vllm_version, engine_kwargs.")],
    profile: Annotated[
        Path, typer.Option("--profile", metavar="DIR", help="Operator times of the card, a CSV bundle.")
    ],
    hardware: Annotated[
        str | None,
        typer.Option("--hardware", metavar="NAME|FILE", help="The card. \\[default: what the profile names]"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Result folder, new or empty. \\[default: runs/<time>-sim-validate]")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Replay a measured vLLM run step by step, and print the signed errors of the simulation."""
    from cli.sim_validate import validate_command

    document = validate_command(human_console(json), requests, meta, profile, hardware, out)
    if json:
        emit(document)


@app.command(
    epilog="Examples:  [cyan]gyges sim agree --measure --out agreement[/cyan]   "
    "[cyan]gyges profile --out profile[/cyan]   [cyan]gyges bench run --devices 1 --time-scale 2 --out run[/cyan]   "
    "[cyan]gyges sim agree run --profile profile[/cyan]",
)
def agree(
    run: Annotated[Path | None, typer.Argument(metavar="[RUN]", help="Result folder of gyges bench run.")] = None,
    profile: Annotated[
        list[Path] | None,
        typer.Option(
            "--profile",
            metavar="DIR",
            help="What gyges profile wrote on that machine. Repeat it: of several the mean counts.",
        ),
    ] = None,
    transform_bench: Annotated[
        list[Path] | None,
        typer.Option(
            "--transform-bench",
            metavar="DIR",
            help="Of gyges bench transform: what the pauses of a run that merges and splits should be. Repeat it likewise.",
        ),
    ] = None,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Measure first, on a quiet machine: profiles, pauses and runs, by turns."),
    ] = False,
    rounds: Annotated[
        int | None,
        typer.Option(
            "--rounds",
            min=1,
            help="With --measure: of runs, each between two profiles; about three minutes each. \\[default: 3; with --quick 1]",
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="With --measure: see that it works.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Result folder, new or empty. \\[default: runs/<time>-sim-agree]")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Simulate a run of this project's engine from a profile of it, and print the signed errors of the simulation."""
    from cli.sim_agree import agree_command, measure_command

    if measure:
        if run or profile or transform_bench:
            raise UserError("--measure makes its own profiles and runs; leave out RUN, --profile and --transform-bench")
        document = measure_command(human_console(json), out, rounds=rounds or (1 if quick else 3), quick=quick)
    else:
        if not run or not profile:
            raise UserError("give a run and --profile, or --measure to make both")
        for given, option in ((quick, "--quick shortens"), (rounds, "--rounds repeats")):
            if given:
                raise UserError(f"{option} what --measure does; give both")
        document = agree_command(human_console(json), run, profile, transform_bench or [], out)
    if json:
        emit(document)


@app.command(epilog="Example:  [cyan]gyges sim systems --hardware h100x8 --model meta-llama/Llama-3.1-70B[/cyan]")
def systems(
    hardware: Annotated[
        str, typer.Option("--hardware", metavar="NAME[xN]|FILE", help="The devices of the host: h20x8, ./card.yaml.")
    ] = "h20x8",
    model: Annotated[
        str, typer.Option("--model", help="A hub id, or a folder with config.json; no weights.")
    ] = "Qwen/Qwen2.5-32B",
    papers: Annotated[
        bool, typer.Option("--papers", help="What their papers report, beside what the simulator gives (10 s or so).")
    ] = False,
    json: JsonOption = False,
) -> None:
    """List the ways of serving that can be simulated, with their sources, and what they come to on one host."""
    from cli.sim_systems import papers_command, systems_command

    console = human_console(json)
    document = papers_command(console) if papers else systems_command(console, hardware, model)
    if json:
        emit(document)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog="Examples:  [cyan]gyges sim sweep --trace conv.csv --set policy=static,gyges --set time-scale=1,0.5[/cyan]   "
    "[cyan]gyges sim sweep --set hardware=h20x8,h200x8 --jobs 2 --out sweep[/cyan]",
)
def sweep(
    context: typer.Context,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="OPTION=VALUE,...", help="Every value of an option of `sim run`; repeat it."),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", min=1, help="Cells at a time. \\[default: as many as there are cores]")
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray", metavar="ADDRESS", help="On a Ray cluster (extra ray): its address, auto, or local to start one."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Result folder; one of a sweep goes on. \\[default: runs/<time>-sim-sweep]"),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Every combination of some options of `sim run`, side by side on the cores. All other options are those of `sim run`."""
    from cli.sim_sweep import sweep_command
    from gyges.config import available_cores
    from gyges.sim.executors import Executor, LocalExecutor, RayExecutor

    if ray and jobs:
        raise UserError(
            "--jobs is for this machine; a Ray cluster takes as many cells as it has cores: give one of them"
        )
    executor: Executor = RayExecutor(ray) if ray else LocalExecutor(jobs or available_cores())
    document = sweep_command(human_console(json), sets or [], context.args, executor, out)
    if json:
        emit(document)
    if document["state"] in ("failed", "partial"):
        raise typer.Exit(130 if document["state"] == "partial" else 1)


@app.command(
    epilog="Examples:  [cyan]gyges sim bench --trace AzureLLMInferenceTrace_conv.csv --out bench[/cyan]   "
    "[cyan]gyges sim bench --no-scale[/cyan]   [cyan]gyges sim bench --requests 100000 --policy gyges[/cyan]",
)
def bench(
    trace: Annotated[
        str | None,
        typer.Option("--trace", help="The Azure conversation trace of 2023. \\[default: a generated one of its shape]"),
    ] = None,
    requests: Annotated[int, typer.Option("--requests", min=16, help="Of the largest run on the cluster.")] = 1_000_000,
    hosts: Annotated[int, typer.Option("--hosts", min=1, help="Of eight devices each.")] = 128,
    policy: Annotated[str, typer.Option("--policy", help="The scheduler of each host of the cluster.")] = "static",
    scale: Annotated[bool, typer.Option("--scale/--no-scale", help="The cluster too, which takes minutes.")] = True,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Of the trace on one host.")] = 3,
    seed: Annotated[int, typer.Option("--seed", help="Of arrivals and lengths.")] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", help="Result folder, new or empty. \\[default: runs/<time>-sim-bench]")
    ] = None,
    json: JsonOption = False,
) -> None:
    """How fast and how large simulations are, beside the goals: a trace on four devices, and a million requests on 1,024."""
    from cli.sim_bench import AZURE_LIKE, bench_command
    from gyges.sim.bench import SimBenchConfig
    from gyges.sim.setup import SimSetup

    cluster = SimSetup(hardware="h20x8", policy=policy, hosts=hosts)
    config = SimBenchConfig(cluster=cluster, requests=requests, repeats=repeats, seed=seed)
    document = bench_command(human_console(json), config, trace or AZURE_LIKE, out, scale=scale)
    if json:
        emit(document)

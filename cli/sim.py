"""``gyges sim``: what no machine here can run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.output import JsonOption, emit, human_console

app = typer.Typer(
    name="sim", help="Simulate what no machine here can run; score it against what one did.", no_args_is_help=True
)


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
    epilog="Example:  [cyan]gyges profile --out profile[/cyan]   "
    "[cyan]gyges bench run --devices 1 --rate-scale 0.5 --out run[/cyan]   [cyan]gyges sim agree run --profile profile[/cyan]",
)
def agree(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Result folder of gyges bench run, without merges and splits.")
    ],
    profile: Annotated[
        Path, typer.Option("--profile", metavar="DIR", help="What gyges profile wrote on that machine.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="Result folder, new or empty. \\[default: runs/<time>-sim-agree]")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Simulate a run of this project's engine from a profile of it, and print the signed errors of the simulation."""
    from cli.sim_agree import agree_command

    document = agree_command(human_console(json), run, profile, out)
    if json:
        emit(document)

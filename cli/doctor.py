"""``gyges doctor``: what this machine has, what it can do, and with ``--full`` whether it does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.output import JsonOption, emit, human_console


def doctor(
    *,
    full: Annotated[
        bool, typer.Option("--full", help="Try everything that exists here, in less than 8 minutes.")
    ] = False,
    only: Annotated[str, typer.Option("--only", metavar="NAME,...", help="Checks of --full to run.")] = "",
    skip: Annotated[str, typer.Option("--skip", metavar="NAME,...", help="Checks of --full to leave out.")] = "",
    minutes: Annotated[
        float | None, typer.Option("--minutes", min=0.1, help="For all checks together. \\[default: 7.6]")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Result folder of --full, new or empty. \\[default: runs/<time>-doctor]"),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Report what this machine has and can do; --full tests it: contracts, exactness, figures. Needs no GPU."""
    from cli.doctor_command import doctor_command

    document, fine = doctor_command(human_console(json), full=full, only=only, skip=skip, minutes=minutes, out=out)
    if json:
        emit(document)
    if not fine:
        raise typer.Exit(1)

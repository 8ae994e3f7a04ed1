"""``gyges figures``: the paper's figures, and some beyond it, from one command."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from cli.output import JsonOption, emit, human_console


def figures(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Which figures. \\[default: all; see --list]")
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="Say which figures there are, and make none.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder, new or of earlier figures. \\[default: runs/<time>-figures]")
    ] = None,
    traces: Annotated[
        Path | None,
        typer.Option(
            "--traces", metavar="DIR", help="Folder with published traces. \\[default: generated ones of their shape]"
        ),
    ] = None,
    measured: Annotated[
        Path | None,
        typer.Option(
            "--measured",
            metavar="DIR",
            help="What gyges bench transform wrote, shown beside. \\[default: results/transform, where that is]",
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Coarse grids and few requests: seconds, not minutes.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Make each figure as CSV, PNG and SVG, with a line "paper X, here Y, deviation Z, source" for each of its claims."""
    from cli.figures_command import figures_command, list_figures

    console = human_console(json)
    make = partial(figures_command, console, names or [], out, traces, measured, quick=quick)
    document = list_figures(console) if listed else make()
    if json:
        emit(document)

"""``gyges report``: one HTML file of a run or an ablation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.output import JsonOption, emit, human_console


def report(
    folder: Annotated[
        Path, typer.Argument(help="Result folder of `bench run` or `bench ablation`.", show_default=False)
    ],
    out: Annotated[Path | None, typer.Option("--out", help="The file. \\[default: FOLDER/report.html]")] = None,
    json: JsonOption = False,
) -> None:
    """One self-contained HTML file: tables, plots, manifest. Works from disk; fetches nothing."""
    from gyges.report.page import write_report

    path = write_report(folder, out)
    human_console(json).print(f"report: {path}", soft_wrap=True, highlight=False)
    if json:
        emit({"report": str(path)})

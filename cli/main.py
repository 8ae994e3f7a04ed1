"""The ``gyges`` command. Thin: commands parse, call the library, and show; heavy imports happen inside them."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from cli import bench, sim, trace
from cli.doctor import doctor
from cli.figures import figures
from cli.profile import profile
from cli.report import report
from gyges.errors import EngineError, UserError
from gyges.version import __version__

app = typer.Typer(
    name="gyges",
    help="LLM serving whose tensor parallelism changes while requests run: benchmark it, take it apart, measure it.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    epilog="Start with:  [cyan]gyges bench run[/cyan]   then  [cyan]gyges bench run --help[/cyan]",
)
app.add_typer(bench.app)
app.add_typer(trace.app)
app.add_typer(sim.app)
app.command()(report)
app.command()(figures)
app.command()(profile)
app.command()(doctor)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gyges {__version__}")
        raise typer.Exit()


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def run() -> None:
    """Entry point. Exit codes: 0 done, 1 the engine failed, 2 bad input, 130 interrupted."""
    try:
        app()
    except UserError as error:
        _complain(str(error))
        sys.exit(2)
    except EngineError as error:
        _complain(str(error))
        sys.exit(1)
    except KeyboardInterrupt:
        _complain("interrupted")
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read our output has gone (`| head`); keep the interpreter from complaining about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _complain(text: str) -> None:
    typer.secho("error: ", fg="red", bold=True, err=True, nl=False)
    typer.echo(text, err=True)


if __name__ == "__main__":
    run()

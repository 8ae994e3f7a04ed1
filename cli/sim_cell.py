"""One cell of ``gyges sim sweep``: a ``gyges sim run`` of its own, in whatever process it is given to."""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from pathlib import Path
from typing import Any

import typer

from cli.sim import app
from gyges.errors import EngineError, UserError

# What click raises for what it cannot parse. typer brings its own click or takes the installed one, by its version.
UsageError: Any = typer.BadParameter.__base__


def run_command() -> Any:
    """``gyges sim run`` as click has it."""
    return typer.main.get_command(app).commands["run"]  # type: ignore[attr-defined]


def run_cell(arguments: list[str]) -> tuple[str, dict[str, bytes]]:
    """Runs ``gyges sim run ARGUMENTS``. Why it could not, or "", and the files of its result folder by their names in it."""
    with tempfile.TemporaryDirectory(prefix="gyges-cell-") as temporary:
        folder = Path(temporary) / "run"
        own, sys.argv = sys.argv, ["gyges", "sim", "run", *arguments]
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                run_command().main([*arguments, "--out", str(folder)], prog_name="gyges sim run", standalone_mode=False)
        except (UserError, EngineError) as error:
            return str(error), {}
        except UsageError as error:
            return error.format_message(), {}
        finally:
            sys.argv = own
        files = (path for path in sorted(folder.rglob("*")) if path.is_file())
        return "", {str(path.relative_to(folder)): path.read_bytes() for path in files}

"""What every command shares: the ``--json`` option, and where text for people goes."""

from __future__ import annotations

import json as json_module
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; everything else on stderr.")]


def human_console(json: bool) -> Console:
    """stderr with ``--json``, else stdout."""
    from rich.console import Console

    return Console(stderr=json)


def emit(document: Mapping[str, Any]) -> None:
    """The one JSON document of a command, as the last line of stdout."""
    typer.echo(json_module.dumps(document, sort_keys=True, allow_nan=False))

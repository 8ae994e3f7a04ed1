"""What documents hold that can be tried: blocks of code, and commands of ours."""

from __future__ import annotations

import re

import typer.main

from cli.main import app


def blocks(text: str, language: str = "") -> list[str]:
    """The fenced blocks of one language; without one, those that name none."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.S | re.M)
    return [block for name, block in found if name == language]


def parse(arguments: list[str]) -> None:
    """Reads the words after ``gyges`` as the command would, and does not run it. Raises for what does not exist."""
    group, context = typer.main.get_command(app), None
    while hasattr(group, "commands"):
        context = group.context_class(group, parent=context, info_name=group.name)
        group, arguments = group.commands[arguments[0]], arguments[1:]
    group.make_context(group.name, arguments, parent=context)

"""README says only what is: its commands parse, its Python runs, its table is the committed one."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from readme_table import ablation_table, table, transform_table

from cli.main import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str = "") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.S | re.M)


def commands() -> list[str]:
    lines = [line.split("#")[0].strip() for block in blocks() for line in block.splitlines()]
    return [line for line in lines if line]


def test_there_are_commands():
    assert sum(c.startswith("make ") for c in commands()) == 2
    assert sum(".venv/bin/gyges" in c for c in commands()) >= 5


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_readme_is_one_that_exists(command):
    words = shlex.split(command)
    if words[0] == "make":
        makefile = (ROOT / "Makefile").read_text()
        assert all(re.search(rf"^{target}:", makefile, flags=re.M) for target in words[1:])
        return
    assert words[0] == ".venv/bin/gyges"
    group, arguments = typer.main.get_command(app), words[1:]
    context = None
    while hasattr(group, "commands"):
        context = group.context_class(group, parent=context, info_name=group.name)
        group, arguments = group.commands[arguments[0]], arguments[1:]
    group.make_context(group.name, arguments, parent=context)  # raises on an option that does not exist


@pytest.mark.engine
def test_the_python_of_the_readme_runs():
    (code,) = blocks("python")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"a \[\d+(, \d+){7}\] length\n", done.stdout)


def test_the_results_table_is_the_committed_one():
    assert "\n".join(table()) in README


def test_the_ablation_is_the_committed_one():
    assert "\n".join(ablation_table()) in README


def test_the_goals_of_transformations_are_the_committed_ones():
    assert "\n".join(transform_table()) in (ROOT / "docs" / "benchmarks.md").read_text()


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target

"""README says only what is: its commands parse, its Python runs, its table is the committed one."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import documents
import pytest
from readme_table import ablation_table, schedulers_table, table, transform_table

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def commands() -> list[str]:
    lines = [line.split("#")[0].strip() for block in documents.blocks(README) for line in block.splitlines()]
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
    documents.parse(words[1:])


@pytest.mark.engine
def test_the_python_of_the_readme_runs():
    (code,) = documents.blocks(README, "python")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"a \[\d+(, \d+){7}\] length\n", done.stdout)


def test_the_results_table_is_the_committed_one():
    assert "\n".join(table()) in README


def test_the_ablation_is_the_committed_one():
    assert "\n".join(ablation_table()) in README


def test_the_comparison_of_schedulers_is_the_committed_one():
    assert "\n".join(schedulers_table()) in (ROOT / "docs" / "ablation.md").read_text()


def test_the_goals_of_transformations_are_the_committed_ones():
    assert "\n".join(transform_table()) in (ROOT / "docs" / "benchmarks.md").read_text()


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target

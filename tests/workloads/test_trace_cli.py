"""``gyges trace``: what it prints, where, and how light it is to import."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.trace import app
from cli.trace_options import build_trace_options
from gyges.errors import UserError
from workloads import load_trace

Write = Callable[[str, str], Path]
runner = CliRunner(env={"COLUMNS": "80", "NO_COLOR": "1"})


def last_json(*arguments: str) -> dict[str, object]:
    result = runner.invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert len(lines) == 1  # the document, and nothing else on stdout
    document = json.loads(lines[0])
    assert isinstance(document, dict)
    return document


def test_list_names_homes_licences_and_formats_within_80_columns() -> None:
    result = runner.invoke(app, ["list"])
    assert result.exit_code == 0
    assert all(len(line) <= 80 for line in result.stdout.splitlines())
    for word in ("azure-2023-conv", "CC-BY-4.0", "mooncake", "default", "hf:lmsys/lmsys-chat-1m", "servegen"):
        assert word in result.stdout
    document = last_json("list")
    assert document["known"]["azure-2023-conv"]["requests"] == 19366  # type: ignore[index]
    assert "poisson" in document["shapes"]  # type: ignore[operator]


def test_stats_of_the_default_in_words_and_json(tmp_path: Path) -> None:
    result = runner.invoke(app, ["stats"])
    assert result.exit_code == 0
    assert "gap CV" in result.stdout
    assert all(len(line) <= 80 for line in result.stdout.splitlines())
    document = last_json("stats", "default", "--limit", "10", "--seed", "3", "--plot", str(tmp_path / "p.png"))
    assert document["stats"]["requests"] == 10  # type: ignore[index]
    assert document["trace"]["provenance"]["transforms"][0]["name"] == "limit"  # type: ignore[index]
    assert [Path(path).is_file() for path in document["plots"]] == [True, True]  # type: ignore[union-attr]


def test_convert_applies_options_and_says_what_was_repaired(write: Write, tmp_path: Path) -> None:
    source = write("b.csv", "Timestamp,Model,Request tokens,Response tokens\n5,a,400,18\n6,a,10,0\n7,b,100,2\n")
    out = tmp_path / "out.parquet"
    manifest = last_json("convert", str(source), str(out), "--repair", "--length-scale", "0.5", "--time-scale", "0.5")
    assert manifest["provenance"]["repairs"] == {"dropped_non_positive_length": 1}  # type: ignore[index]
    trace = load_trace(str(out))
    assert [(r.arrival_s, r.prompt_tokens, r.output_tokens) for r in trace.requests] == [(0, 200, 9), (1, 50, 1)]
    result = runner.invoke(app, ["convert", str(source), str(out), "--repair"])
    assert "repaired: 1 rows" in result.stdout


def test_user_errors_reach_the_caller() -> None:
    result = runner.invoke(app, ["stats", "no-such-trace"])
    assert isinstance(result.exception, UserError)
    assert "default" in str(result.exception)
    assert isinstance(runner.invoke(app, ["stats", "--columns", "x"]).exception, UserError)


@pytest.mark.parametrize("command", ["list", "stats", "convert"])
def test_every_help_has_examples(command: str) -> None:
    result = runner.invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert f"gyges trace {command}" in " ".join(result.stdout.split())


def test_options_are_built_as_the_library_wants_them() -> None:
    options = build_trace_options(columns="arrival=ts,prompt=in", dequantize=True, tick=3.0)
    assert options.columns == {"arrival": "ts", "prompt": "in"}
    assert options.tick_s == 3.0


def test_importing_the_commands_imports_nothing_heavy() -> None:
    heavy = ["numpy", "pandas", "pyarrow", "datasets", "transformers", "matplotlib", "torch", "huggingface_hub"]
    code = f"import sys, cli.trace, workloads; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"

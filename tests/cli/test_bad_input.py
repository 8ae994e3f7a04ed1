"""Every bad input ends in exit code 2 and a message that names the remedy, before any worker starts."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from command import gyges as _gyges


@pytest.fixture
def gyges(capfd, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return functools.partial(_gyges, capfd, monkeypatch)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model", "medium"], ["'medium'", "small", "tiny"]),
        (["--scheduler", "fastest"], ["unknown scheduler policy 'fastest'", "gyges", "static"]),
        (["--layout", "diagonal"], ["unknown KV layout 'diagonal'", "header-centric", "shard-pages", "token-first"]),
        (["--trace", "no-such-trace"], ["no-such-trace", "default"]),
        (["--mode", "sideways"], ["unknown replay mode 'sideways'", "asap", "closed", "open"]),
        (["--dtype", "float8"], ["unknown dtype 'float8'", "bfloat16", "float32"]),
        (["--instances", "tp1,two"], ["'two'", "tp1,tp1,tp2"]),
        (["--instances", "tp3"], ["TP degree 3 is impossible", "4 KV heads", "[1, 2, 4"]),
        (["--devices", "3", "--instances", "tp2"], ["2 devices", "3"]),
        (["--device-memory", "1MiB"], ["too small", "--device-memory"]),
        (["--device-memory", "lots"], ["'lots'", "256MiB"]),
        (["--page-size", "1000B"], ["page_bytes", "4096"]),
        (["--slo", "speed=3"], ["speed", "ttft"]),
        (["--tp-degrees", "1;2"], ["1;2", "1,2,4"]),
        (["--limit", "0"], ["limit", "at least 1"]),
        (["--model", "meta-llama/Llama-3.1-8B"], ["meta-llama/Llama-3.1-8B", "folder"]),
        (["--trace", "hf:nobody/nothing"], ["nobody/nothing"]),
    ],
)
def test_bad_options_name_what_exists(gyges, monkeypatch, tmp_path, options, said):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = gyges("bench", "run", *options)
    assert done.code == 2, done.err
    for words in said:
        assert words in done.err
    assert "Traceback" not in done.err
    assert not list(tmp_path.iterdir()), "nothing is written for a run that never started"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("2023-11-16 18:15:47.0000000,ten,44", ["trace.csv", "3", "ten"]),
        ("2023-11-16 18:15:47.0000000,0,44", ["trace.csv", "3", "0"]),
        ("2023-11-16 18:15:47.0000000,10,-4", ["trace.csv", "3", "-4"]),
        ("nan,10,44", ["trace.csv", "3", "nan"]),
        ("2023-11-16 18:15:45.0000000,10,44", ["trace.csv", "3", "--repair"]),
    ],
)
def test_a_bad_row_is_named_by_file_line_and_value(gyges, tmp_path, row, said):
    path = tmp_path / "trace.csv"
    path.write_text(f"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n{row}\n")
    done = gyges("bench", "run", "--trace", path)
    assert done.code == 2
    for words in said:
        assert words in done.err
    assert [p.name for p in tmp_path.iterdir()] == ["trace.csv"]


def test_a_result_folder_that_cannot_be_is_said_before_the_run(gyges, tmp_path):
    (tmp_path / "file").write_text("in the way")
    done = gyges("bench", "run", "--out", tmp_path / "file" / "run")
    assert done.code == 2
    assert "file" in done.err
    full = tmp_path / "old"
    full.mkdir()
    (full / "summary.json").write_text("{}")
    done = gyges("bench", "run", "--out", full)
    assert done.code == 2
    assert "old" in done.err


def test_a_full_disk_is_said_before_the_run(gyges, monkeypatch, tmp_path):
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 99, 1))
    done = gyges("bench", "run", "--out", tmp_path / "run")
    assert done.code == 2
    assert "run" in done.err


def test_help_of_every_command_has_an_example(gyges):
    for command in (["bench", "run"], ["trace", "list"], ["trace", "stats"], ["trace", "convert"]):
        shown = gyges(*command, "--help")
        assert shown.code == 0
        assert "Examples:" in shown.out
        assert "--json" in shown.out


def test_version_and_light_help():
    """Help must not import what it does not need: it answers in well under half a second."""
    probe = (
        "import sys; sys.argv = ['gyges', '--help']\n"
        "import cli.main\n"
        "try: cli.main.run()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numba', 'numpy', 'pandas', 'matplotlib', 'datasets', 'transformers', 'pyarrow', 'triton'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, env=os.environ, timeout=60)
    assert done.returncode == 0, done.stderr
    version = subprocess.run(
        [sys.executable, "-m", "cli.main", "--version"], capture_output=True, text=True, timeout=60
    )
    assert version.stdout.startswith("gyges 0.")

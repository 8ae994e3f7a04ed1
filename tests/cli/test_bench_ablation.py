"""``gyges bench ablation`` with real engines: two cells, from the command to the table."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from command import gyges as _gyges

import cli.main
from gyges.metrics.results import different_outputs, load_manifest

# A TP1 instance of this host holds 1,056 tokens: the second request is long.
ROWS = [(0.0, 60, 16), (0.1, 1400, 8), (0.2, 90, 16), (0.4, 40, 24)]
HOST = ["--devices", "2", "--device-memory", "12MiB", "--threads", "1"]


@pytest.fixture
def command(capfd, monkeypatch):
    return lambda *words: _gyges(capfd, monkeypatch, "bench", "ablation", *words)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    trace = tmp_path_factory.mktemp("trace") / "trace.jsonl"
    trace.write_text(
        "".join(json.dumps({"arrival_s": a, "prompt_tokens": p, "output_tokens": o}) + "\n" for a, p, o in ROWS)
    )
    return ["--trace", str(trace), *HOST, "--cells", "on,off", "--repeats", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, words):
    """Two engines have run here."""
    out = tmp_path_factory.mktemp("ablation") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["gyges", "bench", "ablation", *words, "--out", str(out)])
        try:
            cli.main.run()
        except SystemExit as error:
            assert not error.code, "the ablation failed"  # noqa: PT017
    return out


@pytest.mark.engine
def test_two_cells_end_in_tables_and_plots(folder):
    document = json.loads((folder / "ablation.json").read_text())
    on, off = document["cells"]
    assert (on["name"], off["name"], on["reference"]) == ("all on", "all off", "all off")
    assert on["figures"]["not_completed"]["value"] == 0
    assert on["figures"]["transformations"]["value"] >= 1
    assert on["figures"]["extra_bytes_max"]["value"] is not None
    assert document["workloads"][0]["long"] == 1
    manifest = load_manifest(folder)
    assert (manifest["kind"], manifest["state"], manifest["reason"]) == ("ablation", "complete", None)
    for name in ("ablation.md", "ablation.csv", "ablation.parquet", "ablation.tex", "plots/bars.png"):
        assert (folder / name).stat().st_size > 100


@pytest.mark.engine
def test_cells_compute_the_same_tokens(folder):
    runs = [folder / "cells" / name / "r1" for name in ("all-on", "all-off")]
    rejected = json.loads((runs[1] / "summary.json").read_text())["requests"]["rejected"]
    assert len(different_outputs(*runs)) == rejected


@pytest.mark.engine
def test_what_is_done_is_shown_and_not_run_again(folder, words, command):
    dry = command(*words, "--out", folder, "--dry-run", "--json").document
    assert ([cell["done"] for cell in dry["cells"]], dry["estimated_s"]) == ([1, 1], 0.0)
    before = {path: path.stat().st_mtime_ns for path in folder.glob("cells/*/*/*")}
    again = command(*words, "--out", folder, "--json")
    assert again.code == 0, again.err
    assert again.err.count("kept") == 2
    assert {path: path.stat().st_mtime_ns for path in folder.glob("cells/*/*/*")} == before
    assert again.document["folder"] == str(folder)
    assert again.document["report"] == str(folder / "report.html")
    assert f"report:  {folder / 'report.html'}" in again.err


def test_a_dry_run_shows_the_grid_and_starts_nothing(command, tmp_path):
    done = command("--dry-run", "--json", "--out", tmp_path / "never")
    assert done.code == 0
    assert len(done.document["cells"]) == 10
    assert done.document["estimated_s"] > 60
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--set", "colour=red"], "device-memory"),
        (["--set", "rate=1", "--set", "rate=2"], "twice"),
        (["--full", "--cells", "on"], "give one"),
        (["--cells", "half"], "without"),
        (["--backend", "abacus"], "engine"),
        (["--mode", "sideways"], "asap"),
        (["--set", "trace=no-such-trace"], "ablation-tiny"),
        (["--slo", "speed=3"], "ttft"),
        (["--layout", "token-first"], "No such option"),
    ],
)
def test_bad_input_ends_with_what_to_do_before_anything_starts(command, words, said):
    done = command(*words)
    assert done.code == 2
    assert said in done.err


def test_a_folder_of_something_else_is_left_alone(command, tmp_path, words):
    (tmp_path / "manifest.json").write_text(json.dumps({"kind": "run", "state": "complete"}))
    done = command(*words, "--out", tmp_path)
    assert (done.code, "not ablation" in done.err) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_a_simulated_ablation_starts_no_engine_and_says_what_it_is(command, tmp_path):
    words = ["--backend", "sim", "--trace", "ablation-tiny", "--limit", "30", "--cells", "on,off"]
    outcome = command(*words, "--out", str(tmp_path / "out"), "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.document["simulated"]
    assert outcome.document["repeats"] == 1
    on, off = outcome.document["cells"]
    assert on["figures"]["not_completed"]["value"] == off["figures"]["not_completed"]["value"] == 0
    assert on["figures"]["pause_max_s"]["value"] != off["figures"]["pause_max_s"]["value"]
    manifest = load_manifest(tmp_path / "out" / "cells" / "all-on" / "r1")
    assert manifest["simulation"]["system"] == "gyges"
    assert "engine" not in manifest

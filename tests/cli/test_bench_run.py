"""``gyges bench run`` from the command line to the result folder."""

import functools
import json
import os
import re
import signal
import sys
from pathlib import Path

import psutil
import pytest
from checkpoints import make_checkpoint

sys.path.insert(0, str(Path(__file__).parent))
from command import gyges as _gyges
from command import start

from gyges.metrics.results import load_manifest
from gyges.metrics.tables import read_requests, read_timeline

SHARED = Path(os.environ.get("GYGES_SHARED", Path(__file__).parents[3] / "shared"))
TINY = ["--model", "tiny", "--device-memory", "16MiB", "--threads", "1"]


@pytest.fixture
def gyges(capfd, monkeypatch):
    return functools.partial(_gyges, capfd, monkeypatch)


def write_trace(path: Path, rows: list[tuple[float, int, int]]) -> Path:
    path.write_text(
        "".join(json.dumps({"arrival_s": a, "prompt_tokens": p, "output_tokens": o}) + "\n" for a, p, o in rows)
    )
    return path


@pytest.mark.engine
def test_a_replay_ends_in_a_document_a_folder_and_plots(gyges, tmp_path):
    rows = [(0.05 * i, 20 + 40 * (i % 5), 4 + i % 7) for i in range(30)] + [(1.6, 12000, 8)]
    trace = write_trace(tmp_path / "trace.jsonl", rows)
    done = gyges("bench", "run", "--trace", trace, *TINY, "--instances", "tp1,tp2", "--slo", "ttft=60,tpot=10",
                 "--out", tmp_path / "run", "--json")  # fmt: skip
    assert done.code == 0, done.err
    doc = done.document
    requests = doc["requests"]
    assert requests["offered"] == 31 == requests["completed"] + requests["failed"] + requests["rejected"]
    assert requests["rejected"] == 1, "12,000 tokens do not fit 16 MiB"
    for figure in ("ttft_s", "tpot_s", "itl_s", "e2e_s", "queue_s"):
        assert set(doc[figure]) >= {"mean", "p50", "p90", "p99", "max"}
    assert set(doc["throughput"]) >= {"output_tokens_per_s", "total_tokens_per_s", "requests_per_s"}
    assert doc["goodput"]["fraction"] == pytest.approx(30 / 31)
    assert set(doc["replay"]) >= {"valid", "lag_p99_s"}
    assert doc["transformations"]["merges"] == doc["transformations"]["splits"] == 0

    folder = tmp_path / "run"
    assert doc["folder"] == str(folder)
    summary = json.loads((folder / "summary.json").read_text())
    assert {k: doc[k] for k in summary} == summary
    manifest = load_manifest(folder)
    assert manifest["state"] == "complete"
    assert manifest["trace_sha256"]
    assert manifest["configuration"]["engine"]["instances"] == [1, 2]
    records = read_requests(folder / "requests.parquet")
    by_id = {r.request_id: r for r in records}
    assert [by_id[f"r{i}"].output_tokens for i in range(30)] == [o for _, _, o in rows[:30]]
    assert [by_id[f"r{i}"].scheduled_s for i in range(31)] == [a for a, _, _ in rows]
    assert "12007" in by_id["r30"].reason
    assert all(r.sent_s >= r.scheduled_s for r in records)
    samples, events = read_timeline(folder / "timeline.parquet")
    assert {s.devices for s in samples} == {(0,), (1, 2)}
    assert events == []
    names = {Path(p).name for p in doc["plots"]}
    assert names == {f"{n}.{e}" for n in ("latency_cdf", "throughput_queue", "device_map") for e in ("png", "svg")}
    assert all(Path(p).stat().st_size > 1000 for p in doc["plots"])


@pytest.mark.engine
@pytest.mark.parametrize("mode", [["--mode", "closed", "--users", "2"], ["--mode", "asap"]])
def test_other_load_shapes(gyges, tmp_path, mode):
    trace = write_trace(tmp_path / "trace.jsonl", [(float(i), 30, 6) for i in range(8)])
    done = gyges("bench", "run", "--trace", trace, *TINY, "--devices", "1", *mode, "--out", tmp_path / "run", "--json")
    assert done.document["requests"]["completed"] == 8
    records = read_requests(tmp_path / "run" / "requests.parquet")
    ends = sorted((r.sent_s, r.end_s) for r in records)
    most = max(sum(s <= sent < e for s, e in ends) for sent, _ in ends)
    assert most == (2 if "closed" in mode else 8)
    assert max(r.sent_s for r in records) < 7, "the trace's gaps must not be replayed"


@pytest.mark.engine
def test_a_checkpoint_folder_serves(gyges, tmp_path):
    folder = make_checkpoint(tmp_path / "model", "qwen3", heads=4, kv_heads=2)
    trace = write_trace(tmp_path / "trace.jsonl", [(0.0, 30, 6)])
    done = gyges(
        "bench", "run", "--trace", trace, "--model", folder, "--devices", "1", "--out", tmp_path / "r", "--json"
    )
    assert done.document["requests"]["completed"] == 1, done.err


@pytest.mark.engine
@pytest.mark.parametrize(
    ("file", "options"),
    [
        ("AzureLLMInferenceTrace_conv.csv", ["--length-scale", "0.25"]),
        ("mooncake_conversation_trace.jsonl", ["--length-scale", "0.01", "--dequantize"]),
    ],
)
def test_real_traces_replay(gyges, tmp_path, file, options):
    path = SHARED / "traces" / file
    if not path.exists():
        pytest.skip(f"{path} is not here; set GYGES_SHARED to the folder that holds traces/")
    done = gyges("bench", "run", "--trace", path, *TINY, "--devices", "2", "--limit", "20", "--time-scale", "0.2",
                 *options, "--out", tmp_path / "run", "--json")  # fmt: skip
    assert done.code == 0, done.err
    assert done.document["requests"]["completed"] == 20
    manifest = load_manifest(tmp_path / "run")
    applied = [t["name"] for t in manifest["trace"]["provenance"]["transforms"]]
    assert {"length-scale", "time-scale", "limit"} <= {name.replace("_", "-") for name in applied}


def wait_for_line(process, words: str) -> str:
    for line in process.stderr:
        if words in line:
            return line
    raise AssertionError(f"{words!r} never came")


def start_long_run(tmp_path: Path):
    """A run that would take minutes, at the point where its first log line says that requests are under way."""
    trace = write_trace(tmp_path / "trace.jsonl", [(0.1 * i, 30, 40) for i in range(3000)])
    process = start(
        "bench", "run", "--trace", trace, *TINY, "--devices", "2", "--out", tmp_path / "run", "--json",
        process_group=0, env=os.environ | {"COLUMNS": "200"},
    )  # fmt: skip
    wait_for_line(process, "in flight")
    return process, psutil.Process(process.pid).children(recursive=True)


@pytest.mark.engine
def test_ctrl_c_keeps_what_there_is_and_leaves_no_process(tmp_path):
    process, workers = start_long_run(tmp_path)
    os.killpg(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert json.loads(out)["state"] == "partial"
    _, alive = psutil.wait_procs(workers, timeout=5)
    assert len(workers) == 2
    assert not alive
    assert load_manifest(tmp_path / "run")["state"] == "partial"
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["partial"] is True
    assert summary["requests"]["completed"] > 0
    assert len(read_requests(tmp_path / "run" / "requests.parquet")) == 3000


@pytest.mark.engine
def test_a_run_whose_workers_are_all_killed_ends_with_their_name_and_partial_results(tmp_path):
    process, workers = start_long_run(tmp_path)
    for victim in workers:
        victim.kill()
    out, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert re.search(r"worker [01] died \(signal 9\)", err)
    document = json.loads(out)
    assert document["state"] == "failed"
    assert document["requests"]["completed"] > 0
    assert document["requests"]["failed"] > 0
    counts = document["requests"]
    assert counts["completed"] + counts["failed"] + counts["rejected"] == 3000 == counts["offered"]
    manifest = load_manifest(tmp_path / "run")
    assert manifest["state"] == "failed"
    assert re.search("worker [01] died", manifest["reason"])
    assert not psutil.wait_procs(workers, timeout=5)[1]

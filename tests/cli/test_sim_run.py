"""gyges sim run: a folder like that of any run, marked as simulated, and errors for people."""

import json

import pytest
from command import gyges

from gyges.metrics.results import load_manifest
from gyges.metrics.tables import read_requests

SIM = ("sim", "run", "--trace", "synthetic:poisson?rate=4&prompt=300&output=20&duration=20")


def test_the_result_folder_is_that_of_a_run_and_says_that_it_was_simulated(tmp_path, capfd, monkeypatch):
    arguments = ("--hardware", "h20x4", "--policy", "static:tp2+tp1+tp1", "--out", tmp_path / "out", "--json")
    outcome = gyges(capfd, monkeypatch, *SIM, *arguments)
    assert outcome.code == 0
    manifest = load_manifest(tmp_path / "out")
    assert manifest["state"] == "complete"
    assert manifest["simulation"]["instances"] == [2, 1, 1]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["simulated"]
    assert outcome.document["ttft_s"] == summary["ttft_s"]
    records = read_requests(tmp_path / "out" / "requests.parquet")
    assert summary["requests"]["completed"] == summary["requests"]["offered"] == len(records) > 40
    assert all(len(record.token_times) == record.target_output_tokens for record in records)
    assert {record.instance for record in records} == {"i0", "i1", "i2"}
    assert {path.name for path in (tmp_path / "out" / "plots").glob("*.png")} == {
        "latency_cdf.png", "throughput_queue.png", "device_map.png",
    }  # fmt: skip
    capfd.readouterr()
    again = gyges(capfd, monkeypatch, *SIM, *arguments[:-3], "--out", tmp_path / "again", "--json")
    unlike = ("folder", "plots", "simulator")
    assert {k: v for k, v in again.document.items() if k not in unlike} == {
        k: v for k, v in outcome.document.items() if k not in unlike
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--policy", "gyges"), "choose one that keeps them: static"),
        (("--hardware", "h20x2", "--instances", "tp2,tp1"), "write --hardware h20x3"),
        (("--policy", "static:tp2", "--instances", "tp1"), "give one of them"),
        (("--max-batch-tokens", "100"), "lower the sequences to 100"),
        (("--kv-tokens", "10"), "less than one block of 16"),
        (("--hardware", "h21"), "h20"),
        (("--model", "meta-llama/Llama-3.1-70B"), "does not fit h20 at TP1"),
        (("--cost", "tables"), "--profile DIR"),
    ],
)
def test_what_does_not_go_together_is_refused_before_a_folder_is_made(tmp_path, capfd, monkeypatch, arguments, said):
    outcome = gyges(capfd, monkeypatch, *SIM, *arguments, "--out", tmp_path / "out")
    assert outcome.code == 2
    assert said in " ".join(outcome.err.split())
    assert not (tmp_path / "out").exists()


def test_a_request_longer_than_any_instance_is_rejected_and_stays_in_the_denominator(tmp_path, capfd, monkeypatch):
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,100,5\n1,5000,5\n")
    arguments = ("--trace", trace, "--hardware", "h20", "--instances", "tp1", "--kv-tokens", "1000")
    outcome = gyges(capfd, monkeypatch, "sim", "run", *arguments, "--out", tmp_path / "out", "--json")
    assert outcome.document["requests"] == {"offered": 2, "completed": 1, "rejected": 1, "failed": 0, "partial": 0}

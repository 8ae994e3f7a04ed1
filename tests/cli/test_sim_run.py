"""gyges sim run: a folder like that of any run, marked as simulated, and errors for people."""

import json

import pytest
from command import gyges

from gyges.metrics.results import load_manifest
from gyges.metrics.tables import read_requests, read_timeline

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
        (("--policy", "gyges", "--system", "fixed"), "take one that transforms (--system gyges)"),
        (("--policy", "gyges", "--hardware", "h20x1"), "take more devices"),
        (("--system", "gigas"), "gyges"),
        (("--tp-degrees", "1,x"), "cannot read --tp-degrees"),
        (("--hardware", "h20x2", "--instances", "tp2,tp1"), "write --hardware h20x3"),
        (("--policy", "static:tp2", "--instances", "tp1"), "give one of them"),
        (("--max-batch-tokens", "100"), "lower the sequences to 100"),
        (("--kv-tokens", "10"), "less than one block of 16"),
        (("--kv-tokens", "tp1=many"), "write 4000 or tp1=3750,tp2=41250"),
        (("--kv-tokens", "tp1=4000,tp2=9000", "--instances", "tp4"), "say what TP4 holds as well"),
        (("--hardware", "h21"), "h20"),
        (("--model", "meta-llama/Llama-3.1-70B", "--hardware", "h20x1"), "does not fit h20 at TP1"),
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


MIXED = ("--trace", "ablation-tiny")


def test_merges_and_splits_are_in_the_table_the_summary_and_the_timeline(tmp_path, capfd, monkeypatch):
    arguments = (
        *MIXED,
        "--model",
        "tiny",
        "--hardware",
        "cpu",
        "--kv-tokens",
        "1000",
        "--policy",
        "llf",
        "--tp-degrees",
        "1,2,4",
    )
    outcome = gyges(capfd, monkeypatch, "sim", "run", *arguments, "--out", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    assert "transformations" in outcome.out
    assert "15/15 ended (0 failed, 0 rejected)" in outcome.out
    assert load_manifest(tmp_path / "out")["simulation"]["system"] == "gyges"
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    changes = summary["transformations"]
    assert changes["merges"] > 0
    assert changes["splits"] > 0
    assert summary["simulator"]["transformation_parts_s"]["kv"] > 0
    assert summary["requests"]["completed"] == summary["requests"]["offered"]
    _, events = read_timeline(tmp_path / "out" / "timeline.parquet")
    assert len(events) == changes["merges"] + changes["splits"]
    assert all(event.end_s > event.start_s >= event.asked_s for event in events)


def test_a_benchmark_run_is_simulated_on_request(tmp_path, capfd, monkeypatch):
    arguments = ("bench", "run", "--backend", "sim", *MIXED, "--device-memory", "16MiB", "--scheduler", "gyges")
    outcome = gyges(capfd, monkeypatch, *arguments, "--out", tmp_path / "out", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.document["simulated"]
    assert outcome.document["transformations"]["merges"] > 0
    assert load_manifest(tmp_path / "out")["configuration"]["simulation"]["hardware"] == "cpu"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--backend", "sim", "--transform", "5s merge 0-1"), "asks a running engine"),
        (("--backend", "sim", "--mode", "closed"), "open or asap"),
        (("--backend", "abacus"), "sim"),
        (("--hardware", "h20"), "add --backend sim"),
    ],
)
def test_what_a_simulated_benchmark_run_cannot_do_is_said(tmp_path, capfd, monkeypatch, arguments, said):
    outcome = gyges(capfd, monkeypatch, "bench", "run", *MIXED, *arguments, "--out", tmp_path / "out")
    assert outcome.code == 2
    assert said in " ".join(outcome.err.split())
    assert not (tmp_path / "out").exists()


def test_a_cluster_serves_what_a_failed_host_leaves_and_says_so(tmp_path, capfd, monkeypatch):
    arguments = (
        "--hardware",
        "h20x2",
        "--hosts",
        "3",
        "--router",
        "round-robin",
        "--fail",
        "5s:host1",
        "--fail",
        "6s:host0.dev1:4s",
    )
    outcome = gyges(capfd, monkeypatch, *SIM, *arguments, "--out", tmp_path / "out", "--json")
    assert outcome.code == 0, outcome.err
    requests = outcome.document["requests"]
    assert requests["completed"] == requests["offered"] > 40
    simulation = load_manifest(tmp_path / "out")["simulation"]
    assert (simulation["hosts"], simulation["router"]) == (3, "round-robin")
    assert simulation["failures"] == ["5s:host1", "6s:host0.dev1:4s"]
    records = read_requests(tmp_path / "out" / "requests.parquet")
    assert {record.instance.partition(".")[0] for record in records} == {"h0", "h1", "h2"}
    assert not [r for r in records if r.scheduled_s > 5 and r.instance.startswith("h1.")]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--hosts", "2", "--router", "fastest"), "length-aware"),
        (("--hosts", "2", "--fail", "5s:host2"), "the last of 2 hosts is host1"),
        (("--fail", "soon"), "write for example 120s:host3"),
    ],
)
def test_what_a_cluster_cannot_be_is_refused(tmp_path, capfd, monkeypatch, arguments, said):
    outcome = gyges(capfd, monkeypatch, *SIM, *arguments, "--out", tmp_path / "out")
    assert outcome.code == 2
    assert said in " ".join(outcome.err.split())
    assert not (tmp_path / "out").exists()

"""gyges profile and gyges sim agree: a bundle of the running engine, loaded as any other, and a run simulated from it."""

import json
import shutil
import sys

import pytest
from command import gyges

import cli.main
from gyges.sim.cost.base import StepShape
from gyges.sim.cost.bundle import read_bundle
from gyges.sim.cost.tables import TableCost
from gyges.sim.models import sim_model

pytestmark = pytest.mark.engine
SMALL = ("--max-batch-tokens", "64", "--max-seqs", "8", "--threads", "1")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("profile") / "bundle"
    arguments = ["profile", "--degrees", "1,2", "--quick", "--repeats", "1", *SMALL, "--out", str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["gyges", *arguments])
        cli.main.app(arguments, standalone_mode=False)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    trace = "synthetic:constant?rate=4&prompt=40&output=8&duration=1"
    arguments = ["bench", "run", "--devices", "1", *SMALL, "--trace", trace, "--out", str(folder)]
    cli.main.app(arguments, standalone_mode=False)
    return folder


def test_a_profile_prices_steps_at_every_degree_it_was_asked_for(bundle):
    read = read_bundle(bundle)
    assert read.degrees == [1, 2]
    assert not read.notes
    for degree in read.degrees:
        cost = TableCost(read, sim_model("tiny").geometry, degree)
        decode = cost.step_s(StepShape(4, 4 * 64, 64, (), 4))
        assert 1e-5 < decode < 1.0
        assert cost.step_s(StepShape(prefills=((64, 0),))) > 0
        assert cost.coverage()["extrapolated_share"] == 0


def test_only_an_instance_of_several_workers_has_all_reduces(bundle):
    read = read_bundle(bundle)
    assert "all_reduce" not in read.tables(1).dense
    assert min(read.tables(2).dense["all_reduce"].ys) > 0


def test_a_run_is_simulated_request_by_request_from_the_profile(bundle, run, tmp_path, capfd, monkeypatch):
    outcome = gyges(capfd, monkeypatch, "sim", "agree", run, "--profile", bundle, "--out", tmp_path / "a", "--json")
    assert outcome.code == 0, outcome.err
    document = outcome.document
    assert (document["requests"], document["left_out"]) == (4, 0)
    assert document["latencies"]["e2e_s"]["mean"]["simulated"] > 0
    assert set(document["goals"]) == {"throughput", "tpot_s", "ttft_s"}
    assert json.loads((tmp_path / "a" / "agree.json").read_text())["latencies"] == document["latencies"]


def test_of_several_profiles_the_mean_counts(bundle, run, tmp_path, capfd, monkeypatch):
    """The same one twice is the same; beside one whose operators take three times as long, the run takes longer."""
    slower = tmp_path / "slower"
    shutil.copytree(bundle, slower)
    for table in ("dense", "per_sequence", "attention"):
        path = slower / "tp1" / f"{table}.csv"
        header, *rows = path.read_text().splitlines()
        rows = [row.rpartition(",") for row in rows]
        path.write_text("\n".join([header, *(f"{key},{3 * float(time)}" for key, _, time in rows)]) + "\n")

    def simulated(*profiles):
        arguments = [word for profile in profiles for word in ("--profile", profile)]
        outcome = gyges(
            capfd, monkeypatch, "sim", "agree", run, *arguments, "--out", tmp_path / str(len(done)), "--json"
        )
        assert outcome.code == 0, outcome.err
        done.append(outcome.document["latencies"]["tpot_s"]["mean"]["simulated"])
        return done[-1]

    done = []
    assert simulated(bundle) == simulated(bundle, bundle)
    # Not twice as long: where steps take longer, more requests are served at a time.
    assert simulated(bundle) < simulated(bundle, slower) < simulated(slower)


def test_a_run_that_merges_is_scored_by_its_pauses(bundle, tmp_path, capfd, monkeypatch):
    run, bench = tmp_path / "run", tmp_path / "bench"
    trace = "synthetic:constant?rate=8&prompt=40&output=400&duration=1"
    devices = ("--devices", "2", "--transform", "0.8s merge 0-1", *SMALL)
    outcome = gyges(capfd, monkeypatch, "bench", "run", "--trace", trace, *devices, "--out", run)
    assert outcome.code == 0, outcome.err
    outcome = gyges(capfd, monkeypatch, "sim", "agree", run, "--profile", bundle)
    assert (outcome.code, "--transform-bench" in outcome.err) == (2, True)
    pauses = {"kind": "merge", "overlap": True, "layout": "shard-pages", "padding": True, "pause_s": {"median": 5.0}}
    moved = {name: {"median": 1000} for name in ("kv_peer_bytes", "weights_peer_bytes")}
    bench.mkdir()
    models = [{"model": "tiny", "degree": 2, "cells": [pauses | moved]}]
    (bench / "transform.json").write_text(json.dumps({"pause": {"models": models}}))
    arguments = ("--profile", bundle, "--transform-bench", bench, "--out", tmp_path / "a", "--json")
    outcome = gyges(capfd, monkeypatch, "sim", "agree", run, *arguments)
    assert outcome.code == 0, outcome.err
    (merge,) = outcome.document["transformations"]
    assert merge["pause_s"]["measured"] > 0
    assert 5.0 < merge["pause_s"]["simulated"] < 6.0  # five seconds were measured, and an ordinary step comes on top
    assert not outcome.document["goals"]["merge"]["met"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--measure", "--profile", "x"), "makes its own profiles and runs"),
        ((), "give a run and --profile"),
        (("run", "--profile", "x", "--quick"), "--quick shortens what --measure does"),
        (("run", "--profile", "x", "--rounds", "2"), "--rounds repeats what --measure does"),
        (("--measure", "--rounds", "0"), "--rounds"),
    ],
)
def test_measuring_and_comparing_are_told_apart(capfd, monkeypatch, arguments, said):
    outcome = gyges(capfd, monkeypatch, "sim", "agree", *arguments)
    assert outcome.code == 2
    assert said in outcome.err


def test_what_cannot_be_compared_is_refused(bundle, run, tmp_path, capfd, monkeypatch):
    outcome = gyges(capfd, monkeypatch, "sim", "agree", bundle, "--profile", bundle)
    assert outcome.code == 2
    other = tmp_path / "other"
    shutil.copytree(run, other)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["configuration"]["engine"]["instances"] = [4]
    (other / "manifest.json").write_text(json.dumps(manifest))
    outcome = gyges(capfd, monkeypatch, "sim", "agree", other, "--profile", bundle)
    assert outcome.code == 2
    assert "not TP4" in outcome.err


def test_a_profile_never_overwrites(bundle, capfd, monkeypatch):
    outcome = gyges(capfd, monkeypatch, "profile", "--out", bundle)
    assert outcome.code == 2
    assert "is not empty" in outcome.err
    assert gyges(capfd, monkeypatch, "profile", "--degrees", "one").code == 2

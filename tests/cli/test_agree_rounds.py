"""gyges sim agree --measure: what is measured, in which order, and what each run is held against."""

import json

import pytest
from bundles import META, make_bundle
from command import gyges

import cli.sim_agree
import cli.sim_agree_measure

SPEEDS = (1.0, 1.5, 1.2)  # of the machine: what a profile's times are multiplied by, one after the other


def both(measured, simulated):
    return {"measured": measured, "simulated": simulated, "error": simulated / measured - 1}


def document(run, simulated):
    """Of agree: every figure was measured as 1 s, or 1 token/s."""
    about = {"run": run, "model": "tiny", "instances": [1], "coverage": {}, "notes": ["said once"]}
    if run != "static":
        pauses = {kind: {**both(1.0, simulated), "count": 2} for kind in ("merge", "split")}
        goals = {kind: {"limit": 0.2, "error": simulated - 1, "met": False} for kind in pauses}
        return {**about, "pauses": pauses, "goals": goals}
    names = ("throughput", "ttft_s", "tpot_s")
    goals = {name: {"limit": 0.05, "error": simulated - 1, "met": False} for name in names}
    latencies = {name: {"mean": both(1.0, simulated)} for name in names[1:]}
    return {**about, "latencies": latencies, "throughput": both(1.0, simulated), "goals": goals}


@pytest.fixture
def steps(monkeypatch, tmp_path):
    """Everything that was measured, in order, and what each run was then compared with: names in the result folder."""
    measured, compared = [], []

    def profile(config, folder, progress):
        measured.append(folder.name)
        make_bundle(folder, meta=META + "dtype: float32\n", slower=SPEEDS[int(folder.name[-1])])

    def measure_pause(config, progress):
        measured.append("pauses")
        return {"model": "tiny", "degree": 2, "cells": []}

    def bench_run(console, *, out, **_):
        measured.append(f"{out.parent.name}/{out.name}")
        return {"state": "complete", "reason": ""}

    def agree(run, profiles, transforms):
        compared.append((f"{run.parent.name}/{run.name}", *(path.name for path in (*profiles, *transforms))))
        assert all((path / "transform.json").is_file() for path in transforms)
        return document(run.name, {"round-1": 1.3, "round-2": 0.9}[run.parent.name])

    monkeypatch.setattr(cli.sim_agree_measure, "profile", profile)
    monkeypatch.setattr(cli.sim_agree_measure, "measure_pause", measure_pause)
    monkeypatch.setattr(cli.sim_agree_measure, "bench_run", bench_run)
    monkeypatch.setattr(cli.sim_agree, "agree", agree)
    monkeypatch.setenv("COLUMNS", "80")
    return measured, compared


RUNS = ("static", "stopping", "overlapping")


def test_every_run_lies_between_two_profiles_and_is_simulated_from_both(steps, tmp_path, capfd, monkeypatch):
    arguments = ("--measure", "--rounds", "2", "--out", tmp_path / "a", "--json")
    outcome = gyges(capfd, monkeypatch, "sim", "agree", *arguments)
    assert outcome.code == 0, outcome.err
    measured, compared = steps
    rounds = [[f"round-{number}/{run}" for run in RUNS] for number in (1, 2)]
    assert measured == [
        "profile-0",
        "pauses",
        *rounds[0],
        "profile-1",
        "pauses",
        *rounds[1],
        "profile-2",
        "pauses",
    ]
    between = [("profile-0", "profile-1", "transform-0", "transform-1")] * 3
    between += [("profile-1", "profile-2", "transform-1", "transform-2")] * 3
    assert compared == [(run, *those) for run, those in zip(rounds[0] + rounds[1], between, strict=True)]
    kept = json.loads((tmp_path / "a" / "agree.json").read_text())
    assert [set(runs) for runs in kept["rounds"]] == [set(RUNS)] * 2
    tpot = kept["summary"]["figures"]["tpot_s"]
    assert (tpot["error"], tpot["met"]) == (pytest.approx(0.1), False)
    assert tpot["rounds"] == pytest.approx([0.3, -0.1])
    assert kept["summary"]["drift"]["tp1"] == pytest.approx([1.5, 0.8])


def test_the_table_of_rounds_fits_and_says_what_was_met(steps, tmp_path, capfd, monkeypatch):
    outcome = gyges(capfd, monkeypatch, "sim", "agree", "--measure", "--rounds", "2", "--out", tmp_path / "a")
    assert outcome.code == 0, outcome.err
    lines = [line.rstrip() for line in outcome.out.splitlines()]
    assert max(map(len, lines[:-1])) <= 80  # the last one is the folder
    (pause,) = (line.split() for line in lines if "pause of splits, overlapping" in line)
    assert pause[-5:] == ["20%", "+10.0%", "yes", "+30.0%", "-10.0%"]
    assert any("TP1 +50.0%, -20.0%" in line for line in lines)
    assert sum("said once" in line for line in lines) == 1


@pytest.mark.parametrize(("arguments", "profiles"), [((), 4), (("--quick",), 2), (("--quick", "--rounds", "2"), 3)])
def test_three_rounds_are_the_default_and_one_is_enough_to_see_that_it_works(
    steps, tmp_path, capfd, monkeypatch, arguments, profiles
):
    monkeypatch.setattr(cli.sim_agree, "agree", lambda run, *_: document(run.name, 1.0))
    monkeypatch.setattr(f"{__name__}.SPEEDS", (1.0,) * 4)
    outcome = gyges(capfd, monkeypatch, "sim", "agree", "--measure", *arguments, "--out", tmp_path / "a", "--json")
    assert outcome.code == 0, outcome.err
    assert sum(name.startswith("profile-") for name in steps[0]) == profiles


@pytest.mark.parametrize(("state", "code"), [("partial", 130), ("failed", 1)])
def test_a_replay_that_did_not_end_ends_the_rounds_and_leaves_those_before_it(
    steps, tmp_path, capfd, monkeypatch, state, code
):
    fine = cli.sim_agree_measure.bench_run

    def bench_run(console, *, out, **rest):
        outcome = fine(console, out=out, **rest)
        return {"state": state, "reason": "a worker died"} if out.parent.name == "round-2" else outcome

    monkeypatch.setattr(cli.sim_agree_measure, "bench_run", bench_run)
    outcome = gyges(capfd, monkeypatch, "sim", "agree", "--measure", "--rounds", "2", "--out", tmp_path / "a")
    assert outcome.code == code
    assert steps[0][-1] == "round-2/static"
    assert len(json.loads((tmp_path / "a" / "agree.json").read_text())["rounds"]) == 1
    assert json.loads((tmp_path / "a" / "manifest.json").read_text())["state"] == state

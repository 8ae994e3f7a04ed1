"""gyges sim bench: every figure beside its goal, kept with the machine that gave it."""

import json

import pytest
from command import gyges

from gyges.metrics.results import load_manifest
from gyges.sim.bench import fit, goals

TRACE = "synthetic:poisson?rate=4&prompt=300&output=20&duration=5"


def test_what_is_measured_is_kept_beside_the_goals(tmp_path, capfd, monkeypatch):
    arguments = ("--trace", TRACE, "--repeats", "1", "--requests", "64", "--hosts", "2", "--policy", "gyges")
    monkeypatch.setattr("gyges.sim.bench._alone", lambda function, *given: function(*given))  # processes take seconds
    monkeypatch.setattr("cli.sim_bench._command_s", lambda config, trace: 4.0)
    outcome = gyges(capfd, monkeypatch, "sim", "bench", *arguments, "--out", tmp_path / "b", "--json")
    assert outcome.code == 0, outcome.err
    document = json.loads((tmp_path / "b" / "bench.json").read_text())
    assert document["loop"]["completed"] == document["loop"]["requests"] > 10
    runs = document["scale"]["runs"]
    assert [run["requests"] for run in runs] == [4, 8, 16, 32, 64]
    assert all(run["completed"] == run["requests"] and run["devices"] == 16 for run in runs)
    assert all(run["wall_s"] >= run["loop_s"] > 0 and run["peak_bytes"] > 1e6 for run in runs)
    reached = {goal["name"]: goal["reached"] for goal in document["goals"]}
    assert reached["whole command of the trace"] == 4.0
    assert reached["largest run, in all"] == runs[-1]["wall_s"]
    assert (tmp_path / "b" / "plots" / "scaling.png").is_file()
    manifest = load_manifest(tmp_path / "b")
    assert (manifest["kind"], manifest["state"]) == ("sim-bench", "complete")


@pytest.mark.parametrize("power", [0.5, 1.0, 1.7])
def test_the_fit_finds_the_exponent_of_a_power_law(power):
    found = fit([(n, 3e-5 * n**power) for n in (1000, 2000, 4000, 8000)])
    assert found["exponent"] == pytest.approx(power)
    assert (found["r2"] == pytest.approx(1.0)) == (power == 1.0)


def test_a_goal_that_was_not_measured_is_neither_met_nor_missed():
    rows = goals({"loop": {"loop_s": [3.0, 1.0]}, "command": {"wall_s": [9.0]}, "scale": None})
    assert [row["met"] for row in rows] == [True, False, None, None, None]


def test_the_whole_command_is_timed_as_it_is(monkeypatch):
    from cli.sim_bench import _command_s
    from gyges.sim.bench import SimBenchConfig

    called = []
    monkeypatch.setattr(
        "subprocess.run", lambda command, **more: called.append(command) or type("Done", (), {"returncode": 0})
    )
    assert _command_s(SimBenchConfig(), "conv.csv") >= 0
    assert called[0][3:7] == ["sim", "run", "--trace", "conv.csv"]

"""--full: every check in a process of its own, within its deadline and one budget, what was found kept as it comes."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from doctor.machines import bare, with_gpus

from gyges.bench.child import child_environment
from gyges.doctor import full
from gyges.doctor.checks import Check, cpu_devices, gpus, lacks, load, suite
from gyges.doctor.full import choose, run_checks
from gyges.errors import UnknownNameError

# -- what the checks' processes run: they import this file -------------------------------------------------------------


def fine():
    return {"summary": "all is well", "figures": {"x": 1.5}, "goals": []}


def broken():
    raise AssertionError("page 3 lost its values")


def lacking():
    from gyges.errors import UserError

    raise UserError("needs numpy below 2.4: pip install 'numpy<2.4'")


def dies():
    import os

    os._exit(7)


def hangs():
    threading.Event().wait()


def check(name: str, deadline_s: float = 30.0, cannot=lambda facts: "") -> Check:
    return Check(name, f"title of {name}", f"doctor.test_full:{name}", deadline_s, cannot)


@pytest.fixture
def importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))


def test_each_check_ends_on_its_own_and_what_was_found_is_kept_after_each(importable):
    kept, said = [], []
    checks = [
        check("fine"),
        check("broken"),
        check("dies"),
        check("hangs", 1.0),
        check("fine", cannot=lambda f: "needs a GPU"),
    ]
    outcomes = run_checks(checks, bare(), said.append, kept.append)
    assert [o.state for o in outcomes] == ["passed", "failed", "failed", "failed", "cannot"]
    assert (outcomes[0].summary, outcomes[0].figures) == ("all is well", {"x": 1.5})
    assert outcomes[1].why == "AssertionError: page 3 lost its values"
    assert "exit code 7" in outcomes[2].why
    assert "did not finish within 1 s" in outcomes[3].why
    assert outcomes[4].why == "needs a GPU"
    assert [len(document["checks"]) for document in kept] == [0, 1, 2, 3, 4, 5]
    assert [document["complete"] for document in kept] == [False] * 5 + [True]
    assert kept[-1]["counts"] == {"passed": 1, "failed": 3, "cannot": 1, "no time": 0}
    assert any("page 3" in line for line in said)


def test_what_the_machine_lacks_is_not_a_failure(importable):
    (outcome,) = run_checks([check("lacking")], bare(), lambda text: None, lambda document: None)
    assert outcome.state == "cannot"
    assert "pip install 'numpy<2.4'" in outcome.why


def test_no_check_begins_when_the_budget_is_used_up():
    now = iter([0.0, 10.0, 458.0])
    run = []
    outcomes = run_checks(
        [check("fine", cannot=lambda f: run.append(1) or "cannot"), check("fine")], bare(), lambda text: None,
        lambda document: None, budget_s=460.0, clock=lambda: next(now),
    )  # fmt: skip
    assert [o.state for o in outcomes] == ["cannot", "no time"]


def test_a_check_that_the_budget_cut_short_has_not_failed(importable, monkeypatch):
    monkeypatch.setattr(full, "_LEAST_S", 0.1)
    (outcome,) = run_checks([check("hangs", 60.0)], bare(), lambda text: None, lambda document: None, budget_s=1.0)
    assert outcome.state == "no time"


def test_checks_are_chosen_by_name_and_run_in_one_order():
    every = [each.name for each in choose()]
    assert every == list(load().names())
    assert [each.name for each in choose(only=[every[3], every[0]])] == [every[0], every[3]]
    assert [each.name for each in choose(skip=every[1:])] == every[:1]
    with pytest.raises(UnknownNameError, match="pool-cpu"):
        choose(only=["pool-gpu"])


def test_every_check_names_a_function_that_exists():
    from importlib import import_module

    for each in choose():
        module, name = each.target.split(":")
        assert callable(getattr(import_module(module), name)), each.target
        assert 0 < each.deadline_s <= 180


def test_gpu_checks_say_why_they_cannot_run_here():
    checks = [each for each in choose() if each.name.endswith("cuda")]
    assert {each.cannot(bare()) for each in checks} == {"needs 1 GPU, 0 visible", "needs 2 GPUs, 0 visible"}
    assert not any(each.cannot(with_gpus(2)) for each in checks)
    (triton,) = choose(only=["kernels-triton"])
    assert (triton.cannot(bare()), "there is a GPU" in triton.cannot(with_gpus(1))) == ("", True)
    assert gpus(2)(with_gpus(1)) == "needs 2 GPUs, 1 visible"
    assert gpus(1, "cuda-bindings")(with_gpus(1, "cuda-bindings")) == "needs cuda-bindings"
    assert cpu_devices("numba")(bare("numba")) == "needs numba"
    assert lacks("datasets")(bare()) == ""


def test_tests_are_counted_and_the_first_failure_is_told(tmp_path):
    (tmp_path / "test_some.py").write_text(
        "import pytest\ndef test_a(): pass\ndef test_b(): pass\n@pytest.mark.skip\ndef test_c(): pass\n"
    )
    (tmp_path / "test_bad.py").write_text("def test_d(): assert 1 == 2, 'the sums differ'\n")
    code = (
        "import json, sys; from pathlib import Path; from gyges.doctor.checks.suite import run\n"
        "print(json.dumps(run('test_some.py', root=Path.cwd())['figures']))\n"
        "run('test_bad.py', root=Path.cwd())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path, env=child_environment(1)
    )
    assert '{"passed": 2, "failed": 0, "skipped": 1}' in done.stdout, done.stderr
    assert done.returncode != 0
    assert "AssertionError: pytest ended with TESTS_FAILED" in done.stderr
    assert "the sums differ" in done.stderr
    assert suite.can_run_tests() == ""

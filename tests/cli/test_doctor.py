"""`gyges doctor` as a command: useful and well without a GPU; what it checks is tested in tests/doctor."""

import json

import pytest
from command import gyges

from gyges.doctor import full
from gyges.doctor.checks import Check


@pytest.fixture
def two_checks(monkeypatch):
    checks = [
        Check("good", "a good one", "gyges.doctor.checks.memory:cpu_pool", 60, lambda facts: ""),
        Check("gpu", "for GPUs", "gyges.doctor.checks.gpu:budget", 60, lambda facts: "needs 1 GPU, 0 visible"),
    ]
    monkeypatch.setattr(full, "load", lambda: full_registry(checks))


def full_registry(checks):
    from gyges.registry import Registry

    registry = Registry("check")
    for check in checks:
        registry.add(check.name, check)
    return registry


def test_without_a_gpu_it_says_what_works_and_ends_well(capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    done = gyges(capfd, monkeypatch, "doctor", "--json")
    assert done.code == 0, done.err
    document = done.document
    assert {fact["group"] for fact in document["facts"]} == {"machine", "python", "engine", "gpu"}
    engine = document["abilities"][0]
    assert (engine["name"], engine["works"]) == ("engine on CPU devices", True)
    assert "What this machine can do" in done.err
    assert max(len(line) for line in done.err.splitlines()) <= 80


def test_full_writes_what_it_found_as_it_comes(capfd, monkeypatch, tmp_path, two_checks):
    out = tmp_path / "doctor"
    done = gyges(capfd, monkeypatch, "doctor", "--full", "--out", out, "--json")
    assert done.code == 0, done.err
    document = done.document
    assert [(c["name"], c["state"]) for c in document["checks"]] == [("good", "passed"), ("gpu", "cannot")]
    saved = json.loads((out / "doctor.json").read_text())
    assert saved == {name: value for name, value in document.items() if name != "folder"}
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["kind"], manifest["state"]) == ("doctor", "complete")
    assert manifest["configuration"]["checks"] == ["good", "gpu"]
    assert "1 passed, 1 cannot, of 2" in done.err


def test_a_run_that_is_stopped_keeps_what_it_has(capfd, monkeypatch, tmp_path, two_checks):
    run = full._run

    def stopped(check, *args):
        if check.name == "gpu":
            raise KeyboardInterrupt
        return run(check, *args)

    monkeypatch.setattr(full, "_run", stopped)
    out = tmp_path / "doctor"
    done = gyges(capfd, monkeypatch, "doctor", "--full", "--out", out)
    assert done.code == 130
    saved = json.loads((out / "doctor.json").read_text())
    assert ([c["name"] for c in saved["checks"]], saved["planned"], saved["complete"]) == (["good"], 2, False)
    assert json.loads((out / "manifest.json").read_text())["state"] == "partial"


def test_a_check_that_fails_is_the_exit_code(capfd, monkeypatch, tmp_path, two_checks):
    monkeypatch.setattr(
        "gyges.doctor.full.Child.call", lambda *args, **kwargs: (_ for _ in ()).throw(full.ChildError("page 3"))
    )
    done = gyges(capfd, monkeypatch, "doctor", "--full", "--only", "good", "--out", tmp_path / "d")
    assert done.code == 1
    assert "page 3" in done.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--only", "pool-cpu"), "give --full too"),
        (("--full", "--only", "nothing"), "unknown check 'nothing'"),
        (("--full", "--skip", "nothing"), "unknown check 'nothing'"),
    ],
)
def test_bad_input_is_named_and_leaves_no_folder(capfd, monkeypatch, tmp_path, arguments, words):
    monkeypatch.chdir(tmp_path)
    done = gyges(capfd, monkeypatch, "doctor", *arguments)
    assert done.code == 2
    assert words in done.err
    assert list(tmp_path.iterdir()) == []

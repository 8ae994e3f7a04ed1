"""Faults, made by killing and stopping real processes. No wait here or there is without a deadline."""

import os
import select
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import psutil
import pytest
from checkpoints import make_checkpoint

from gyges import Engine, EngineConfig, Request, SamplingParams
from gyges.errors import EngineError, UserError, WorkerDied

pytestmark = pytest.mark.engine

CONFIG = EngineConfig(model="tiny", device_memory=16 << 20, threads=1)
LONG = [Request(f"r{i}", tuple(range(3, 40)), SamplingParams(max_tokens=2000, ignore_eos=True)) for i in range(3)]


def until_gone(pids: list[int], seconds: float) -> list[int]:
    """Waits for processes (not necessarily children) to end; returns those that have not."""
    end = time.monotonic() + seconds
    left = []
    for pid in pids:
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        ready, _, _ = select.select([fd], [], [], max(0.0, end - time.monotonic()))
        os.close(fd)
        if not ready:
            left.append(pid)
    return left


def submit_and_wait_for_tokens(engine: Engine) -> tuple[threading.Event, dict]:
    """Starts LONG; returns once each has a token. The event is set when all have ended."""
    started, ended, outputs = threading.Barrier(2), threading.Event(), {}
    seen: set[str] = set()

    def note(out) -> None:
        if out.request_id not in seen:
            seen.add(out.request_id)
            if len(seen) == len(LONG):
                started.wait(30)
        if out.finished:
            outputs[out.request_id] = out
            if len(outputs) == len(LONG):
                ended.set()

    for request in LONG:
        engine.submit(request, note)
    started.wait(30)
    return ended, outputs


@pytest.mark.parametrize(("instances", "victim"), [((1,), 0), ((2,), 1)])
def test_a_killed_worker_is_noticed_within_two_seconds_and_named(instances, victim):
    with Engine(replace(CONFIG, instances=instances)) as engine:
        ended, outputs = submit_and_wait_for_tokens(engine)
        os.kill(engine.workers[victim].pid, signal.SIGKILL)
        assert ended.wait(2.0), "the death was not noticed within 2 s"
        assert isinstance(engine.failure, WorkerDied)
        assert engine.failure.worker == victim
        assert engine.failure.exit_code == -signal.SIGKILL
        for out in outputs.values():
            assert out.finish_reason == "failed"
            assert f"worker {victim} died (signal 9)" in out.error
        with pytest.raises(EngineError, match="engine has failed"):
            engine.submit(LONG[0], print)
        pids = [w.pid for w in engine.workers]
    assert not until_gone(pids, 5)


def test_last_words_of_a_worker_are_reported():
    with Engine(CONFIG) as engine:
        ended, _ = submit_and_wait_for_tokens(engine)
        os.kill(engine.workers[0].pid, signal.SIGABRT)
        assert ended.wait(2.0)
        assert isinstance(engine.failure, WorkerDied)
        assert engine.failure.exit_code == -signal.SIGABRT
        assert "Fatal Python error: Aborted" in engine.failure.last_words


def test_a_worker_that_hangs_ends_the_step_at_its_deadline():
    with Engine(replace(CONFIG, step_timeout=1.0)) as engine:
        ended, _ = submit_and_wait_for_tokens(engine)
        os.kill(engine.workers[0].pid, signal.SIGSTOP)
        assert ended.wait(10)
        assert "did not finish a step within 1 s" in str(engine.failure)


def test_generate_raises_what_broke_the_engine():
    with Engine(CONFIG) as engine:
        killer = threading.Timer(0.0, lambda: os.kill(engine.workers[0].pid, signal.SIGKILL))
        stream = engine.generate(LONG)
        killer.start()
        with pytest.raises(WorkerDied):
            next(stream)


def test_a_worker_that_cannot_start_says_why_and_leaves_nothing(tmp_path):
    folder = make_checkpoint(tmp_path / "broken", "llama")
    engine = Engine(replace(CONFIG, model=str(folder)))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])  # after the configuration was read, before the workers do
    before = set(psutil.Process().children())
    with pytest.raises(UserError, match=r"^cannot read .*safetensors.*download it again"):
        engine.start()
    assert set(psutil.Process().children()) == before


def test_workers_do_not_outlive_a_killed_controller():
    script = (
        "import gyges, sys\n"
        "engine = gyges.Engine(gyges.EngineConfig(model='tiny', instances=(1, 2), device_memory=16 << 20, threads=1))\n"
        "engine.start()\n"
        "engine.submit(gyges.Request('a', (5, 6), gyges.SamplingParams(max_tokens=2000, ignore_eos=True)), lambda o: None)\n"
        "print(*[w.pid for w in engine.workers], flush=True)\n"
        "sys.stdin.read()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 3
        process.kill()
        process.wait(10)
        assert not until_gone(pids, 5)
    finally:
        process.kill()
        process.communicate()

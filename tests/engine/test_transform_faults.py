"""Workers that die, fail or stop answering at every stage of a transformation. What is left goes on; nothing is lost."""

import contextlib
import os
import signal

import pytest
from engine.transforming import FOUR, Running, prompts, requests, result, static_tokens

from gyges import Engine
from gyges.errors import EngineError
from gyges.transform.plan import PlanImpossible

pytestmark = pytest.mark.engine

CONFIG = FOUR.with_(step_timeout=4.0, transform_timeout=6.0)
PROMPTS = prompts(40, 150, 9, 300, 75, 33)
COUNTS = [150, 60, 120, 40, 100, 130]


@pytest.fixture(scope="module")
def expected():
    return static_tokens(CONFIG, requests(PROMPTS, COUNTS))


def run_with_fault(monkeypatch, fault: str, overlap: bool, padding: bool = True):
    monkeypatch.setenv("GYGES_FAULT", fault)
    with Engine(CONFIG.with_(padding=padding)) as engine:
        monkeypatch.delenv("GYGES_FAULT")
        running = Running(engine)
        running.submit(*requests(PROMPTS, COUNTS))
        running.wait_for_tokens(30)
        # A fault breaks either; a refusal because of an earlier one is fine as well.
        with contextlib.suppress(EngineError, ValueError):
            result(engine.merge((0, 1, 2, 3), overlap=overlap))
        with contextlib.suppress(EngineError, ValueError):
            result(engine.split((0, 1, 2, 3), (1, 2, 1), overlap=overlap))
        tokens = running.finish()
        state = engine.status()
        # It serves, and transforms, on.
        with contextlib.suppress(PlanImpossible):
            pair = [d for s in state if s.degree == 1 for d in s.devices][:2]
            if len(pair) == 2:
                assert result(engine.merge(pair)).after == (2,)
        again = Running(engine)
        again.submit(*requests(PROMPTS, COUNTS, name="later"))
        assert list(again.finish().values()) == list(tokens.values())
        return tokens, engine.incidents, engine.reports, state, engine.failure


CASES = [
    ("worker=1 at=Join do=kill", True, True),
    ("worker=2 at=Transfer do=kill", True, True),
    ("worker=0 at=Transfer count=2 do=kill", False, True),
    ("worker=1 at=Switch do=raise", True, True),
    ("worker=2 at=Release do=kill", False, False),
    ("worker=0 at=Barrier do=kill", False, True),
    ("worker=1 at=FFN count=2 do=kill", True, False),
    ("worker=2 at=FFNRelease do=raise", True, True),
    ("worker=0 at=Settle do=kill", True, True),
    ("worker=2 at=Settle count=2 do=kill", False, False),
]


@pytest.mark.parametrize(("fault", "overlap", "padding"), CASES)
def test_a_worker_lost_at_any_stage_costs_no_request(monkeypatch, expected, fault, overlap, padding):
    tokens, incidents, _, state, failure = run_with_fault(monkeypatch, fault, overlap, padding)
    assert tokens == expected
    assert failure is None
    victim = int(fault[7])
    assert any(victim in incident.workers for incident in incidents)
    assert sorted(d for s in state for d in s.devices) == sorted({0, 1, 2, 3} - {victim})


@pytest.mark.parametrize(("at", "overlap"), [("Transfer", True), ("Settle", False)])
def test_a_worker_that_does_not_answer_is_given_up_at_the_deadline(monkeypatch, expected, at, overlap):
    tokens, incidents, reports, state, failure = run_with_fault(monkeypatch, f"worker=1 at={at} do=hang", overlap)
    assert tokens == expected
    assert failure is None
    assert any("did not" in i.error or "was not over" in i.error for i in incidents)
    assert any(r.error for r in reports)
    assert sorted(d for s in state for d in s.devices) == [0, 2, 3]


def test_a_worker_of_another_instance_dies_and_the_rest_goes_on(expected):
    with Engine(CONFIG) as engine:
        running = Running(engine)
        running.submit(*requests(PROMPTS, COUNTS))
        running.wait_for_tokens(20)
        os.kill(engine.workers[2].pid, signal.SIGKILL)
        assert running.finish() == expected
        (incident,) = engine.incidents
        assert incident.workers == (2,)
        assert incident.requeued >= 1
        assert "signal 9" in incident.error


def test_when_the_last_worker_dies_the_engine_says_so(expected):
    with Engine(CONFIG.with_(instances=(1, 1), tp_degrees=(1, 2))) as engine:
        running = Running(engine)
        running.submit(*requests(PROMPTS, COUNTS))
        running.wait_for_tokens(10)
        result(engine.merge((0, 1)))
        for worker in engine.workers:
            os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(AssertionError, match="died"):
            running.finish()
        assert engine.failure is not None

"""Engines whose workers sum by peer memory, on GPUs made of host memory: merges, splits and lost workers give the same tokens."""

import os
import signal
from pathlib import Path

import pytest
from engine.plugging import plug_workers
from engine.transforming import FOUR, Running, prompts, requests, result, static_tokens
from memory.backends import needs_interpreter

from gyges import Engine

pytestmark = [pytest.mark.engine, needs_interpreter]

PROMPTS = prompts(40, 150, 9, 75)
COUNTS = [40, 30, 44, 36]

# Workers whose sums go by peer memory. One ends with an error where it begins in a group before it has met, in a barrier, all who
# may still be reading what it put in the group before.
PEERS = """
def plug(runner):
    sys.path.insert(0, TESTS)
    from dataclasses import replace
    from memory.backends import fake_driver
    from gyges.parallel.peer import PeerCollectives, PeerComm

    open_backend, turn, barrier, comm = runner.open_backend, PeerComm._turn, PeerComm.barrier, PeerCollectives.comm
    runner.open_backend = lambda *about: replace(open_backend(*about), collectives="peer", driver=fake_driver())
    readers, epochs = set(), []

    def turned(self, x):
        assert readers <= set(self.members), f"{self.members} begin while {readers} may still be reading"
        readers.update(self.members)
        return turn(self, x)

    def met(self):
        barrier(self)
        readers.difference_update(self.members)

    def another(self, members):
        epochs.append(self._arena.epoch(self._worker))
        if epochs[-1] != epochs[0]:
            epochs[:] = epochs[-1:]
            readers.clear()  # after a failure nothing counts that is still read
        return comm(self, members)

    PeerComm._turn, PeerComm.barrier, PeerCollectives.comm = turned, met, another
"""


@pytest.fixture(scope="module")
def expected():
    return static_tokens(FOUR, requests(PROMPTS, COUNTS))


@pytest.fixture(autouse=True)
def peers(monkeypatch, tmp_path, expected):
    """After the tokens of a plain engine are there, workers are plugged."""
    tests = str(Path(__file__).parents[1])
    plug_workers(monkeypatch, tmp_path, "gyges.engine.runner", f"TESTS = {tests!r}\n{PEERS}")


def test_merges_and_splits_give_the_same_tokens(expected):
    with Engine(FOUR) as engine:
        running = Running(engine)
        running.submit(*requests(PROMPTS, COUNTS))
        for seen, change in (
            (10, lambda: engine.merge((1, 3))),
            (40, lambda: engine.merge((0, 1, 2, 3))),
            (80, lambda: engine.split((0, 1, 2, 3), (2, 2))),
            (110, lambda: engine.split(engine.instances[0].members, (1, 1))),
        ):
            running.wait_for_tokens(seen)
            result(change())
        assert running.finish() == expected
        assert engine.incidents == []
        assert len(engine.reports) == 4


def test_the_survivors_of_a_lost_peer_begin_anew(expected):
    with Engine(FOUR.with_(step_timeout=8.0)) as engine:
        assert result(engine.merge((0, 1, 2, 3))).after == (4,)
        running = Running(engine)
        running.submit(*requests(PROMPTS, COUNTS))
        running.wait_for_tokens(20)
        victim = engine.instances[0].members[2]
        os.kill(next(w for w in engine.instances[0].workers if w.worker == victim).pid, signal.SIGKILL)
        assert running.finish() == expected
        pair = [d for s in engine.status() for d in s.devices][:2]
        assert result(engine.merge(pair)).after == (2,)
        again = Running(engine)
        again.submit(*requests(PROMPTS, COUNTS))
        assert again.finish() == expected

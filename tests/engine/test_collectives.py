"""Instances whose collectives are process groups, as NCCL's are: merges choose groups, and failures leave broken ones behind."""

import os
import signal

import pytest
from engine.plugging import plug_workers
from engine.transforming import FOUR, Running, prompts, requests, result, static_tokens

from gyges import Engine
from gyges.errors import UserError

pytestmark = pytest.mark.engine

CONFIG = FOUR.with_(collectives="gloo", step_timeout=4.0, transform_timeout=6.0)
PROMPTS = prompts(40, 150, 9, 300)
COUNTS = [90, 60, 120, 40]


@pytest.fixture(scope="module")
def expected():
    return static_tokens(CONFIG.with_(collectives="shm"), requests(PROMPTS, COUNTS))


def test_merges_of_any_workers_and_splits_give_the_same_tokens(expected):
    """(1, 3) are no neighbours: their group is made in the merge."""
    with Engine(CONFIG) as engine:
        running = Running(engine)
        running.submit(*requests(PROMPTS, COUNTS))
        running.wait_for_tokens(10)
        assert result(engine.merge((1, 3))).after == (2,)
        running.wait_for_tokens(60)
        assert result(engine.merge((0, 1, 2, 3))).after == (4,)
        running.wait_for_tokens(120)
        assert result(engine.split((0, 1, 2, 3), (2, 1, 1))).after == (2, 1, 1)
        assert running.finish() == expected
        assert engine.incidents == []


# NCCL as it is here: a collective waits for a lost peer for ever and is no error; it ends when another thread aborts its group,
# and what it has computed then is garbage.
LIKE_NCCL = """
def plug(runner):
    import threading
    from datetime import timedelta
    import torch.distributed as dist
    from gyges.parallel.collectives import COLLECTIVES, Way
    from gyges.parallel.process_group import ProcessGroups

    gloo = dist.ProcessGroupGloo

    class Work:
        def __init__(self, group, work, x):
            self.group, self.work, self.x = group, work, x

        def wait(self):
            while not self.group.aborted.is_set():
                try:
                    return self.work.wait(timedelta(seconds=0.05))
                except RuntimeError:
                    if self.work.is_completed():  # the connection is gone, which NCCL does not notice
                        self.group.aborted.wait()
            self.x.fill_(1e30)

    class LikeNccl:
        def Options():
            options = gloo._Options()
            options._devices = [gloo.create_device(hostname="127.0.0.1")]
            return options

        def __init__(self, *about):
            self.group, self.aborted = gloo(*about), threading.Event()

        def eager_connect_single_device(self, device):
            pass

        def abort(self):
            self.aborted.set()

        def allreduce(self, tensors):
            return Work(self, self.group.allreduce(tensors), tensors[0])

        def gather(self, outputs, inputs, options):
            return Work(self, self.group.gather(outputs, inputs, options), inputs[0])

    dist.is_nccl_available, dist.ProcessGroupNCCL = lambda: True, LikeNccl
    COLLECTIVES._entries["gloo"] = Way("cpu", lambda wanted: ProcessGroups("nccl", wanted))
"""


@pytest.mark.parametrize(
    ("how", "like"), [(signal.SIGKILL, "gloo"), (signal.SIGSTOP, "gloo"), (signal.SIGKILL, "nccl")]
)
def test_the_survivors_of_a_broken_group_leave_it_and_form_new_ones(monkeypatch, tmp_path, expected, how, like):
    """A process that is gone breaks its connections; one that is stopped keeps its peers waiting until they are called out."""
    if like == "nccl":
        plug_workers(monkeypatch, tmp_path, "gyges.engine.runner", LIKE_NCCL)
    with Engine(CONFIG) as engine:
        assert result(engine.merge((0, 1, 2, 3))).after == (4,)
        running = Running(engine)
        running.submit(*requests(PROMPTS, COUNTS))
        running.wait_for_tokens(20)
        victim = engine.instances[0].members[2]
        worker = next(w for w in engine.instances[0].workers if w.worker == victim)
        os.kill(worker.pid, how)
        assert running.finish() == expected
        assert sorted(d for s in engine.status() for d in s.devices) == sorted({0, 1, 2, 3} - {victim})
        pair = [d for s in engine.status() for d in s.devices][:2]
        assert result(engine.merge(pair)).after == (2,)
        again = Running(engine)
        again.submit(*requests(PROMPTS, COUNTS))
        assert again.finish() == expected


def test_collectives_that_do_not_work_on_the_device_are_refused_with_those_that_do():
    with pytest.raises(UserError, match="'nccl' do not work on cpu devices; these do: shm, gloo"):
        CONFIG.with_(collectives="nccl")
    with pytest.raises(UserError, match=r"unknown collectives 'mpi'.*shm"):
        CONFIG.with_(collectives="mpi")

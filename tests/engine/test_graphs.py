"""Decode graphs of a host that transforms: made at the start for every instance it may form, and right in all of them.

On a CPU nothing can be recorded: a graph is a step on static inputs there, with all that belongs to choosing and filling it.
"""

import os
import signal

import pytest
from engine.plugging import plug_workers
from engine.transforming import FOUR, Running, prompts, requests, result, static_tokens

from gyges import Engine

pytestmark = pytest.mark.engine

CONFIG = FOUR.with_(collectives="gloo", max_seqs=5)
PROMPTS = prompts(40, 150, 9, 75)
COUNTS = [90, 60, 110, 70]

# A worker ends with an error where a step of single tokens is computed without a graph, or a graph is made after the start.
GRAPHS = """
def plug(runner):
    from dataclasses import replace
    from gyges.parallel.process_group import ProcessGroupComm, ProcessGroups

    make, open_backend = ProcessGroups.__init__, runner.open_backend
    comm, run = ProcessGroups.comm, ProcessGroupComm._run
    latest = []

    def newest(self, members):
        latest[:] = [comm(self, members)]
        return latest[0]

    def checked(self, collective):  # NCCL has aborted all groups from before a failure, gloo has not
        assert latest == [self], "a collective of a group that is not the present one"
        run(self, collective)

    ProcessGroups.comm, ProcessGroupComm._run = newest, checked

    def init(self, *about):
        make(self, *about)
        self.capturable = True

    ProcessGroups.__init__ = init
    runner.open_backend = lambda *about: replace(open_backend(*about), graphs=True)
    GRAPHS_MORE
"""
ONLY = """
    from gyges.models.graphs import DecodeGraphs

    own, step, load = runner.ModelRunner._forward, DecodeGraphs.forward, runner.load_weights
    used = []
    DecodeGraphs.forward = lambda graphs, batch: used.append(graphs.layout) or step(graphs, batch)

    def forward(self, batch):
        before = len(used)
        logits = own(self, batch)
        # One token of a prompt, where the step has no more left, is not sampled.
        sampled = batch.sample_rows is not None and len(batch.sample_rows) == len(batch.tokens)
        alone = self.joint is None and not batch.parts[0].chunks and sampled
        assert len(used) > before or not alone, f"members {self.members} have no graph"
        assert len(used) == before or used[-1] == self.layout, "the graph of another rank or degree"
        return logits

    def loaded(*about):
        def late(*_):
            raise AssertionError("a graph is made after the start")
        DecodeGraphs.capture = late
        return load(*about)

    runner.ModelRunner._forward, runner.load_weights = forward, loaded
"""


@pytest.fixture(scope="module")
def expected():
    return static_tokens(CONFIG.with_(collectives="shm"), requests(PROMPTS, COUNTS))


@pytest.mark.parametrize("layout", ["shard-pages", "header-centric"])
def test_every_instance_that_merges_and_splits_form_has_graphs_from_the_start(monkeypatch, tmp_path, layout, expected):
    plug_workers(monkeypatch, tmp_path, "gyges.engine.runner", GRAPHS.replace("    GRAPHS_MORE", ONLY))
    with Engine(CONFIG.with_(layout=layout)) as engine:
        running = Running(engine)
        running.submit(*requests(PROMPTS, COUNTS))
        for seen, change in (
            (40, lambda: engine.merge((0, 1))),
            (90, lambda: engine.merge((0, 1, 2, 3))),
            (150, lambda: engine.split((0, 1, 2, 3), (2, 2))),
            (210, lambda: engine.split((0, 1), (1, 1))),
        ):
            running.wait_for_tokens(seen)
            result(change())
        assert running.finish() == expected
        assert engine.incidents == []
        assert len(engine.reports) == 4


def test_after_a_failure_no_graph_of_a_broken_group_is_used(monkeypatch, tmp_path, expected):
    plug_workers(monkeypatch, tmp_path, "gyges.engine.runner", GRAPHS.replace("    GRAPHS_MORE", ""))
    with Engine(CONFIG.with_(step_timeout=6.0)) as engine:
        result(engine.merge((0, 1, 2, 3)))
        running = Running(engine)
        running.submit(*requests(PROMPTS, COUNTS))
        running.wait_for_tokens(20)
        os.kill(next(w for w in engine.instances[0].workers if w.worker == 3).pid, signal.SIGKILL)
        running.wait_until(lambda: bool(engine.incidents) and len(engine.status()) == 3)
        result(engine.merge((0, 1)))  # there are graphs for these two, of a group that is gone
        assert running.finish() == expected
        assert len(engine.incidents) == 1

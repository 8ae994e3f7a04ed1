"""Who runs a sweep's cells: other processes, or a Ray cluster of several nodes. All give back what the cells gave."""

import os
import sys

import pytest

from gyges.errors import EngineError, UserError
from gyges.sim.executors import LocalExecutor, RayExecutor

pytestmark = pytest.mark.engine


def echo(arguments):
    return "", {"pid": str(os.getpid()).encode(), "arguments": " ".join(arguments).encode()}


def refuse(arguments):
    return f"{arguments[0]} cannot be run", {}


def die(arguments):
    os._exit(1)


CELLS = [["a", "1"], ["b", "2"], ["c", "3"]]


def test_every_cell_is_run_once_in_another_process():
    done = dict(LocalExecutor(2).run(echo, CELLS))
    assert {index: outcome[1]["arguments"] for index, outcome in done.items()} == {0: b"a 1", 1: b"b 2", 2: b"c 3"}
    assert str(os.getpid()).encode() not in {outcome[1]["pid"] for outcome in done.values()}


def test_a_process_that_dies_is_said_with_what_to_do():
    with pytest.raises(EngineError, match="goes on where it was"):
        list(LocalExecutor(1).run(die, [["x"]]))


def test_no_cells_start_nothing_and_no_jobs_are_refused():
    assert list(LocalExecutor(4).run(die, [])) == []
    with pytest.raises(UserError, match="at least one job"):
        LocalExecutor(0)


@pytest.fixture(scope="module")
def cluster():
    """Two nodes on this machine, one core each."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        # Nodes find the functions of this module as they would find those of an installed package.
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


def test_a_ray_cluster_gives_what_processes_give(cluster):
    executor = RayExecutor(cluster.address)
    assert sorted((i, files["arguments"]) for i, (_, files) in executor.run(echo, CELLS)) == sorted(
        (i, files["arguments"]) for i, (_, files) in LocalExecutor(2).run(echo, CELLS)
    )
    assert list(executor.run(refuse, [["x"]])) == [(0, ("x cannot be run", {}))]


def test_a_ray_cluster_that_is_not_there_is_said():
    pytest.importorskip("ray")
    with pytest.raises(UserError, match="no Ray cluster at"):
        list(RayExecutor("127.0.0.1:1").run(echo, CELLS))

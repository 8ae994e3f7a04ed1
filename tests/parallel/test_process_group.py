"""Collectives by torch.distributed, between real processes over gloo: the contract of gyges.parallel.comm."""

import multiprocessing
import os

import pytest
import torch

from gyges.parallel.comm import CollectiveTimeout
from gyges.parallel.process_group import ProcessGroups, groups_of_degrees

WORKERS = 3


def test_groups_are_the_neighbours_that_instances_take():
    assert groups_of_degrees(4, (1, 2, 4)) == [(0, 1), (2, 3), (0, 1, 2, 3)]
    assert groups_of_degrees(3, (2, 1)) == [(0, 1)]
    assert groups_of_degrees(2, (4, 1)) == []


def worker_main(worker: int, store: str) -> None:
    torch.set_num_threads(1)
    groups = ProcessGroups("gloo", store, worker, WORKERS, groups_of_degrees(WORKERS, (1, 2)), torch.device("cpu"))
    whole = groups.comm((0, 1, 2))
    assert (whole.rank, whole.size) == (worker, 3)
    x = torch.full((5, 3), float(10**worker))
    assert (whole.all_reduce(x) == 111).all()
    columns = torch.full((2, worker + 1), float(worker))
    gathered = whole.gather_columns(columns, [1, 2, 3])
    assert (gathered is None) == (worker > 0)
    if gathered is not None:
        assert gathered.tolist() == [[0, 1, 1, 2, 2, 2]] * 2
    if worker < 2:  # the others' group goes on without worker 2
        pair = groups.comm((0, 1))
        assert (pair.all_reduce(torch.ones(1)) == 2).all()
    with pytest.raises(AssertionError, match=r"no group of workers \(1, 2\)"):
        groups.comm((1, 2))
    whole.barrier()
    if worker == 2:
        os._exit(0)  # as a process that is killed: it does not come to the next one
    with pytest.raises(CollectiveTimeout, match=f"rank {worker} of workers"):
        whole.all_reduce(torch.ones(1))
    os._exit(0)  # gloo's threads do not survive a group that is broken


def test_every_rank_gets_the_sum_in_any_group_and_a_lost_peer_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")  # the host's name may resolve to nothing
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=worker_main, args=(worker, str(tmp_path / "store")), daemon=True)
        for worker in range(WORKERS)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(90)
    assert [process.exitcode for process in processes] == [0] * WORKERS

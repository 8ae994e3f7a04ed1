"""Collectives by torch.distributed, between real processes over gloo: the contract of gyges.parallel.comm."""

import multiprocessing
import os

import pytest
import torch
from parallel.processes import run_workers

from gyges.parallel import process_group
from gyges.parallel.arena import SharedArena
from gyges.parallel.collectives import COLLECTIVES, Wanted
from gyges.parallel.comm import CollectiveAborted, CollectiveTimeout
from gyges.parallel.shm import ShmComm

WORKERS = 3


def worker_main(worker: int, arena_path: str, store_path: str, outcome) -> None:
    torch.set_num_threads(1)
    arena = SharedArena(os.open(arena_path, os.O_RDWR), WORKERS, 4096)
    wanted = Wanted(arena, worker, torch.device("cpu"), 40.0, os.open(store_path, os.O_RDWR))
    groups = COLLECTIVES.get("gloo").make(wanted)
    groups.prepare([(0, 1), (0, 1, 2)])
    ranks = (0, 2, 1)  # a merge deals ranks as it likes
    whole = groups.comm(ranks)
    assert (whole.rank, whole.size) == (ranks.index(worker), 3)
    assert (whole.all_reduce(torch.full((5, 3), float(10**worker))) == 111).all()
    columns = torch.full((2, worker + 1), float(worker))
    gathered = whole.gather_columns(columns, [1, 3, 2])
    assert (gathered is None) == (worker > 0)
    if gathered is not None:
        assert gathered.tolist() == [[0, 2, 2, 2, 1, 1]] * 2
    if worker < 2:  # the others' group goes on without worker 2
        assert (groups.comm((1, 0)).all_reduce(torch.ones(1)) == 2).all()
    if worker > 0:  # nobody has made this one ahead
        assert (groups.comm((1, 2)).all_reduce(torch.full((1,), worker)) == 3).all()
    whole.barrier()
    if worker == 2:
        os._exit(0)  # as a process that is killed: it does not come to the next one
    ShmComm(arena, (0, 1), worker).barrier()  # its first member is the first to leave
    if worker == 1:
        arena.abort(0)  # as the controller does
        arena.abort(1)
    with pytest.raises(CollectiveAborted):
        whole.all_reduce(torch.ones(1))
    again = groups.comm((0, 1))  # not the group from before, which the failure may have left in any state
    assert (again.all_reduce(torch.full((2,), worker + 1.0)) == 3).all()
    if worker == 0:
        process_group._CALL_S = 0.3  # nobody will call it out
        with pytest.raises(CollectiveTimeout, match="worker 0 was left alone"):
            again.all_reduce(torch.ones(1))
    outcome.send(worker)
    os._exit(0)  # gloo's threads do not survive a group that is broken


def test_every_rank_gets_the_sum_in_any_group_and_the_survivors_of_a_lost_peer_go_on():
    arena, store = SharedArena.create(WORKERS, 4096), os.memfd_create("store")
    ours, theirs = multiprocessing.get_context("spawn").Pipe(duplex=False)
    try:
        run_workers(worker_main, WORKERS, *(f"/proc/{os.getpid()}/fd/{fd}" for fd in (arena.fd, store)), theirs)
        assert sorted(ours.recv() for _ in range(2) if ours.poll(1)) == [0, 1]
    finally:
        arena.close()
        os.close(store)

"""Peer collectives between processes, on GPUs made of host memory: the contract of Comm, and what is left behind."""

import os
import threading

import pytest
import torch
from memory.backends import fake_driver, needs_interpreter
from memory.fake_driver import CUresult, FakeCuda
from parallel.processes import run_workers

from gyges.config import EngineConfig
from gyges.errors import UserError
from gyges.parallel import peer
from gyges.parallel.arena import SharedArena
from gyges.parallel.collectives import COLLECTIVES, Wanted
from gyges.parallel.comm import CollectiveAborted, CollectiveTimeout
from gyges.parallel.peer import PeerCollectives
from gyges.parallel.peer_device import CudaPeerDevice

HOST = torch.device("cpu")
WORKERS, BUFFER = 3, 8192


def make(arena: SharedArena, worker: int, api: FakeCuda, timeout_s: float = 40.0) -> PeerCollectives:
    found = COLLECTIVES.get("peer").make(Wanted(arena, worker, HOST, timeout_s, driver=fake_driver(api)))
    assert isinstance(found, PeerCollectives)
    return found


def worker_main(worker: int, arena_path: str) -> None:
    torch.set_num_threads(1)
    api, arena = FakeCuda(), SharedArena(os.open(arena_path, os.O_RDWR), WORKERS, BUFFER)
    collectives = make(arena, worker, api)
    collectives.prepare([])
    ranks = (0, 2, 1)  # a merge deals ranks as it likes
    whole = collectives.comm(ranks)
    whole.barrier()
    assert (whole.rank, whole.size) == (ranks.index(worker), 3)
    sums = [whole.all_reduce(torch.full((5, 3), float(10**worker * turn))) for turn in range(1, 5)]
    assert [x.unique().tolist() for x in sums] == [[111], [222], [333], [444]], "results stay"
    low = whole.all_reduce(torch.full((7,), worker + 0.5, dtype=torch.bfloat16))
    assert (low.dtype, low.unique().tolist()) == (torch.bfloat16, [4.5])
    order = whole.all_reduce(torch.tensor([(1e8, -1e8, 1.0)[worker]]))
    assert order.item() == 0.0, "in rank order, in float32, nothing is left of the 1"
    gathered = whole.gather_columns(torch.full((2, worker + 1), float(worker)), [1, 3, 2])
    assert (gathered is None) == (worker > 0)
    if gathered is not None:
        assert gathered.tolist() == [[0, 2, 2, 2, 1, 1]] * 2
    assert (whole.all_reduce(torch.ones(BUFFER // 4)) == 3).all(), "as large as the buffer"
    whole.barrier()
    if worker < 2:
        narrow = collectives.comm((1, 0))
        assert [narrow.all_reduce(torch.full((3,), worker + n)).tolist() for n in (1.0, 2.0)] == [[3.0] * 3, [5.0] * 3]
    else:
        alone = collectives.comm((2,))
        assert alone.all_reduce(torch.ones(2)).tolist() == [1, 1]
    again = collectives.comm((2, 1, 0))
    again.barrier()
    assert (again.all_reduce(torch.full((2,), 1.0)) == 3).all()
    collectives.close()
    collectives.close()
    left = api.leaks()
    assert left == {"contexts": 1}, left  # the driver's own
    assert api.calls.count("cuStreamSynchronize") == 3, "only barriers wait for the GPU"


@needs_interpreter
def test_every_rank_gets_the_sum_in_any_group_and_nothing_is_left_behind():
    arena = SharedArena.create(WORKERS, BUFFER)
    try:
        run_workers(worker_main, WORKERS, f"/proc/{os.getpid()}/fd/{arena.fd}")
    finally:
        arena.close()


class Side(threading.Thread):
    """One worker of a host, in a thread; what it raises, :meth:`result` raises."""

    def __init__(self, work, *about) -> None:
        super().__init__(daemon=True)
        self._work, self._about, self._error = work, about, None
        self.start()

    def run(self) -> None:
        try:
            self._got = self._work(*self._about)
        except BaseException as error:
            self._error = error

    def result(self):
        self.join(40)
        assert not self.is_alive(), "a worker does not come back"
        if self._error is not None:
            raise self._error
        return self._got


@pytest.fixture
def arena():
    made = SharedArena.create(2, BUFFER)
    yield made
    made.close()


@pytest.fixture
def apis():
    return [FakeCuda(), FakeCuda()]


@pytest.fixture
def both(arena, apis):
    """Two workers that have opened each other's memory."""
    found = [make(arena, worker, api, timeout_s=5.0) for worker, api in enumerate(apis)]
    for side in [Side(each.prepare, []) for each in found]:
        side.result()
    return found


def test_a_part_that_exceeds_the_buffer_is_said_before_it_is_written(both):
    comm = both[0].comm((0, 1))
    with pytest.raises(AssertionError, match="message of 8196 bytes exceeds the 8192 byte buffer"):
        comm.all_reduce(torch.zeros(BUFFER // 4 + 1))


def test_a_worker_is_called_out_before_it_follows_an_event_that_may_never_happen(both, arena, apis):
    comm = both[0].comm((0, 1))
    waiting = Side(comm.all_reduce, torch.ones(3))
    arena.abort(0)
    with pytest.raises(CollectiveAborted):
        waiting.result()
    assert "cuStreamWaitEvent" not in apis[0].calls


def test_a_peer_that_does_not_come_ends_in_a_timeout(arena, apis, both):
    alone = make(arena, 0, apis[0], timeout_s=0.2)
    alone._prepared = True
    with pytest.raises(CollectiveTimeout, match="worker 0 waited 0 s for worker 1"):
        alone.comm((0, 1)).barrier()


def test_after_a_failure_the_same_workers_begin_anew(both, arena):
    """One of them is a collective ahead when they are called out."""
    comms = [each.comm((0, 1)) for each in both]
    for side in [Side(comm.gather_columns, torch.ones(1, 1), [1, 1]) for comm in comms]:
        side.result()
    waiting = Side(comms[0].gather_columns, torch.ones(1, 1), [1, 1])
    arena.abort(0)
    arena.abort(1)
    with pytest.raises(CollectiveAborted):
        waiting.result()
    arena.reset()
    again = [each.comm((0, 1)) for each in both]
    sides = [Side(comm.gather_columns, torch.full((2, 1), worker + 1.0), [1, 1]) for worker, comm in enumerate(again)]
    assert sides[0].result().tolist() == [[1.0, 2.0]] * 2
    assert sides[1].result() is None


def test_both_close_and_leave_nothing(both, apis):
    for side in [Side(each.close) for each in both]:
        side.result()
    assert [api.leaks() for api in apis] == [{"contexts": 1}] * 2


def test_memory_that_a_lost_peer_may_have_open_is_left_to_the_end_of_the_process(both, apis, monkeypatch):
    monkeypatch.setattr(peer, "_CLOSE_S", 0.05)
    both[0].close()
    assert apis[0].leaks()["shared"] == 1, "its own"
    assert "cuMemFree" not in apis[0].calls


def test_a_broken_gpu_is_asked_for_nothing_more(both, apis):
    apis[0].fail("cuCtxSynchronize", CUresult.CUDA_ERROR_ILLEGAL_ADDRESS)
    before = len(apis[0].calls)
    both[0].close()
    assert apis[0].calls[before:] == ["cuCtxSynchronize"]


def test_what_a_kernel_still_reads_is_waited_for_before_it_is_closed(both, apis):
    opened = next(at for at, memory in apis[0].shared.items() if not memory.owned)
    apis[0].launch(0, opened, 16)
    for side in [Side(each.close) for each in both]:
        side.result()
    assert [api.leaks() for api in apis] == [{"contexts": 1}] * 2


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("cuIpcOpenMemHandle", "worker 0 cannot read the GPU memory of worker 1"),
        ("cuIpcOpenEventHandle", "worker 0 cannot read the GPU memory of worker 1"),
        ("cuIpcGetMemHandle", "worker 0 cannot give its GPU memory"),
        ("cuEventCreate", "worker 0 cannot make events"),
    ],
)
def test_gpus_that_cannot_read_each_other_name_the_remedy(arena, apis, call, words):
    apis[0].fail(call, CUresult.CUDA_ERROR_PEER_ACCESS_UNSUPPORTED)
    other = Side(make(arena, 1, apis[1], timeout_s=5.0).prepare, [])
    with pytest.raises(
        UserError, match=rf"{words}.* \({call}.*: CUDA_ERROR_PEER_ACCESS_UNSUPPORTED.*--collectives staged"
    ):
        make(arena, 0, apis[0]).prepare([])
    if "Open" in call:
        other.result()


def test_a_group_before_the_exchange_is_a_mistake(arena, apis):
    with pytest.raises(AssertionError, match=r"prepare\(\) comes first"):
        make(arena, 0, apis[0]).comm((0, 1))


def test_peer_is_of_gpus():
    assert EngineConfig(device="cuda", collectives="peer", device_memory=64 << 20).collectives == "peer"
    with pytest.raises(UserError, match="'peer' do not work on cpu devices"):
        EngineConfig(collectives="peer")


def test_the_gpu_side_has_everything_that_collectives_ask_for():
    asked = {name for name in vars(peer.PeerDevice) if not name.startswith("_")}
    assert asked <= set(vars(CudaPeerDevice))

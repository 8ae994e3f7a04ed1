"""A worker on a GPU's parts: CUDA pages on a driver made of host memory, interpreted Triton kernels, staged collectives."""

import threading
from dataclasses import asdict

import pytest
import torch
from checkpoints import make_checkpoint, reference_generate

pytest.importorskip("triton")

from memory.backends import fake_driver
from memory.fake_driver import FakeCuda

from gyges.config import EngineConfig
from gyges.engine import runner as runner_module
from gyges.engine.backend import Backend, open_backend
from gyges.engine.engine import Engine
from gyges.engine.messages import NewSequence, Setup, Step, pack_tokens
from gyges.errors import UserError
from gyges.kernels.sets import make_kernels
from gyges.kernels.triton import interpreting, why_not
from gyges.models.hub import resolve_model
from gyges.parallel.arena import SharedArena
from gyges.parallel.comm import SOLO
from gyges.parallel.shm import ShmComm
from gyges.parallel.staged import StagedComm
from gyges.transform.memory import CudaMemory

HOST = torch.device("cpu")
PAGE, PROMPT = 16384, [5, 6, 7, 300, 9, 41, 2]


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.skipif(not interpreting() or bool(why_not(HOST)), reason="needs Triton's interpreter")
def test_a_worker_on_cuda_pages_and_triton_kernels_gives_transformers_tokens_and_leaks_nothing(
    tmp_path, monkeypatch, graphs
):
    """With graphs, a decode step runs in the static batch of the smallest one that it fits into. Its collectives have nobody to
    sum with, and use the driver up to the end."""
    folder = make_checkpoint(tmp_path / "model", "llama")
    api = FakeCuda()
    driver, arena = fake_driver(api), SharedArena.create(1, 4096)
    memory = CudaMemory(driver, stream=1)
    backend = Backend(HOST, make_kernels(HOST, "triton"), memory, "peer", graphs=graphs, driver=driver)
    monkeypatch.setattr(runner_module, "open_backend", lambda *_: backend)
    model = resolve_model(str(folder))
    config = EngineConfig(
        model=str(folder),
        device_memory=64 * PAGE,
        page_bytes=PAGE,
        layout="header-centric",
        block_size=5,
        threads=1,
        max_seqs=3,
    )
    setup = Setup(
        worker=0, engine=config.to_dict(), hf_config=model.hf_config, source=asdict(model.source_spec), dtype="float32",
        members=(0,), max_positions=64, arena_fd=arena.fd, arena_bytes=arena.buffer_bytes,
    )  # fmt: skip
    runner = runner_module.ModelRunner(setup)
    recorded = []
    if graphs:
        made = runner.graphs[(0,)]
        forward = made.forward
        made.forward = lambda batch: recorded.append(len(batch.tokens)) or forward(batch)
    try:
        new = NewSequence(0, 0, pack_tokens(PROMPT), len(PROMPT), 20, [3, 0], 0.0, 1.0, 0, 0)
        tokens = runner.step(Step(0, [(0, 0, len(PROMPT), True)], new=[new])).tokens
        for step in range(1, 5):
            at = len(PROMPT) + step - 1
            more = [(0, [7])] if at == 10 else []
            tokens += runner.step(Step(step, [(0, at, 1, True)], extended=more)).tokens
        assert tokens == reference_generate(folder, [PROMPT], [5])[0]
        assert recorded == [1] * 4 * graphs, "decode steps alone run as graphs"
        weights, free = runner.page_counts()
        runner.step(Step(9, [], dropped=[0]))
        assert runner.page_counts()[1] > free, "a request that ends gives its pages back"
        assert runner.page_counts()[0] == weights
    finally:
        runner.close()
        arena.close()
    assert "cuMemAlloc" in api.calls
    assert not any(api.leaks().values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_cuda_device_where_there_is_no_gpu_is_refused_with_the_remedy():
    with pytest.raises(UserError, match=r"--device cpu.*gyges doctor"):
        open_backend(EngineConfig(device="cuda"), 0, "bfloat16", 16)
    with (
        pytest.raises(UserError, match=r"^torch sees no GPU here"),
        Engine(EngineConfig(device="cuda", device_memory=64 << 20)),
    ):
        pass  # the worker found out, and its words are the caller's
    with pytest.raises(UserError, match=r"cpu.*cuda"):
        EngineConfig(device="tpu")


def test_pages_and_dtype_of_a_gpu_follow_from_the_device():
    engine = Engine(EngineConfig(device="cuda", device_memory=64 << 20))
    assert (engine.dtype, engine.config.page_bytes) == ("bfloat16", 2 << 20)
    assert Engine(EngineConfig(device="cuda", device_memory=64 << 20, dtype="float32")).dtype == "float32"


def test_the_engines_that_a_gpu_is_checked_with_fit_their_devices():
    from gyges.doctor.checks import exactness

    for layout in exactness._GPU_LAYOUTS:
        for padding in (True, False):
            engine = Engine(exactness.engine_config("cuda", "tiny", layout, padding=padding))
            longest = max(map(sum, zip(exactness._LENGTHS, exactness._OUTPUTS, strict=True)))
            assert all(instance.max_tokens >= 2 * longest for instance in engine.placement.instances)


def test_staged_collectives_are_those_of_the_host_and_their_results_stay():
    arena = SharedArena.create(2, 4096)
    found: dict[int, list] = {}

    def rank(worker: int) -> None:
        comm = StagedComm(ShmComm(arena, (0, 1), worker, 20.0), HOST)
        first = comm.all_reduce(torch.full((3, 2), float(worker + 1)))
        second = comm.all_reduce(torch.full((3, 2), 10.0 * (worker + 1)))
        third = comm.all_reduce(torch.full((3, 2), 100.0 * (worker + 1)))
        gathered = comm.gather_columns(torch.full((2, worker + 1), float(worker)), [1, 2])
        comm.barrier()
        found[worker] = [first, second, third, gathered]

    threads = [threading.Thread(target=rank, args=(worker,), daemon=True) for worker in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    try:
        for worker in range(2):
            first, second, third, gathered = found[worker]
            assert [x.unique().tolist() for x in (first, second, third)] == [[3.0], [30.0], [300.0]]
            assert (gathered is None) == (worker == 1)
        assert found[0][3].tolist() == [[0.0, 1.0, 1.0]] * 2
        assert StagedComm(SOLO, HOST).size == 1
    finally:
        found.clear()
        arena.close()

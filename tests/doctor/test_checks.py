"""The checks themselves: they pass here, fail where something is broken, and those for GPUs run on a driver made of memory."""

import dataclasses
import os
from pathlib import Path

import pytest
import torch
from memory.backends import fake_driver, needs_interpreter
from memory.fake_driver import FakeCuda

from gyges.bench.allreduce import all_reduce_times
from gyges.bench.child import ChildError
from gyges.bench.gpu.attention import AttentionBench
from gyges.bench.gpu.copies import CopyBench
from gyges.bench.gpu.step import StepBench
from gyges.doctor.checks import gpu, gpu_collectives, gpu_kernels, kernels, memory, vmm
from gyges.doctor.checks.gpu import Gpu
from gyges.doctor.checks.gpu_transform import Size, transformations
from gyges.kernels import reference
from gyges.memory.cpu import CpuPagePool, CpuPeerMemory
from gyges.memory.cuda import CudaPagePool
from gyges.sim.hardware import TransformCosts

PAGE = 16 * 1024


@pytest.fixture
def api():
    return FakeCuda()


@pytest.fixture
def device(api, monkeypatch):
    """This machine's memory as a GPU; another process makes its own driver."""
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    )
    return Gpu(lambda: fake_driver(api), 5, PAGE, ("memory.backends:fake_driver",))


def cpu_peer(pool):
    return CpuPeerMemory(pool.export(), pool.capacity, pool.page_bytes)


def test_the_cpu_pool_keeps_its_contract():
    assert set(memory.cpu_pool()["figures"]) == {"huge_bytes_of_4096", "huge_bytes_of_2097152"}


def test_a_pool_that_loses_values_is_found_out(monkeypatch):
    pool = CpuPagePool(12, 4096)
    map_run = pool._map_run
    monkeypatch.setattr(pool, "_map_run", lambda address, page, count: map_run(address, 0, count))
    with pytest.raises(AssertionError, match="lost its values"):
        memory.contract(pool, cpu_peer)
    pool.close()


def test_the_cpu_kernels_agree_with_their_twins():
    assert max(kernels.cpu()["figures"]["largest_error"].values()) < 1e-5


def test_a_kernel_that_is_off_is_found_out(monkeypatch):
    attend = reference.attend
    monkeypatch.setattr(reference, "attend", lambda q, kv, first, scale: attend(q, kv, first, scale * 1.01))
    with pytest.raises(AssertionError, match="decode attention is off"):
        kernels.cpu()


def test_the_cuda_pool_keeps_its_contract(device, api):
    gpu.pool_contract(device)
    assert api.leaks() == {}


def test_another_process_reads_the_pages_of_a_cuda_pool(device, api):
    assert gpu.peer_process(device)["figures"]["pages_seen_by_another_process"] == 4
    assert api.leaks() == {}


def test_costs_are_timed_for_every_run_and_leave_nothing(device, api):
    figures = vmm.costs(device, pages=16, runs=(1, 4, 8))["figures"]
    assert set(figures["by_run"]) == {"1", "4", "8"}
    assert all(seconds > 0 for cost in figures["by_run"].values() for seconds in cost.values())
    assert api.calls.count("cuMemSetAccess") == 3 * 9 + 9
    assert api.leaks() == {}


def test_costs_are_split_into_those_of_a_page_and_of_a_range():
    by_run = {
        n: {"map_s": 2e-6 * n, "access_s": 30e-6 + 1e-6 * n, "unmap_s": 10e-6 + 4e-6 * n} for n in (1, 8, 64, 512)
    }
    assert vmm.fields_of(by_run) == pytest.approx({"map_s": 3e-6, "unmap_s": 4e-6, "range_s": 20e-6})
    flat = {n: {"map_s": 5e-6 * n, "access_s": 0.0, "unmap_s": 1e-6 * n} for n in (1, 512)}
    assert vmm.fields_of(flat) == pytest.approx({"map_s": 5e-6, "unmap_s": 1e-6, "range_s": 0.0}, abs=1e-12)


def test_what_is_measured_for_the_simulator_has_the_names_of_hardware_files(device):
    known = {field.name for field in dataclasses.fields(TransformCosts)}
    measured = [vmm.costs(device, 4, (1, 4)), gpu.copies(device, sizes=(PAGE,))]
    for each in measured:
        assert each["figures"]["hardware"].keys() <= known


def test_the_budget_is_what_the_device_says(device, api):
    found = gpu.budget(device, most_bytes=64 * PAGE)
    assert found["figures"]["taken_bytes"] == found["figures"]["budget_bytes"] == 64 * PAGE
    assert all(goal["met"] for goal in found["goals"])
    assert api.leaks() == {}


def test_a_pool_that_takes_less_than_its_budget_is_found_out(device, monkeypatch):
    """As one would that creates memory when it is mapped: the budget would not be its own."""
    create = CudaPagePool.__init__

    def late(pool, capacity, page_bytes, name="gyges", *, driver=None):
        create(pool, capacity // 2, page_bytes, name, driver=driver)

    monkeypatch.setattr(CudaPagePool, "__init__", late)
    with pytest.raises(AssertionError, match="took"):
        gpu.budget(device, most_bytes=64 * PAGE)


def test_copies_are_timed_at_every_size(device, api):
    rates = gpu.copies(device, sizes=(PAGE, 4 * PAGE))["figures"]["bytes_per_s"]
    assert set(rates) == {str(PAGE), str(4 * PAGE)}
    assert min(rates.values()) > 0
    assert api.leaks() == {}


@needs_interpreter
def test_a_merge_and_a_split_on_cuda_devices_find_everything_again(device, api):
    size = Size("tiny", 2560 * 1024, 16 * PAGE, ("shard-pages",))
    found = transformations(device, size)
    padded, packed, by_driver = found["figures"]["cells"].values()
    assert padded["merge"]["weights_bytes"] == 0 < packed["merge"]["weights_bytes"]
    assert padded["merge"]["kv_bytes"] == by_driver["merge"]["kv_bytes"] > 0
    assert found["goals"][1]["met"]
    assert api.leaks() == {}


@needs_interpreter
def test_workers_that_share_a_gpu_sum_by_peer_memory_and_by_way_of_the_host(device):
    found = gpu_collectives.shared_gpu(2, sizes=(4096, 64), calls=3, driver=device.peer_arguments[0])
    for way in ("peer", "staged"):
        assert all(found["figures"][way][size]["p99_us"] > 0 for size in ("4096", "64"))
    assert [goal["unit"] for goal in found["goals"]] == ["ratio", "ratio"]


@needs_interpreter
def test_a_sum_that_misses_a_part_is_found_out(device, monkeypatch, tmp_path):
    """As where a worker does not wait for its peers: it reads what they put two calls ago."""
    (tmp_path / "sitecustomize.py").write_text(BROKEN)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]]))
    with pytest.raises(ChildError, match=r"peer: worker \d ended with exit code 1: AssertionError: sum \d+ is"):
        all_reduce_times("peer", 2, 64, 1, 60.0, device.peer_arguments[0])


BROKEN = """
import sys
if "gyges.bench.allreduce" in sys.orig_argv:
    from gyges.parallel.peer_device import CudaPeerDevice
    put = CudaPeerDevice.put
    CudaPeerDevice.put = lambda self, x, parity: put(self, x, parity) if x[0] < 9 else None
"""


@needs_interpreter
def test_kernel_checks_run_in_small_form_and_name_their_goals():
    cpu, small = torch.device("cpu"), {"page_bytes": PAGE, "copy_bytes": 1 << 16, "kernels": "triton"}
    found = gpu_kernels.attention(
        cpu, AttentionBench(("tiny",), batches=(1, 500), contexts=(20,), repeats=1, memory_bytes=1 << 20, **small)
    )
    assert "4 not reached or too large" in found["summary"]
    assert [goal["unit"] for goal in found["goals"]] == ["ratio", "ratio"]
    assert found["goals"][1]["reached"] > 0
    bench = StepBench("tiny", "float32", "header-centric", (1,), 10, 1, **small, beside_transformers=False)
    assert len(gpu_kernels.steps(cpu, bench)["goals"]) == 1
    copies = gpu_kernels.copies(cpu, CopyBench("tiny", kv_bytes=64 << 10, page_bytes=PAGE, repeats=1))
    assert "shard-pages" in copies["summary"]
    rows = gpu_kernels.tuning(
        cpu, shape="tiny", batch=1, context=20, repeats=1, page_bytes=PAGE, memory_bytes=1 << 18, deadline_s=-1.0
    )
    assert len(rows["figures"]["rows"]) == 1


def test_a_goal_is_not_met_by_what_was_not_measured():
    nothing = gpu_kernels.attention(
        torch.device("cpu"),
        AttentionBench(("tiny",), contexts=(20,), memory_bytes=1, copy_bytes=1 << 16, kernels="cpu", deadline_s=-1),
    )
    assert [goal["met"] for goal in nothing["goals"]] == [None, None]

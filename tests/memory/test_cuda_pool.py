"""The CUDA pool's calls to the driver: their order, what they wait for, what they leave behind, what they say when one fails."""

import importlib.util
import os
import re
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from memory.backends import fake_driver
from memory.fake_driver import CUresult, FakeCuda

from gyges.errors import UserError
from gyges.memory import cuda_driver, cuda_ipc, dlpack
from gyges.memory.cuda import CudaPagePool, CudaPeerMemory
from gyges.memory.cuda_driver import CudaDriver, CudaError

PAGE = 4096


@pytest.fixture
def api():
    return FakeCuda()


def make_pool(api: FakeCuda, capacity: int = 8) -> CudaPagePool:
    return CudaPagePool(capacity, PAGE, driver=fake_driver(api))


def test_all_memory_is_taken_at_once_and_stays_the_same(api):
    pool = make_pool(api, 6)
    where = pool.reserve("kv", 16)
    taken = [api.memory_bytes - pool.driver.memory()[0]]
    for slots in ([0, 1, 2], [9, 4], [15]):
        pool.map(where, slots)
        taken.append(api.memory_bytes - pool.driver.memory()[0])
    pool.unmap(where, [0, 9])
    taken.append(api.memory_bytes - pool.driver.memory()[0])
    assert set(taken) == {6 * PAGE}
    pool.close()
    assert api.leaks() == {}


def test_a_run_of_pages_gets_access_in_one_call(api):
    pool = make_pool(api)
    where = pool.reserve("kv", 8)
    api.calls.clear()
    pool.map(where, [2, 3, 4, 6])
    assert api.calls == ["cuMemMap"] * 3 + ["cuMemSetAccess"] + ["cuMemMap", "cuMemSetAccess"]
    api.calls.clear()
    pool.unmap(where, [2, 3, 4])
    assert api.calls == ["cuCtxSynchronize", "cuMemUnmap"]
    pool.close()


def test_nothing_is_unmapped_while_a_kernel_may_read_it(api):
    pool = make_pool(api)
    where = pool.reserve("kv", 8)
    pool.map(where, range(4))
    api.launch(5, where.address + PAGE, PAGE)
    pool.unmap(where, [1])
    api.launch(5, where.address, PAGE)
    pool.clear()
    pool.close()
    assert api.leaks() == {}


def test_only_streams_that_touch_pages_are_waited_for(api):
    pool = make_pool(api)
    pool.watch(5, 6)
    where, elsewhere = pool.reserve("kv", 4), pool.reserve("weights", 4)
    pool.map(where, [0])
    pool.map(elsewhere, [0])
    api.launch(5, where.address, PAGE)
    api.launch(9, elsewhere.address, PAGE)  # somebody who promised not to touch what is given up
    api.calls.clear()
    pool.unmap(where, [0])
    assert api.calls == ["cuStreamSynchronize", "cuStreamSynchronize", "cuMemUnmap"]
    assert 9 in api.running
    pool.close()


def test_a_failed_map_undoes_what_it_did(api):
    pool = make_pool(api)
    where = pool.reserve("kv", 8)
    api.fail("cuMemMap", CUresult.CUDA_ERROR_INVALID_VALUE, after=3)
    with pytest.raises(CudaError, match=r"cuMemMap \(4\.0 KiB at 0x"):
        pool.map(where, [0, 1, 4, 5])
    assert (pool.free_pages, len(api.mappings)) == (8, 0)
    api.fail("cuMemSetAccess", CUresult.CUDA_ERROR_INVALID_VALUE)
    with pytest.raises(CudaError, match="cuMemSetAccess"):
        pool.map(where, [0, 1])
    assert (pool.free_pages, len(api.mappings)) == (8, 0)
    pool.map(where, range(8))
    pool.close()
    assert api.leaks() == {}


@pytest.mark.parametrize("call", ["cuMemGetInfo", "cuMemCreate"])
def test_a_pool_that_cannot_be_made_leaves_nothing(api, call):
    api.fail(call, CUresult.CUDA_ERROR_ILLEGAL_ADDRESS, after=0 if call == "cuMemGetInfo" else 3)
    with pytest.raises(CudaError, match=f"{call}.*CUDA_ERROR_ILLEGAL_ADDRESS: cuda error illegal address"):
        make_pool(api)
    assert api.leaks() == {}


def test_memory_that_runs_out_on_the_way_is_the_users_to_remedy(api):
    api.fail("cuMemCreate", CUresult.CUDA_ERROR_OUT_OF_MEMORY, after=5)
    with pytest.raises(UserError, match="--device-memory"):
        make_pool(api)
    assert api.leaks() == {}


def test_a_page_that_is_no_multiple_of_the_granule_names_the_remedy(api):
    api.granule = 2 << 20
    with pytest.raises(UserError, match="--page-size 2048KiB"):
        make_pool(api)
    assert api.leaks() == {}


@pytest.mark.parametrize(("attribute", "words"), [(102, "cannot map pages"), (103, "hand pages to other processes")])
def test_a_device_that_cannot_do_it_is_refused(api, attribute, words):
    api.attributes[attribute] = 0
    with pytest.raises(UserError, match=words):
        fake_driver(api)
    assert api.leaks() == {}


def test_a_machine_without_a_driver_is_told_what_to_do(api, monkeypatch):
    """cuda-bindings raise a RuntimeError of their own then."""

    def none(flags):
        raise RuntimeError("libcuda.so.1 was not found")

    monkeypatch.setattr(api, "cuInit", none)
    with pytest.raises(UserError, match="no NVIDIA driver here"):
        fake_driver(api)


def test_a_driver_that_does_not_start_is_named(api):
    api.fail("cuInit", CUresult.CUDA_ERROR_INVALID_DEVICE)
    with pytest.raises(UserError, match="does not start: cuInit: CUDA_ERROR_INVALID_DEVICE"):
        fake_driver(api)


def test_a_device_that_is_not_there_is_named():
    with pytest.raises(UserError, match="no GPU 3: 2 visible"):
        CudaDriver(3, FakeCuda(devices=2), (dlpack.CPU, 0))


def test_without_the_extra_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cuda.bindings", None)
    with pytest.raises(UserError, match=re.escape("pip install 'gyges[cuda]'")):
        cuda_driver.load_bindings()


# -- peers ------------------------------------------------------------------------------------------------------------


def test_a_peer_of_another_process_keeps_the_pages_it_has_opened():
    """Each side has a driver of its own, as two processes have."""
    ours, theirs = FakeCuda(), FakeCuda()
    pool = make_pool(ours, 3)
    where = pool.reserve("kv", 4)
    pool.map(where, [2, 3])
    where.tensor(torch.uint8, (2 * PAGE,), 2 * PAGE).fill_(9)
    descriptors = tuple(os.dup(fd) for fd in pool.export())
    driver = fake_driver(theirs)
    peer = CudaPeerMemory(descriptors, 3, PAGE, driver=driver)
    for fd in descriptors:
        os.close(fd)
    pages = peer.pages(where).tolist()
    assert pages[:2] == [-1, -1]
    pool.close()
    seen = peer.tensor().view(3, PAGE)[pages[2:]]
    assert (seen == 9).all(), "memory lives as long as somebody has it mapped"
    peer.close()
    driver.close()
    assert ours.leaks() == theirs.leaks() == {}


def test_peers_read_only_where_the_driver_can_and_else_both(api):
    pool = make_pool(api, 2)
    api.read_only = False
    peer = CudaPeerMemory(pool.export(), 2, PAGE, driver=pool.driver)
    assert {m.access for at, m in api.mappings.items() if at >= peer.address} == {3}
    peer.close()
    pool.close()
    assert api.leaks() == {}


def test_a_peer_that_cannot_be_opened_leaves_nothing(api):
    pool = make_pool(api, 4)
    api.fail("cuMemImportFromShareableHandle", CUresult.CUDA_ERROR_INVALID_VALUE, after=2)
    with pytest.raises(CudaError, match="cuMemImportFromShareableHandle"):
        CudaPeerMemory(pool.export(), 4, PAGE, driver=pool.driver)
    assert len(api.reserved) == len(api.mappings) == 0
    pool.close()
    assert api.leaks() == {}


def test_a_peer_that_still_copies_is_waited_for(api):
    pool = make_pool(api, 2)
    peer = CudaPeerMemory(pool.export(), 2, PAGE, driver=pool.driver)
    api.launch(3, peer.address, PAGE)
    peer.close()
    pool.close()
    assert api.leaks() == {}


def test_exported_descriptors_are_one_for_each_page_and_not_inherited(api):
    pool = make_pool(api, 2)
    descriptors = pool.export()
    assert len(descriptors) == 1 + 2
    assert not any(os.get_inheritable(fd) for fd in descriptors)
    pool.close()


def test_more_pages_than_open_files_names_the_remedy(api, monkeypatch):
    pool = make_pool(api, 4)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (64, 128))
    with pytest.raises(UserError, match=r"handing 4 pages .*ulimit -Hn \d+\), or give a larger --page-size"):
        pool.export()
    pool.close()
    assert api.leaks() == {}


def test_the_limit_of_open_files_is_raised_as_far_as_needed(api, monkeypatch):
    pool = make_pool(api, 4)
    asked = []
    monkeypatch.setattr(resource, "getrlimit", lambda which: (64, 100_000))
    monkeypatch.setattr(resource, "setrlimit", lambda which, limits: asked.append(limits))
    before = len(os.listdir("/proc/self/fd"))
    pool.export()
    ((soft, hard),) = asked
    assert (soft > before + 4, hard) == (True, 100_000), "what is open already counts"
    pool.export()
    assert len(asked) == 1
    pool.close()


def test_a_broken_context_does_not_hide_what_broke_it(api):
    pool = make_pool(api, 2)
    pool.map(pool.reserve("kv", 2), [0])
    peer = CudaPeerMemory(pool.export(), 2, PAGE, driver=pool.driver)
    api.fail("cuCtxSynchronize", CUresult.CUDA_ERROR_ILLEGAL_ADDRESS)
    peer.close()
    api.fail("cuCtxSynchronize", CUresult.CUDA_ERROR_ILLEGAL_ADDRESS)
    pool.close()  # the process ends next, and the memory with it


# -- the driver -------------------------------------------------------------------------------------------------------


def test_copies_need_access_on_both_sides_and_keep_the_order_of_their_stream(api):
    pool = make_pool(api, 3)
    where = pool.reserve("kv", 3)
    pool.map(where, [0, 2])
    where.tensor(torch.uint8, (PAGE,)).fill_(7)
    pool.driver.copy(where.address + 2 * PAGE, where.address, PAGE, 5)
    with pytest.raises(AssertionError, match="not mapped"):
        pool.driver.copy(where.address + PAGE, where.address, PAGE, 5)
    pool.driver.wait(5)
    assert (where.tensor(torch.uint8, (PAGE,), 2 * PAGE) == 7).all()
    pool.close()


def test_views_outlive_nothing_and_leak_nothing(api):
    pool = make_pool(api, 2)
    where = pool.reserve("kv", 2)
    pool.map(where, [0, 1])
    views = [where.tensor(torch.float32, (2, 8, 16)) for _ in range(50)]
    views[0].copy_(torch.arange(256.0).view(2, 8, 16))
    assert torch.equal(views[-1], torch.arange(256.0).view(2, 8, 16))
    assert np.shares_memory(views[1].numpy(), views[2].numpy())
    assert where.tensor(torch.float32, (0, 4)).shape == (0, 4)
    with pytest.raises(AssertionError, match="leaves range 'kv'"):
        where.tensor(torch.uint8, (2 * PAGE,), 1)
    del views
    pool.close()
    assert api.leaks() == {}


def test_every_function_that_is_called_exists_in_the_bindings():
    if importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.bindings") is None:
        pytest.skip("needs cuda-bindings")
    from cuda.bindings import driver

    source = Path(cuda_driver.__file__).read_text() + Path(cuda_ipc.__file__).read_text()
    called = set(re.findall(r'_call\(\s*"(\w+)"', source)) | {"cuGetErrorName", "cuGetErrorString"}
    named = set(re.findall(r"api\.(CU\w+)", source)) | set(re.findall(r"\b(CU_\w+|CUDA_ERROR_\w+)\b", source))
    enums = [getattr(driver, name) for name in dir(driver) if name.startswith("CU")]
    values = {value for enum in enums if hasattr(enum, "__members__") for value in enum.__members__}
    assert len(called) > 12
    assert not {name for name in called if not callable(getattr(driver, name, None))}
    assert not {name for name in named if not hasattr(driver, name) and name not in values}

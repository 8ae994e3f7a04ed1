"""Memory and events between processes, on the fake driver: each side has one of its own, as two processes have."""

import ctypes

import pytest
import torch
from memory.backends import fake_driver
from memory.fake_driver import CUresult, FakeCuda

from gyges.memory.cuda_driver import CudaError
from gyges.memory.cuda_ipc import HANDLE_BYTES
from gyges.memory.dlpack import tensor_at

SIZE = 8192


@pytest.fixture
def sides():
    return fake_driver(FakeCuda()), fake_driver(FakeCuda())


def values(driver, address: int) -> torch.Tensor:
    return tensor_at(address, torch.uint8, (SIZE,), driver.dlpack_device)


def test_what_one_side_writes_the_other_reads_until_both_have_given_it_up(sides):
    ours, theirs = sides
    own = ours.allocate(SIZE)
    handle = ours.memory_handle(own)
    assert len(handle) == HANDLE_BYTES
    seen = theirs.open_memory(handle)
    values(ours, own).fill_(7)
    assert (values(theirs, seen) == 7).all()
    with pytest.raises(AssertionError, match="another process has open"):
        ours.free(own)
    theirs.close_memory(seen)
    ours.free(own)
    for side in sides:
        side.close()
        assert side.api.leaks() == {}


def test_an_event_is_followed_once_somebody_has_recorded_it(sides):
    ours, theirs = sides
    event = ours.shared_event()
    seen = theirs.open_event(ours.event_handle(event))
    with pytest.raises(AssertionError, match="nobody has recorded"):
        theirs.follow(5, seen)
    ours.mark(event, 3)
    theirs.follow(5, seen)
    with pytest.raises(AssertionError, match="another process has open"):
        ours.destroy(event)
    theirs.destroy(seen)
    ours.destroy(event)
    for side in sides:
        side.close()
        assert side.api.leaks() == {}


def test_handles_of_nothing_known_are_refused(sides):
    ours, theirs = sides
    own = ours.allocate(SIZE)
    pages = ours.reserve(4096)
    with pytest.raises(AssertionError, match="nothing known"):
        theirs.open_memory(bytes(HANDLE_BYTES))
    with pytest.raises(AssertionError, match="by the process that made it"):
        ours.open_memory(ours.memory_handle(own))
    with pytest.raises(AssertionError, match="no start of what cuMemAlloc gave"):
        ours.memory_handle(own + 4096)
    with pytest.raises(AssertionError, match="no start of what cuMemAlloc gave"):
        ours.memory_handle(pages)
    with pytest.raises(AssertionError, match="nothing known"):
        theirs.open_event(ours.memory_handle(own))
    with pytest.raises(AssertionError, match="a handle of 3 bytes"):
        theirs.open_memory(b"abc")


def test_memory_that_a_kernel_may_still_touch_is_neither_closed_nor_freed(sides):
    ours, theirs = sides
    own = ours.allocate(SIZE)
    seen = theirs.open_memory(ours.memory_handle(own))
    theirs.api.launch(4, seen + 100, 1)
    with pytest.raises(AssertionError, match="closed while kernels"):
        theirs.close_memory(seen)
    theirs.wait(4)
    theirs.close_memory(seen)
    ours.api.launch(4, own, 1)
    with pytest.raises(AssertionError, match="freed while kernels"):
        ours.free(own)


def test_what_is_not_given_back_is_counted_and_a_device_has_only_so_much(sides):
    ours, _ = sides
    ours.allocate(SIZE)
    ours.shared_event()
    assert ours.api.leaks() == {"shared": 1, "events": 1, "contexts": 1, "bytes": SIZE}
    with pytest.raises(CudaError, match=r"cuMemAlloc \(1\.00 GiB\): CUDA_ERROR_OUT_OF_MEMORY"):
        ours.allocate(1 << 30)


def test_a_handle_is_taken_from_where_the_bindings_keep_it(sides):
    """They show the address of a structure; its fields have come and gone."""
    ours, _ = sides
    own = ours.allocate(SIZE)
    result, handle = ours.api.cuIpcGetMemHandle(own)
    assert result == CUresult.CUDA_SUCCESS
    assert ours.memory_handle(own) == ctypes.string_at(handle.getPtr(), HANDLE_BYTES)

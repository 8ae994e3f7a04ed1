"""The backends of gyges.memory for the contract tests: CPU, CUDA on the fake driver, CUDA on a GPU where there is one."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from memory.fake_driver import FakeCuda

from gyges.kernels.triton import interpreting, why_not
from gyges.memory import dlpack
from gyges.memory.cpu import CpuPagePool, CpuPeerMemory
from gyges.memory.cuda import CudaPagePool, CudaPeerMemory
from gyges.memory.cuda_driver import CudaDriver


@dataclass(frozen=True)
class Backend:
    """``make(capacity, page bytes)`` and ``peer(pool)``; ``on_host``: an address of it can be touched by this process."""

    name: str
    page: int
    make: Callable[[int, int], Any]
    peer: Callable[[Any], Any]
    on_host: bool = True


def fake_driver(api: FakeCuda | None = None) -> CudaDriver:
    """A driver whose device is this machine's memory."""
    return CudaDriver(0, api or FakeCuda(), (dlpack.CPU, 0))


def _cuda_peer(pool: CudaPagePool) -> CudaPeerMemory:
    return CudaPeerMemory(pool.export(), pool.capacity, pool.page_bytes, driver=pool.driver)


CPU = Backend("cpu", 4096, CpuPagePool, lambda pool: CpuPeerMemory(pool.export(), pool.capacity, pool.page_bytes))
FAKE_CUDA = Backend(
    "cuda-fake", 4096, lambda capacity, page: CudaPagePool(capacity, page, driver=fake_driver()), _cuda_peer
)
GPU = Backend("cuda", 2 << 20, lambda capacity, page: CudaPagePool(capacity, page), _cuda_peer, on_host=False)

# Triton kernels over memory of this machine: in a process that compiles kernels they cannot run.
NO_INTERPRETER = not interpreting() or bool(why_not(torch.device("cpu")))
needs_interpreter = pytest.mark.skipif(NO_INTERPRETER, reason="needs Triton's interpreter")

HAS_GPU = torch.cuda.is_available() and importlib.util.find_spec("cuda.bindings") is not None
BACKENDS = [
    pytest.param(CPU, id=CPU.name),
    pytest.param(FAKE_CUDA, id=FAKE_CUDA.name),
    pytest.param(GPU, id=GPU.name, marks=pytest.mark.skipif(not HAS_GPU, reason="needs a GPU and cuda-bindings")),
]

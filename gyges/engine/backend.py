"""What a worker's device is made of, by kind: where tensors are, kernels, the memory that transformations work on, collectives.

    cpu     this machine's memory and cores: numba kernels, memfd pages, sums over shared memory
    cuda    GPU number worker % GPUs: Triton kernels, CUDA VMM pages, NCCL or peer memory, decode steps as CUDA graphs where
            addresses stay. Workers may share a GPU, each under its own budget. Not yet run on hardware

Called in the worker's process, before anything is placed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from gyges.config import EngineConfig
from gyges.errors import UserError
from gyges.kernels.base import KernelSet
from gyges.kernels.sets import make_kernels
from gyges.registry import Registry
from gyges.transform.memory import CpuMemory, DeviceMemory


@dataclass(frozen=True, slots=True)
class Backend:
    """collectives: those that "auto" chooses.   graphs: whether decode steps can be recorded.   driver: of the GPU,
    gyges.memory.cuda_driver.   keep: lives as long as this."""

    device: torch.device
    kernels: KernelSet
    memory: DeviceMemory
    collectives: str = "shm"
    graphs: bool = False
    driver: Any = None
    keep: Any = None

    def finish(self) -> None:
        """Until this worker's kernels are done: what they have written may be copied, what they have read may be overwritten."""
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()


@dataclass(frozen=True, slots=True)
class _Wanted:
    config: EngineConfig
    worker: int
    dtype: str
    head_dim: int


_KINDS: Registry[Callable[[_Wanted], Backend]] = Registry("device")


def open_backend(config: EngineConfig, worker: int, dtype: str, head_dim: int) -> Backend:
    """Raises UserError if there is no such device here, or nothing to run on it."""
    return _KINDS.get(config.device)(_Wanted(config, worker, dtype, head_dim))


@_KINDS.register("cpu")
def _cpu(wanted: _Wanted) -> Backend:
    from gyges.kernels import copy as copy_kernel
    from gyges.kernels import cpu

    cpu.set_threads(wanted.config.worker_threads)
    cpu.warm(wanted.dtype == "bfloat16", wanted.head_dim)
    if wanted.config.transforms:
        copy_kernel.warm()
    device = torch.device("cpu")
    return Backend(device, make_kernels(device), CpuMemory())


@_KINDS.register("cuda")
def _cuda(wanted: _Wanted) -> Backend:
    from gyges.memory.cuda_driver import CudaDriver
    from gyges.transform.memory import CudaMemory

    if not torch.cuda.is_available():
        raise UserError("torch sees no GPU here: use --device cpu; gyges doctor says what is missing")
    count = torch.cuda.device_count()
    device = torch.device("cuda", wanted.worker % count)
    torch.cuda.set_device(device)
    stream = torch.cuda.Stream(device)
    driver = CudaDriver(device.index)
    kernels = torch.cuda.current_stream(device)
    memory = CudaMemory(driver, stream.cuda_stream, model_stream=kernels.cuda_stream)
    collectives = "nccl" if wanted.config.num_devices <= count else "peer"
    return Backend(device, make_kernels(device), memory, collectives, True, driver, stream)

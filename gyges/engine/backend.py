"""What a worker's device is made of, by kind: where tensors are, kernels, the memory that transformations work on, collectives.

    cpu     this machine's memory and cores: numba kernels, memfd pages, sums over shared memory
    cuda    GPU number worker % GPUs: Triton kernels, CUDA VMM pages, collectives by way of the host, decode steps as CUDA graphs
            where nothing can change under them. Workers may share a GPU, each under its own budget. Not yet run on hardware

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
from gyges.parallel.comm import Comm
from gyges.registry import Registry
from gyges.transform.memory import CpuMemory, DeviceMemory


@dataclass(frozen=True, slots=True)
class Backend:
    """``collective``: makes a communicator of host memory one of this device's tensors.   graphs: whether decode steps can be
    recorded.   keep: lives as long as this."""

    device: torch.device
    kernels: KernelSet
    memory: DeviceMemory
    collective: Callable[[Comm], Comm] = lambda comm: comm
    graphs: bool = False
    keep: Any = None

    def finish(self) -> None:
        """Until this worker's kernels are done: its peers may read what a step has written."""
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
    from gyges.parallel.staged import StagedComm
    from gyges.transform.memory import CudaMemory

    if not torch.cuda.is_available():
        raise UserError("torch sees no GPU here: use --device cpu; gyges doctor says what is missing")
    device = torch.device("cuda", wanted.worker % torch.cuda.device_count())
    torch.cuda.set_device(device)
    stream = torch.cuda.Stream(device)
    memory = CudaMemory(CudaDriver(device.index), stream.cuda_stream)
    return Backend(device, make_kernels(device), memory, lambda comm: StagedComm(comm, device), True, stream)

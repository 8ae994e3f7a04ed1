"""Kernel sets by name, and which one a device gets. A set is imported when it is asked for: numba and triton are heavy."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from gyges.registry import Registry

if TYPE_CHECKING:
    import torch

    from gyges.kernels.base import KernelSet

KERNEL_SETS: Registry[Callable[[torch.device], KernelSet]] = Registry("kernel set")


@KERNEL_SETS.register("cpu")
def _cpu(device: torch.device) -> KernelSet:
    from gyges.kernels.cpu_set import CpuKernels

    return CpuKernels()


@KERNEL_SETS.register("triton")
def _triton(device: torch.device) -> KernelSet:
    from gyges.kernels.triton import require_triton

    require_triton(device)
    from gyges.kernels.triton.kernel_set import TritonKernels

    return TritonKernels(device)


def make_kernels(device: torch.device, name: str = "auto") -> KernelSet:
    """``auto``: numba on a CPU, Triton elsewhere. Raises UserError for a set that cannot run on this device."""
    if name == "auto":
        name = "cpu" if device.type == "cpu" else "triton"
    return KERNEL_SETS.get(name)(device)

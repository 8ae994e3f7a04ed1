"""The kernel set of GPUs. It attends in the model's dtype; sums and softmax are float32."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from gyges.kernels.base import PagedCache
from gyges.kernels.triton import decode, prefill, write


class TritonKernels:
    """See :class:`gyges.kernels.base.KernelSet`. Arrays are tensors on the device."""

    name = "triton"

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.tuning = decode.DecodeTuning()
        self.multiprocessors = 1
        if device.type == "cuda":
            self.multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count

    def array(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).to(self.device, non_blocking=True)

    def cache(
        self, flat: torch.Tensor, heads: np.ndarray, kv_stride: int, token_stride: int, block_size: int
    ) -> PagedCache:
        return PagedCache(flat, self.array(heads), kv_stride, token_stride, block_size)

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        return F.rms_norm(x, weight.shape, weight, eps)

    def rope_write(
        self,
        q_NHD: torch.Tensor,
        kv_NS2PD: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        positions: torch.Tensor,
        slots: torch.Tensor,
        cache: PagedCache,
        base: int,
    ) -> torch.Tensor:
        write.rope_write(q_NHD, kv_NS2PD, cos, sin, positions, slots, cache, base)
        return q_NHD

    def decode_attention(
        self,
        q_BKGD: torch.Tensor,
        cache: PagedCache,
        base: int,
        tables: torch.Tensor,
        lengths: torch.Tensor,
        scale: float,
        out: torch.Tensor,
    ) -> None:
        decode.decode_attention(
            q_BKGD, cache, base, tables, lengths, scale, out, tuning=self.tuning, multiprocessors=self.multiprocessors
        )

    def prefill_attention(
        self,
        q_NHD: torch.Tensor,
        cache: PagedCache,
        base: int,
        table: torch.Tensor,
        start: int,
        scale: float,
        out: torch.Tensor,
    ) -> None:
        prefill.prefill_attention(q_NHD, cache, base, table, start, scale, out)

"""The CPU's kernel set: numba for decode and writes, torch's fused attention over gathered context for prefill.

It attends in float32, whatever the cache's dtype is.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from gyges.kernels import cpu
from gyges.kernels.base import PagedCache


def raw(values: torch.Tensor) -> np.ndarray:
    """The same memory for numba: bfloat16 as its bits in uint16, since numpy has none."""
    return values.view(torch.uint16).numpy() if values.dtype == torch.bfloat16 else values.numpy()


class CpuKernels:
    """See :class:`gyges.kernels.base.KernelSet`. Arrays are numpy's."""

    name = "cpu"
    device = torch.device("cpu")

    def array(self, values: np.ndarray) -> np.ndarray:
        return values

    def cache(
        self, flat: torch.Tensor, heads: np.ndarray, kv_stride: int, token_stride: int, block_size: int
    ) -> PagedCache:
        return PagedCache(raw(flat), heads, kv_stride, token_stride, block_size)

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """torch's is half a dozen passes; in fp32 the kernel makes one."""
        if x.dtype != torch.float32 or not x.is_contiguous():
            return F.rms_norm(x, weight.shape, weight, eps)
        out = torch.empty_like(x)
        size = x.shape[-1]
        cpu.rms_norm(x.view(-1, size).numpy(), weight.numpy(), eps, out.view(-1, size).numpy())
        return out

    def rope_write(
        self,
        q_NHD: torch.Tensor,
        kv_NS2PD: torch.Tensor,
        cos: np.ndarray,
        sin: np.ndarray,
        positions: np.ndarray,
        slots: np.ndarray,
        cache: PagedCache,
        base: int,
    ) -> torch.Tensor:
        q_NHD, kv_NS2PD = q_NHD.float(), kv_NS2PD.float()
        cpu.rope_write(
            q_NHD.numpy(),
            kv_NS2PD.numpy(),
            cos,
            sin,
            positions,
            slots,
            cache.values,
            base,
            cache.heads,
            cache.kv_stride,
        )
        return q_NHD

    def decode_attention(
        self,
        q_BKGD: torch.Tensor,
        cache: PagedCache,
        base: int,
        tables: np.ndarray,
        lengths: np.ndarray,
        scale: float,
        out: torch.Tensor,
    ) -> None:
        cpu.decode_attention(
            q_BKGD.numpy(), cache.values, base, tables, lengths, cache.heads, cache.kv_stride, cache.token_stride,
            cache.block_size, scale, out.numpy(),
        )  # fmt: skip

    def prefill_attention(
        self,
        q_NHD: torch.Tensor,
        cache: PagedCache,
        base: int,
        table: np.ndarray,
        start: int,
        scale: float,
        out: torch.Tensor,
    ) -> None:
        n, _, dim = q_NHD.shape
        t = start + n
        dtype = torch.bfloat16 if cache.values.dtype == np.uint16 else torch.float32
        context = torch.empty((2, len(cache.heads), t, dim), dtype=dtype)
        cpu.gather_context(
            cache.values,
            base,
            table,
            t,
            cache.heads,
            cache.kv_stride,
            cache.token_stride,
            cache.block_size,
            raw(context),
        )
        k, v = context.float()[:, None]
        mask = None
        if start:
            hidden = torch.arange(t)[None, :] > start + torch.arange(n)[:, None]
            mask = torch.zeros(n, t).masked_fill_(hidden, -torch.inf)
        attended = F.scaled_dot_product_attention(
            q_NHD.transpose(0, 1)[None], k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True
        )
        out.copy_(attended[0].transpose(0, 1))

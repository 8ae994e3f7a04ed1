"""The contract of a kernel set: everything a decoder computes that depends on the kind of device.

Who calls it: the decoder, once per layer, with tensors on the set's device. Shapes as in gyges.models.decoder: N tokens, H query
heads, S KV shards of P heads, K = S x P local KV heads, G query heads for each, D head size, B decode rows, T context length.
A set is made by :func:`gyges.kernels.sets.make_kernels`; each of its kernels has a twin in gyges.kernels.reference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch


@dataclass(frozen=True, slots=True)
class PagedCache:
    """A worker's KV cache of all layers, in the array type of the set that made it (:meth:`KernelSet.cache`).

    values: flat over the whole address range, of which only what is mapped may be touched.   heads: int64 [K], element offset of
    each local KV head.   kv_stride, token_stride: elements.   block_size: tokens.
    """

    values: Any
    heads: Any
    kv_stride: int
    token_stride: int
    block_size: int


class KernelSet(Protocol):
    """``base`` below is the element offset of the layer; tables and slots hold element offsets of blocks and of tokens."""

    name: str
    device: torch.device

    def array(self, values: np.ndarray) -> Any:
        """Indices or constants as this set's kernels take them; once per step, not per layer."""
        ...

    def cache(
        self, flat: torch.Tensor, heads: np.ndarray, kv_stride: int, token_stride: int, block_size: int
    ) -> PagedCache:
        """``flat``: the address range as a tensor of the cache's dtype, fp32 or bf16."""
        ...

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """``x / sqrt(mean(x^2) + eps) * weight`` over the last axis."""
        ...

    def rope_write(
        self,
        q_NHD: torch.Tensor,
        kv_NS2PD: torch.Tensor,
        cos: Any,
        sin: Any,
        positions: Any,
        slots: Any,
        cache: PagedCache,
        base: int,
    ) -> torch.Tensor:
        """Writes rotated k, and v, to the cache, and returns rotated q: ``q_NHD`` itself, or a new tensor in the dtype in which
        the set attends. Both inputs are contiguous; cos and sin are float32 [positions, D / 2].
        """
        ...

    def decode_attention(
        self,
        q_BKGD: torch.Tensor,
        cache: PagedCache,
        base: int,
        tables: Any,
        lengths: Any,
        scale: float,
        out: torch.Tensor,
    ) -> None:
        """One query token per row against the first ``lengths[b]`` tokens of its context. tables [B, blocks], lengths [B]."""
        ...

    def prefill_attention(
        self, q_NHD: torch.Tensor, cache: PagedCache, base: int, table: Any, start: int, scale: float, out: torch.Tensor
    ) -> None:
        """Tokens at positions start .. start + N of one request, causally, against all it has so far. table [blocks]."""
        ...

"""What the paged attention kernels compute, said plainly in torch. Slow; the parity tests hold the others against it."""

from __future__ import annotations

import torch


def rotate(x_NHD: torch.Tensor, cos_NF: torch.Tensor, sin_NF: torch.Tensor) -> torch.Tensor:
    """Rotary embedding, half-split convention (as transformers'); F = D / 2."""
    a, b = x_NHD.float().chunk(2, dim=-1)
    cos, sin = cos_NF[:, None], sin_NF[:, None]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def context(
    cache: torch.Tensor,
    base: int,
    table: torch.Tensor,
    length: int,
    head_offsets: torch.Tensor,
    kv_stride: int,
    token_stride: int,
    block_size: int,
    head_dim: int,
) -> torch.Tensor:
    """K and V of one request's first ``length`` tokens, gathered from the flat cache: [2, Hk, length, D]."""
    t = torch.arange(length)
    at = base + table[t // block_size] + (t % block_size) * token_stride
    at = at[None, None, :, None] + head_offsets[None, :, None, None]
    at = at + torch.arange(2)[:, None, None, None] * kv_stride + torch.arange(head_dim)
    return cache[at]


def attend(q_NHD: torch.Tensor, kv: torch.Tensor, first_position: int, scale: float) -> torch.Tensor:
    """Causal attention of N query tokens at positions first_position.. over the context ``kv`` [2, Hk, T, D]."""
    n, heads, _dim = q_NHD.shape
    k, v = (x.float().repeat_interleave(heads // kv.shape[1], dim=0) for x in kv)
    scores = torch.einsum("nhd,htd->hnt", q_NHD.float(), k) * scale
    visible = torch.arange(k.shape[1])[None, :] <= first_position + torch.arange(n)[:, None]
    return torch.einsum("hnt,htd->nhd", scores.masked_fill(~visible, -torch.inf).softmax(-1), v)

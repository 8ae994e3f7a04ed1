"""What the kernels compute, said plainly in torch. Slow; the parity tests hold the others against it."""

from __future__ import annotations

import itertools

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


def combine(partial: torch.Tensor, logs: torch.Tensor) -> torch.Tensor:
    """Attention over a context from attention over its pieces: partial [S, ..., D], logs [S, ...], the natural logarithms of the
    pieces' softmax sums (-inf: an empty piece)."""
    return torch.einsum("s...,s...d->...d", logs.softmax(0), partial)


def write_kv(
    kv_NS2PD: torch.Tensor,
    cos_NF: torch.Tensor,
    sin_NF: torch.Tensor,
    slots: torch.Tensor,
    cache: torch.Tensor,
    base: int,
    head_offsets: torch.Tensor,
    kv_stride: int,
) -> None:
    """Rotated k, and v, of every token with a slot (the others' are negative) to the flat cache, head by head."""
    n, dim = kv_NS2PD.shape[0], kv_NS2PD.shape[-1]
    keys = rotate(kv_NS2PD[:, :, 0].reshape(n, -1, dim), cos_NF, sin_NF)
    values = kv_NS2PD[:, :, 1].reshape(n, -1, dim)
    for token in range(n):
        if slots[token] < 0:
            continue
        for head, offset in enumerate(head_offsets.tolist()):
            at = base + int(slots[token]) + offset
            cache[at : at + dim] = keys[token, head].to(cache.dtype)
            cache[at + kv_stride : at + kv_stride + dim] = values[token, head].to(cache.dtype)


def copy_runs(
    dst: torch.Tensor,
    src: torch.Tensor,
    dst_at: list[int],
    src_at: list[int],
    lengths: list[int],
    loops: tuple[tuple[int, int, int], ...] = (),
) -> None:
    """Runs of bytes from ``src`` to ``dst`` (uint8, flat), each repeated over the loops (count, source stride, target stride)."""
    for to, start, length in zip(dst_at, src_at, lengths, strict=True):
        for index in itertools.product(*(range(loop[0]) for loop in loops)):
            b = to + sum(i * loop[2] for i, loop in zip(index, loops, strict=True))
            a = start + sum(i * loop[1] for i, loop in zip(index, loops, strict=True))
            dst[b : b + length] = src[a : a + length]


def all_reduce(parts: list[torch.Tensor]) -> torch.Tensor:
    """The sum, in rank order and in float32, in the parts' dtype."""
    total = torch.zeros_like(parts[0], dtype=torch.float32)
    for part in parts:
        total += part.float()
    return total.to(parts[0].dtype)

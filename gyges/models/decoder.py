"""One decoder for Llama, Qwen2/2.5 and Qwen3 dense, written as for one device.

How it is sharded comes in from outside at every call (:class:`gyges.parallel.sharding.ParallelLayout`) and is never kept:
it changes at run time. On a shard the same lines run with fewer heads and FFN rows, and two sums over ranks per layer.

Shape legend: N tokens of the step, C hidden, H local query heads, S local KV shards, P KV heads per shard, D head_dim,
G query heads per local KV head, B decode rows, T context length.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from gyges.core import ModelGeometry
from gyges.kernels import cpu as kernels
from gyges.kv_cache.view import KVView
from gyges.models.config import DecoderConfig
from gyges.models.rope import cos_sin_table
from gyges.models.weights import DecoderWeights, LayerWeights
from gyges.parallel.comm import Comm
from gyges.parallel.sharding import ParallelLayout


@dataclass(slots=True)
class PrefillChunk:
    """Tokens ``rows`` of the part belong to one request and sit at positions ``start ..``; ``table``: block offsets."""

    rows: slice
    start: int
    table: np.ndarray

    @property
    def length(self) -> int:
        """Context length once this chunk is written."""
        return self.start + self.rows.stop - self.rows.start


@dataclass(slots=True)
class AttentionPart:
    """The M tokens of a step whose KV cache this worker holds in one way: first the ``B`` rows of one token, then the chunks.

    rows: int64 [M], which of the step's tokens; None: all of them, in order.   kv, layout: where, and which heads, here.
    positions, slots: int64 [M]; a slot is the element offset of the token's place in its block.
    tables: int64 [B, max blocks] block offsets; lengths: int64 [B] context lengths, the new token included.
    """

    rows: torch.Tensor | None
    kv: KVView
    layout: ParallelLayout
    positions: np.ndarray
    slots: np.ndarray
    tables: np.ndarray
    lengths: np.ndarray
    chunks: list[PrefillChunk] = field(default_factory=list)


@dataclass(slots=True)
class StepBatch:
    """The tokens of one step, int64 [N]. ``sample_rows``: int64, those whose next token is wanted.

    Usually there is one part. While a transformation runs, a request's heads may be spread over all workers (it is in the wide
    part of each) or over those of one narrow instance (in the narrow part of these, and nowhere else). The sum over all
    workers, which tensor parallelism takes anyway, is right for both.
    """

    tokens: torch.Tensor
    parts: list[AttentionPart]
    sample_rows: torch.Tensor | None = None


class Decoder:
    """Forward passes over weights that somebody else placed."""

    def __init__(self, config: DecoderConfig, geometry: ModelGeometry, max_positions: int) -> None:
        self.config, self.geometry = config, geometry
        self.cos, self.sin = cos_sin_table(config.rope, config.head_dim, config.max_position, max_positions)
        self.scale = config.head_dim**-0.5

    def forward(
        self, weights: DecoderWeights, batch: StepBatch, layout: ParallelLayout, comm: Comm
    ) -> torch.Tensor | None:
        """Writes the batch's K and V, and returns logits [rows to sample, V] on rank 0, None elsewhere.

        ``layout``: of FFN and LM head; that of attention comes with each part.
        """
        x_NC = F.embedding(batch.tokens, weights.embed)
        for index, layer in enumerate(weights.layers):
            own = layer.tensors
            attended = self._attend(layer, self._norm(x_NC, own["input_norm"]), batch, index)
            x_NC += comm.all_reduce(attended)
            if self.config.o_bias:
                x_NC += own["bo"]
            x_NC += comm.all_reduce(self._ffn(layer, self._norm(x_NC, own["post_norm"])))
            if self.config.mlp_bias:
                x_NC += own["b_down"]
        if batch.sample_rows is None or not len(batch.sample_rows):
            return None
        last = self._norm(x_NC[batch.sample_rows], weights.norm)
        vocab = layout.vocab_rows(self.geometry)
        logits = project(last, weights.lm_head[vocab.start : vocab.stop])
        return comm.gather_columns(logits, self._vocab_widths(layout))

    def _vocab_widths(self, layout: ParallelLayout) -> list[int]:
        ranks = (ParallelLayout(layout.degree, rank, layout.shards) for rank in range(layout.degree))
        return [len(rank.vocab_rows(self.geometry)) for rank in ranks]

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """RMS norm over the last axis. torch's is half a dozen passes; in fp32 the kernel makes one."""
        if x.dtype != torch.float32 or not x.is_contiguous():
            return F.rms_norm(x, weight.shape, weight, self.config.rms_norm_eps)
        out = torch.empty_like(x)
        size = x.shape[-1]
        kernels.rms_norm(x.view(-1, size).numpy(), weight.numpy(), self.config.rms_norm_eps, out.view(-1, size).numpy())
        return out

    def _attend(self, layer: LayerWeights, x_NC: torch.Tensor, batch: StepBatch, index: int) -> torch.Tensor:
        """This worker's share of the attention output, [N, C]; zero for tokens that it holds nothing of."""
        if len(batch.parts) == 1 and batch.parts[0].rows is None:
            return self._attention(layer, x_NC, batch.parts[0], index)
        total = torch.zeros_like(x_NC)
        for part in batch.parts:
            total[part.rows] = self._attention(layer, x_NC[part.rows], part, index)
        return total

    def _attention(self, layer: LayerWeights, x_NC: torch.Tensor, batch: AttentionPart, index: int) -> torch.Tensor:
        own, d, kv, layout = layer.tensors, self.config.head_dim, batch.kv, batch.layout
        heads, shards = layout.query_heads(self.geometry), layout.kv_shards
        rows = slice(heads.start * d, heads.stop * d)
        wkv = own["wkv"][shards.start : shards.stop]
        bq = own["bq"][rows] if self.config.qkv_bias else None
        bkv = own["bkv"][shards.start : shards.stop].reshape(-1) if self.config.qkv_bias else None
        n = x_NC.shape[0]
        q_NHD = project(x_NC, own["wq"][rows], bq).view(n, len(heads), d)
        kv_NS2PD = project(x_NC, wkv.view(-1, wkv.shape[-1]), bkv).view(n, len(shards), 2, -1, d)
        if self.config.qk_norm:
            q_NHD = self._norm(q_NHD, own["q_norm"])
            kv_NS2PD[:, :, 0] = self._norm(kv_NS2PD[:, :, 0], own["k_norm"])

        q_NHD, kv_NS2PD = q_NHD.float(), kv_NS2PD.float()
        base = kv.layer_base(index)
        strides = kv.geometry.strides
        where = (kv.flat_np, base)
        kernels.rope_write(
            q_NHD.numpy(), kv_NS2PD.numpy(), self.cos, self.sin, batch.positions, batch.slots, *where,
            kv.head_offsets, strides["kv"],
        )  # fmt: skip

        out_NHD = torch.empty_like(q_NHD)
        b, local = len(batch.lengths), len(kv.head_offsets)
        if b:
            group = (b, local, len(heads) // local, d)
            kernels.decode_attention(
                q_NHD[:b].view(group).numpy(), *where, batch.tables, batch.lengths, kv.head_offsets, strides["kv"],
                strides["token"], kv.geometry.block_size, self.scale, out_NHD[:b].view(group).numpy(),
            )  # fmt: skip
        for chunk in batch.chunks:
            out_NHD[chunk.rows] = self._prefill_attention(q_NHD[chunk.rows], chunk, kv, base)
        return project(out_NHD.view(n, -1).to(x_NC.dtype), own["wo"][:, rows])

    def _prefill_attention(self, q_NHD: torch.Tensor, chunk: PrefillChunk, kv: KVView, base: int) -> torch.Tensor:
        n, t, g = q_NHD.shape[0], chunk.length, kv.geometry
        context = torch.empty((2, len(kv.head_offsets), t, self.config.head_dim), dtype=kv.flat.dtype)
        raw = context.view(torch.uint16) if context.dtype == torch.bfloat16 else context
        kernels.gather_context(
            kv.flat_np,
            base,
            chunk.table,
            t,
            kv.head_offsets,
            g.strides["kv"],
            g.strides["token"],
            g.block_size,
            raw.numpy(),
        )
        k, v = context.float()[:, None]
        mask = None
        if chunk.start:
            hidden = torch.arange(t)[None, :] > chunk.start + torch.arange(n)[:, None]
            mask = torch.zeros(n, t).masked_fill_(hidden, -torch.inf)
        out = F.scaled_dot_product_attention(
            q_NHD.transpose(0, 1)[None], k, v, attn_mask=mask, is_causal=mask is None, scale=self.scale, enable_gqa=True
        )
        return out[0].transpose(0, 1)

    def _ffn(self, layer: LayerWeights, x_NC: torch.Tensor) -> torch.Tensor:
        narrow = len(x_NC) <= NARROW
        total: torch.Tensor | None = None
        for shard in layer.ffn:
            bias = None
            if self.config.mlp_bias:
                rows = slice(shard.rows.start, shard.rows.stop)
                bias = torch.cat([layer.tensors["b_gate"][rows], layer.tensors["b_up"][rows]])
            if narrow:  # everything transposed, so that nothing is copied in between
                gate_up = shard.gate_up @ x_NC.t()
                if bias is not None:
                    gate_up += bias[:, None]
                gate, up = gate_up.chunk(2, dim=0)
                hidden = F.silu(gate).mul_(up)
                total = shard.down @ hidden if total is None else total.addmm_(shard.down, hidden)
            else:
                gate, up = F.linear(x_NC, shard.gate_up, bias).chunk(2, dim=-1)
                hidden = F.silu(gate).mul_(up)
                total = F.linear(hidden, shard.down) if total is None else total.addmm_(hidden, shard.down.t())
        assert total is not None, "a worker holds at least one FFN shard"
        return total.t().contiguous() if narrow else total


# Up to this many rows, W @ x^T is faster than x @ W^T in MKL: 1.4 to 1.7 times for 8 to 32 rows, 1.2 at 128 (docs/log.md).
NARROW = 128
# A single projection has to turn its result back, which eats the gain earlier.
NARROW_ALONE = 48


def project(x_NK: torch.Tensor, weight_MK: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``x @ weight^T + bias``, contiguous [N, M]."""
    if len(x_NK) > NARROW_ALONE:
        return F.linear(x_NK, weight_MK, bias)
    out = torch.mm(weight_MK, x_NK.t()).t().contiguous()
    return out if bias is None else out.add_(bias)

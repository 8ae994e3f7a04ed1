"""One decoder for Llama, Qwen2/2.5 and Qwen3 dense, written as for one device.

How it is sharded comes in from outside at every call (:class:`gyges.parallel.sharding.ParallelLayout`) and is never kept:
it changes at run time. On a shard the same lines run with fewer heads and FFN rows, and two sums over ranks per layer.

Shape legend: N tokens of the step, C hidden, H local query heads, S local KV shards, P KV heads per shard, D head_dim,
G query heads per local KV head, B decode rows, T context length.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from gyges.core import ModelGeometry
from gyges.kernels.base import KernelSet
from gyges.kernels.sets import make_kernels
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
    table: Any


@dataclass(slots=True)
class AttentionPart:
    """The M tokens of a step whose KV cache this worker holds in one way: first the ``B`` rows of one token, then the chunks.

    rows: int64 [M], which of the step's tokens; None: all of them, in order.   kv, layout: where, and which heads, here.
    positions, slots: int64 [M]; a slot is the element offset of the token's place in its block.
    tables: int64 [B, max blocks] block offsets; lengths: int64 [B] context lengths, the new token included.

    Indices come as numpy arrays; :meth:`on` turns them into what the decoder's kernels take, once per step.
    """

    rows: torch.Tensor | None
    kv: KVView
    layout: ParallelLayout
    positions: Any
    slots: Any
    tables: Any
    lengths: Any
    chunks: list[PrefillChunk] = field(default_factory=list)

    def on(self, kernels: KernelSet) -> AttentionPart:
        """The same part in the kernels' array type, on their device."""
        array = kernels.array
        return replace(
            self,
            rows=None if self.rows is None else self.rows.to(kernels.device),
            positions=array(self.positions),
            slots=array(self.slots),
            tables=array(self.tables),
            lengths=array(self.lengths),
            chunks=[replace(chunk, table=array(chunk.table)) for chunk in self.chunks],
        )


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

    def on(self, kernels: KernelSet) -> StepBatch:
        """The same step as :meth:`Decoder.run` takes it."""
        rows = None if self.sample_rows is None else self.sample_rows.to(kernels.device)
        return StepBatch(self.tokens.to(kernels.device), [part.on(kernels) for part in self.parts], rows)


class Decoder:
    """Forward passes over weights that somebody else placed."""

    def __init__(
        self, config: DecoderConfig, geometry: ModelGeometry, max_positions: int, kernels: KernelSet | None = None
    ) -> None:
        """``kernels``: those of the device that weights and cache are on; None: the CPU's."""
        self.config, self.geometry = config, geometry
        self.kernels = kernels or make_kernels(torch.device("cpu"))
        tables = cos_sin_table(config.rope, config.head_dim, config.max_position, max_positions)
        self.cos, self.sin = (self.kernels.array(table) for table in tables)
        self.scale = config.head_dim**-0.5

    def forward(
        self, weights: DecoderWeights, batch: StepBatch, layout: ParallelLayout, comm: Comm
    ) -> torch.Tensor | None:
        """Writes the batch's K and V, and returns logits [rows to sample, V] on rank 0, None elsewhere.

        ``layout``: of FFN and LM head; that of attention comes with each part.
        """
        return self.run(weights, batch.on(self.kernels), layout, comm)

    def run(self, weights: DecoderWeights, batch: StepBatch, layout: ParallelLayout, comm: Comm) -> torch.Tensor | None:
        """:meth:`forward` of a batch that is on the device already: kernels alone, so a CUDA graph can capture it."""
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
        return self.kernels.rms_norm(x, weight, self.config.rms_norm_eps)

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

        kernels, base = self.kernels, kv.layer_base(index)
        q_NHD = kernels.rope_write(q_NHD, kv_NS2PD, self.cos, self.sin, batch.positions, batch.slots, kv.paged, base)
        out_NHD = torch.empty_like(q_NHD)
        b, local = len(batch.lengths), len(kv.paged.heads)
        if b:
            group = (b, local, len(heads) // local, d)
            kernels.decode_attention(
                q_NHD[:b].view(group), kv.paged, base, batch.tables, batch.lengths, self.scale, out_NHD[:b].view(group)
            )
        for chunk in batch.chunks:
            kernels.prefill_attention(
                q_NHD[chunk.rows], kv.paged, base, chunk.table, chunk.start, self.scale, out_NHD[chunk.rows]
            )
        return project(out_NHD.view(n, -1).to(x_NC.dtype), own["wo"][:, rows])

    def _ffn(self, layer: LayerWeights, x_NC: torch.Tensor) -> torch.Tensor:
        narrow = len(x_NC) <= NARROW and x_NC.device.type == "cpu"
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
    if len(x_NK) > NARROW_ALONE or x_NK.device.type != "cpu":
        return F.linear(x_NK, weight_MK, bias)
    out = torch.mm(weight_MK, x_NK.t()).t().contiguous()
    return out if bias is None else out.add_(bias)

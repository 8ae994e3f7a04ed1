"""A model alone on a device, without an engine: what a decode step costs when nothing else happens."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import torch

from gyges.kernels.base import KernelSet
from gyges.kv_cache.layouts import LAYOUTS, KVGeometry
from gyges.kv_cache.view import KVView
from gyges.models.config import DecoderConfig
from gyges.models.decoder import AttentionPart, Decoder, PrefillChunk, StepBatch
from gyges.models.resident import resident_shapes
from gyges.models.source import TensorSource
from gyges.models.weights import load_weights, view_ffn, view_weights
from gyges.parallel.comm import SOLO
from gyges.parallel.sharding import ParallelLayout, ShardCount
from gyges.parallel.weight_layout import FFNLayout, ResidentLayout


class PlainRange:
    """An address range whose every page is there, from torch's allocator. See :class:`gyges.memory.base.AddressRange`."""

    def __init__(self, name: str, num_pages: int, page_bytes: int, device: torch.device) -> None:
        self.name, self.num_pages = name, num_pages
        self._bytes = torch.zeros(num_pages * page_bytes, dtype=torch.uint8, device=device)
        self.address = self._bytes.data_ptr()

    @property
    def size(self) -> int:
        return self._bytes.numel()

    def tensor(self, dtype: torch.dtype, shape: Sequence[int], offset_bytes: int = 0) -> torch.Tensor:
        count = prod(shape) * dtype.itemsize
        return self._bytes[offset_bytes : offset_bytes + count].view(dtype).view(tuple(shape))


class LocalModel:
    """TP1 on ``kernels.device``. Weights come from ``source``, or at random where the sizes alone matter (None)."""

    def __init__(
        self,
        config: DecoderConfig,
        kernels: KernelSet,
        *,
        dtype: torch.dtype,
        layout: str,
        num_blocks: int,
        block_size: int,
        page_bytes: int,
        max_positions: int,
        source: TensorSource | None = None,
    ) -> None:
        geometry = config.geometry(str(dtype).removeprefix("torch."))
        shards = ShardCount(kv=config.num_kv_heads, ffn=1)
        self.layout = ParallelLayout(1, 0, shards)
        self.config, self.dtype, device = config, dtype, kernels.device
        self.decoder = Decoder(config, geometry, max_positions, kernels)
        resident = ResidentLayout.build(resident_shapes(config, shards), geometry.item_size, page_bytes)
        ffn = FFNLayout.build(geometry, self.layout, padding=True, page_bytes=page_bytes)
        where = PlainRange("resident", resident.pages, page_bytes, device)
        self.weights = view_weights(config, resident, where, dtype)
        units = PlainRange("ffn", ffn.range_pages, page_bytes, device)
        for layer, own in enumerate(self.weights.layers):
            own.ffn = [view_ffn(units, ffn.units[layer, 0], ffn.rows[0], config.hidden_size, dtype)]
        if source is not None:
            load_weights(self.weights, config, source)
        else:
            for each in (where, units):  # the scale keeps sums finite through any number of layers
                each.tensor(dtype, (each.size // dtype.itemsize,)).normal_(std=config.hidden_size**-0.5)
        #: weights that a decode step reads: of an embedding that is not the LM head too, a few rows
        self.read_bytes = resident.used_bytes + ffn.used_bytes
        if not config.tied_embeddings:
            self.read_bytes -= self.weights.embed.nbytes
        kv = KVGeometry.build(
            LAYOUTS.get(layout), geometry, block_size=block_size, num_shards=shards.kv, local_shards=shards.kv,
            num_blocks=num_blocks, page_bytes=page_bytes,
        )  # fmt: skip
        self.kv_bytes_per_token = geometry.kv_bytes_per_token
        cache = PlainRange("kv", kv.range_pages, page_bytes, device)
        self.kv = KVView.over(cache, kv, self.layout.kv_shards, dtype, kernels)
        self.comm = SOLO

    def batch(
        self,
        decodes: Sequence[tuple[int, int, Sequence[int]]] = (),
        chunk: tuple[Sequence[int], int, Sequence[int]] | None = None,
    ) -> StepBatch:
        """``decodes``: (token, position, block ids) of rows that get one token; ``chunk``: (tokens, first position, block ids) of
        a prompt. Samples every decode row and the chunk's last token."""
        size, stride = self.kv.geometry.block_size, self.kv.geometry.strides["token"]
        tokens = [token for token, _, _ in decodes]
        positions = [position for _, position, _ in decodes]
        tables = np.zeros((len(decodes), max((len(ids) for *_, ids in decodes), default=0)), np.int64)
        for row, (_, _, ids) in enumerate(decodes):
            tables[row, : len(ids)] = self.kv.block_offsets[list(ids)]
        slots = [tables[row, p // size] + p % size * stride for row, p in enumerate(positions)]
        samples = list(range(len(decodes)))
        chunks = []
        if chunk is not None:
            new, start, ids = chunk
            table = self.kv.block_offsets[list(ids)]
            rows = slice(len(tokens), len(tokens) + len(new))
            span = np.arange(start, start + len(new))
            tokens += new
            positions += span.tolist()
            slots += (table[span // size] + span % size * stride).tolist()
            chunks.append(PrefillChunk(rows, start, table))
            samples.append(rows.stop - 1)
        part = AttentionPart(
            None, self.kv, self.layout, np.array(positions, np.int64), np.array(slots, np.int64), tables,
            np.array(positions[: len(decodes)], np.int64) + 1, chunks,
        )  # fmt: skip
        return StepBatch(torch.tensor(tokens), [part], torch.tensor(samples))

    def forward(self, batch: StepBatch) -> torch.Tensor:
        """Logits of the rows that sample, [rows, vocabulary]."""
        logits = self.decoder.forward(self.weights, batch, self.layout, self.comm)
        assert logits is not None, "one rank has all logits"
        return logits

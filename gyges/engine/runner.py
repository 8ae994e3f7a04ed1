"""A worker's model: pages, weights, KV view, and the state of the sequences in its batch."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch

from gyges.config import EngineConfig
from gyges.engine.messages import NewSequence, Setup, Step, StepDone, unpack_tokens
from gyges.engine.placement import Placer
from gyges.kernels import cpu as kernels
from gyges.kv_cache.view import KVView
from gyges.memory.cpu import CpuPagePool
from gyges.models.config import DecoderConfig
from gyges.models.decoder import Decoder, PrefillChunk, StepBatch
from gyges.models.source import SourceSpec
from gyges.models.weights import load_weights, view_weights
from gyges.parallel.arena import SharedArena
from gyges.parallel.comm import Comm, SoloComm
from gyges.parallel.sharding import ParallelLayout
from gyges.parallel.shm import ShmComm
from gyges.sampling import SamplingRow, sample


@dataclass(slots=True)
class WorkerSequence:
    """``tokens`` [max_length + 1] and ``table`` (element offsets of its blocks) are filled as far as they are known."""

    tokens: np.ndarray
    table: np.ndarray
    blocks: int
    prompt_tokens: int
    new: NewSequence

    def extend(self, offsets: np.ndarray) -> None:
        self.table[self.blocks : self.blocks + len(offsets)] = offsets
        self.blocks += len(offsets)


class ModelRunner:
    """Built from one Setup message; then one :meth:`step` per Step message."""

    def __init__(self, setup: Setup) -> None:
        config = EngineConfig.from_dict(setup.engine)
        torch.set_num_threads(config.worker_threads)
        torch.set_grad_enabled(False)
        kernels.set_threads(config.worker_threads)
        model = DecoderConfig.from_hf(setup.hf_config)
        geometry = model.geometry(setup.dtype)
        dtype = getattr(torch, setup.dtype)
        kernels.warm(setup.dtype == "bfloat16", model.head_dim)
        placer = Placer(config, model, geometry)
        degree, rank = len(setup.members), setup.members.index(setup.worker)
        self.block_size = placer.block_size
        self.layout = ParallelLayout(degree, rank, placer.shards)
        self.pool = CpuPagePool(placer.device_pages, config.page_bytes, f"gyges-device-{setup.worker}")

        weight_layout = placer.weight_layout(self.layout)
        weight_range = self.pool.reserve("weights", weight_layout.range_pages)
        self.pool.map(weight_range, weight_layout.slots)
        self.weights = view_weights(model, geometry, weight_layout, weight_range, dtype)
        load_weights(self.weights, model, SourceSpec(**setup.source).open(model))

        kv_geometry = placer.kv_geometry(degree)
        kv_range = self.pool.reserve("kv", kv_geometry.range_pages)
        slots = [p for g in range(*setup.groups) for p in kv_geometry.group_pages(g, self.layout.kv_shards)]
        self.pool.map(kv_range, sorted(slots))
        self.kv = KVView.over(kv_range, kv_geometry, self.layout.kv_shards, dtype)

        self.comm: Comm = SoloComm()
        if degree > 1:
            arena = SharedArena(setup.arena_fd, config.num_devices, setup.arena_bytes)
            self.comm = ShmComm(arena, setup.members, setup.worker, config.step_timeout)
        self.decoder = Decoder(model, geometry, setup.max_positions)
        self.sequences: dict[int, WorkerSequence] = {}

    def page_counts(self) -> tuple[int, int, int]:
        """(weights, KV, free) in pages."""
        return self.pool.mapped_pages("weights"), self.pool.mapped_pages("kv"), self.pool.free_pages

    @staticmethod
    def resident_bytes() -> int:
        """Peak resident set of this process, bytes (shared pages it touched included)."""
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def step(self, message: Step) -> StepDone | None:
        """Computes one step; the answer comes from rank 0 alone."""
        started = time.monotonic()
        self._apply(message)
        batch, sampling = self._batch(message)
        logits = self.decoder.forward(self.weights, batch, self.kv, self.layout, self.comm)
        self.pool.check()
        if self.layout.rank:
            return None
        tokens: list[int] = []
        if logits is not None:
            tokens = sample(logits, [row for _, row in sampling])
            for (sequence, row), token in zip(sampling, tokens, strict=True):
                sequence.tokens[sequence.prompt_tokens + row.position] = token
        return StepDone(message.step, tokens, time.monotonic() - started)

    def close(self) -> None:
        # Views into the pages must be gone before the mappings are.
        self.sequences.clear()
        del self.weights, self.kv
        self.pool.close()

    def _apply(self, message: Step) -> None:
        for slot in message.dropped:
            del self.sequences[slot]
        for new in message.new:
            tokens = np.zeros(new.max_length + 1, np.int64)
            known = unpack_tokens(new.tokens)
            tokens[: len(known)] = known
            table = np.zeros(-(-new.max_length // self.block_size), np.int64)
            sequence = WorkerSequence(tokens, table, 0, new.prompt_tokens, new)
            sequence.extend(self.kv.block_offsets[new.blocks])
            self.sequences[new.slot] = sequence
        for slot, blocks in message.extended:
            self.sequences[slot].extend(self.kv.block_offsets[blocks])
        if self.layout.rank:
            # Rank 0 sampled these itself.
            for slot, position, token in message.sampled:
                self.sequences[slot].tokens[position] = token

    def _batch(self, message: Step) -> tuple[StepBatch, list[tuple[WorkerSequence, SamplingRow]]]:
        """Rows of one token come first (decode kernel), then the chunks."""
        rows = sorted(message.rows, key=lambda row: row[2] > 1)
        total = sum(count for _, _, count, _ in rows)
        decodes = sum(1 for row in rows if row[2] == 1)
        tokens, positions = np.empty(total, np.int64), np.empty(total, np.int64)
        slots = np.empty(total, np.int64)
        lengths = np.empty(decodes, np.int64)
        width = max((-(-(start + 1) // self.block_size) for _, start, count, _ in rows if count == 1), default=0)
        tables = np.zeros((decodes, width), np.int64)
        chunks: list[PrefillChunk] = []
        wanted: dict[int, int] = {}
        at = 0
        stride = self.kv.geometry.strides["token"]
        for i, (slot, start, count, samples) in enumerate(rows):
            sequence = self.sequences[slot]
            if i < decodes:  # plain numbers: arrays of one element would cost more than the kernel
                block, inside = divmod(start, self.block_size)
                tokens[at], positions[at], lengths[i] = sequence.tokens[start], start, start + 1
                slots[at] = sequence.table[block] + inside * stride
                tables[i, : block + 1] = sequence.table[: block + 1]
            else:
                stop = start + count
                span = np.arange(start, stop)
                tokens[at : at + count] = sequence.tokens[start:stop]
                positions[at : at + count] = span
                slots[at : at + count] = sequence.table[span // self.block_size] + span % self.block_size * stride
                chunks.append(PrefillChunk(slice(at, at + count), start, sequence.table))
            at += count
            if samples:
                wanted[slot] = at - 1
        sampling, sample_rows = [], []
        for slot, start, count, samples in message.rows:  # the controller's order, not ours
            if samples:
                sequence = self.sequences[slot]
                new = sequence.new
                position = start + count - sequence.prompt_tokens
                sampling.append((sequence, SamplingRow(new.temperature, new.top_p, new.top_k, new.seed, position)))
                sample_rows.append(wanted[slot])
        batch = StepBatch(
            torch.from_numpy(tokens),
            positions,
            slots,
            tables,
            lengths,
            chunks,
            torch.tensor(sample_rows, dtype=torch.int64),
        )
        return batch, sampling

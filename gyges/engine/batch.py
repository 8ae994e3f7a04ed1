"""From a Step message's rows to what the decoder takes: a worker's sequences, and the arrays of a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gyges.engine.messages import NewSequence, unpack_tokens
from gyges.kv_cache.view import KVView
from gyges.models.decoder import AttentionPart, PrefillChunk, StepBatch
from gyges.parallel.sharding import ParallelLayout
from gyges.sampling import SamplingRow

Row = tuple[int, int, int, bool]  # slot, start, count, samples


@dataclass(slots=True)
class WorkerSequence:
    """``tokens`` [max_length + 1] and ``table`` (element offsets of its blocks, if any lie here) as far as they are known.

    ids: its blocks on the side it is attended to from.   narrow, switched: as in NewSequence.
    """

    tokens: np.ndarray
    table: np.ndarray
    ids: list[int]
    new: NewSequence
    narrow: int
    switched: bool

    @classmethod
    def of(cls, new: NewSequence, block_size: int) -> WorkerSequence:
        tokens = np.zeros(new.max_length + 1, np.int64)
        known = unpack_tokens(new.tokens)
        tokens[new.first : new.first + len(known)] = known
        table = np.zeros(-(-new.max_length // block_size), np.int64)
        return cls(tokens, table, [], new, new.narrow, new.switched)

    @property
    def prompt_tokens(self) -> int:
        return self.new.prompt_tokens

    def extend(self, ids: Sequence[int], view: KVView | None) -> None:
        if view is not None:
            self.table[len(self.ids) : len(self.ids) + len(ids)] = view.block_offsets[list(ids)]
        self.ids += ids


@dataclass(frozen=True, slots=True)
class Place:
    """Where sequences of one kind lie on this worker."""

    view: KVView
    layout: ParallelLayout


class StepRows:
    """The rows of one step: those of one token first (decode kernel), then the chunks."""

    def __init__(self, rows: Sequence[Row], sequences: dict[int, WorkerSequence]) -> None:
        self.given = rows
        self.rows = sorted(rows, key=lambda row: row[2] > 1)
        self.sequences = sequences
        ends = np.cumsum([row[2] for row in self.rows])
        self.first = [0, *ends.tolist()]

    def tokens(self) -> torch.Tensor:
        tokens = np.empty(self.first[-1], np.int64)
        for at, (slot, start, count, _) in zip(self.first, self.rows, strict=False):
            tokens[at : at + count] = self.sequences[slot].tokens[start : start + count]
        return torch.from_numpy(tokens)

    def part(self, chosen: Sequence[int], place: Place) -> AttentionPart:
        """Attention over the rows with these indices (ascending) as they lie in ``place``."""
        block_size, stride = place.view.geometry.block_size, place.view.geometry.strides["token"]
        rows = [self.rows[i] for i in chosen]
        total = sum(row[2] for row in rows)
        decodes = sum(1 for row in rows if row[2] == 1)
        positions, slots = np.empty(total, np.int64), np.empty(total, np.int64)
        lengths = np.empty(decodes, np.int64)
        width = max((-(-(row[1] + 1) // block_size) for row in rows if row[2] == 1), default=0)
        tables = np.zeros((decodes, width), np.int64)
        chunks: list[PrefillChunk] = []
        at = 0
        for i, (slot, start, count, _) in enumerate(rows):
            table = self.sequences[slot].table
            if i < decodes:  # plain numbers: arrays of one element would cost more than the kernel
                block, inside = divmod(start, block_size)
                positions[at], lengths[i] = start, start + 1
                slots[at] = table[block] + inside * stride
                tables[i, : block + 1] = table[: block + 1]
            else:
                span = np.arange(start, start + count)
                positions[at : at + count] = span
                slots[at : at + count] = table[span // block_size] + span % block_size * stride
                chunks.append(PrefillChunk(slice(at, at + count), start, table))
            at += count
        index = None
        if len(rows) < len(self.rows):
            spans = [np.arange(self.first[i], self.first[i + 1]) for i in chosen]
            index = torch.from_numpy(np.concatenate(spans))
        return AttentionPart(index, place.view, place.layout, positions, slots, tables, lengths, chunks)

    def batch(self, parts: list[AttentionPart]) -> StepBatch:
        last = {row[0]: stop - 1 for row, stop in zip(self.rows, self.first[1:], strict=True)}
        wanted = [last[slot] for slot, _, _, samples in self.given if samples]
        return StepBatch(self.tokens(), parts, torch.tensor(wanted, dtype=torch.int64))

    def sampling(self) -> list[tuple[WorkerSequence, SamplingRow]]:
        """In the controller's order."""
        chosen = []
        for slot, start, count, samples in self.given:
            if samples:
                sequence = self.sequences[slot]
                new = sequence.new
                position = start + count - new.prompt_tokens
                chosen.append((sequence, SamplingRow(new.temperature, new.top_p, new.top_k, new.seed, position)))
        return chosen

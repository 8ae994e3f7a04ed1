"""Decode steps as CUDA graphs: a step's kernels are recorded once per batch size, and launched as one thing from then on.

    batch of 5 ──▶ static inputs of the graph for 8: [ 5 rows | 3 unused: slot -1, length 0 ] ──▶ logits [:5]

An unused row writes nothing to the cache and attends to nothing; its logits are dropped. A graph holds addresses, so it stays
right as long as weights and cache keep theirs: with FFN padding and a layout whose shards leave whole, they do for life, whatever
the TP degree, and graphs for the instances that a host is likely to form are recorded ahead. Pages need not be the same ones.

On a CPU there is nothing to record: a step on the static inputs is computed instead, which is what the tests run. Not yet run on
hardware.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gyges.kv_cache.view import KVView
from gyges.models.decoder import AttentionPart, Decoder, StepBatch
from gyges.models.weights import DecoderWeights
from gyges.parallel.comm import Comm
from gyges.parallel.sharding import ParallelLayout


def sizes_up_to(most: int) -> list[int]:
    """Powers of two below ``most``, and ``most``: a batch runs at most twice as many rows as it has."""
    return [*(1 << power for power in range(most.bit_length()) if 1 << power < most), most]


def graph_pool(device: torch.device) -> Any:
    """None elsewhere than on a GPU."""
    return torch.cuda.graph_pool_handle() if device.type == "cuda" else None


Launch = Callable[[], torch.Tensor | None]


@dataclass(slots=True)
class _Graph:
    """``batch``: its static inputs, for as many rows as it was recorded with."""

    batch: StepBatch
    launch: Launch


class DecodeGraphs:
    """Graphs of one worker as one rank of one instance. ``max_blocks``: of a request's block table.

    pool: of CUDA's graph memory, shared by graphs that never run at the same time (:func:`graph_pool`).
    """

    def __init__(
        self,
        decoder: Decoder,
        weights: DecoderWeights,
        kv: KVView,
        layout: ParallelLayout,
        comm: Comm,
        max_blocks: int,
        pool: Any = None,
    ) -> None:
        self.decoder, self.weights, self.kv, self.layout, self.comm = decoder, weights, kv, layout, comm
        self.max_blocks = max_blocks
        self._graphs: dict[int, _Graph] = {}
        self._pool = pool

    def capture(self, sizes: Sequence[int]) -> None:
        """Records a graph for each batch size; every rank of the instance must call it with the same sizes."""
        for size in sorted(sizes, reverse=True):  # the largest first: the others then fit into its memory pool
            batch = self._static(size)
            self._graphs[size] = _Graph(batch, self._record(batch))

    def takes(self, batch: StepBatch) -> bool:
        """Whether there is a graph for it: one token of every row, all of them sampled, no transformation under way."""
        rows = len(batch.tokens)
        if len(batch.parts) != 1 or batch.parts[0].rows is not None or batch.parts[0].chunks:
            return False
        samples = batch.sample_rows is not None and len(batch.sample_rows) == rows
        return samples and self._fitting(rows) is not None and batch.parts[0].tables.shape[1] <= self.max_blocks

    def forward(self, batch: StepBatch) -> torch.Tensor | None:
        """As :meth:`Decoder.forward`, of a batch that :meth:`takes` accepts. The result is overwritten by the next call."""
        rows = len(batch.tokens)
        size = self._fitting(rows)
        assert size is not None, f"there is no graph for {rows} rows"
        graph = self._graphs[size]
        self._fill(graph.batch, batch.on(self.decoder.kernels), rows)
        logits = graph.launch()
        return None if logits is None else logits[:rows][batch.sample_rows.to(logits.device)]  # type: ignore[union-attr]

    def _fitting(self, rows: int) -> int | None:
        return min((size for size in self._graphs if size >= rows), default=None)

    def _static(self, size: int) -> StepBatch:
        kernels = self.decoder.kernels

        def filled(value: int, *shape: int) -> Any:
            return kernels.array(np.full(shape, value, np.int64))

        part = AttentionPart(
            None,
            self.kv,
            self.layout,
            filled(0, size),
            filled(-1, size),
            filled(0, size, self.max_blocks),
            filled(0, size),
        )
        tokens = torch.zeros(size, dtype=torch.int64, device=kernels.device)
        return StepBatch(tokens, [part], torch.arange(size, device=kernels.device))

    def _fill(self, static: StepBatch, batch: StepBatch, rows: int) -> None:
        to, part = static.parts[0], batch.parts[0]
        static.tokens[:rows] = batch.tokens
        to.positions[:rows] = part.positions
        to.slots[:rows], to.slots[rows:] = part.slots, -1
        to.lengths[:rows], to.lengths[rows:] = part.lengths, 0
        to.tables[:rows, : part.tables.shape[1]] = part.tables

    def _run(self, batch: StepBatch) -> torch.Tensor | None:
        return self.decoder.run(self.weights, batch, self.layout, self.comm)

    def _record(self, batch: StepBatch) -> Launch:
        if self.decoder.kernels.device.type != "cuda":
            return lambda: self._run(batch)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        # Compiles the kernels and makes the libraries' workspaces, which a capture must not.
        with torch.cuda.stream(side):
            self._run(batch)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Other threads may call the driver meanwhile: NCCL's watchdog does.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            logits = self._run(batch)

        def launch() -> torch.Tensor | None:
            graph.replay()
            return logits

        return launch

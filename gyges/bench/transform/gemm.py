"""One layer's FFN on weights in pool pages: padded shards against packed ones, and four shards against one piece.

Runs in a child process. The decoder's own FFN (gyges.models.decoder) on views made as a worker makes them; what is compared is
run in turn, many times, and each pair gives a ratio.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from gyges.bench.transform.shapes import CUDA_PAGE, SHAPES
from gyges.kernels import cpu as kernels
from gyges.memory.cpu import CpuPagePool
from gyges.models.decoder import Decoder
from gyges.models.weights import FFNShard, LayerWeights, view_ffn
from gyges.parallel.sharding import ParallelLayout, ShardCount
from gyges.parallel.weight_layout import FFNLayout

_SHARDS = 4
_MIN_PAIRS = 5


class FFNBench:
    def load(self, name: str, threads: int) -> dict[str, Any]:
        """One layer of shape ``name``, in its dtype, three times: padded, packed, in one piece; 2 MiB pages."""
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        kernels.set_threads(threads)
        shape = SHAPES.get(name)
        config = replace(shape.decoder, num_layers=1)
        geometry = config.geometry()
        self.dtype = getattr(torch, config.dtype)
        self.hidden = geometry.hidden_size
        self.decoder = Decoder(config, geometry, 16)
        layouts = {
            "padded": FFNLayout.build(geometry, _tp1(_SHARDS), padding=True, page_bytes=CUDA_PAGE),
            "packed": FFNLayout.build(geometry, _tp1(_SHARDS), padding=False, page_bytes=CUDA_PAGE),
            "whole": FFNLayout.build(geometry, _tp1(1), padding=False, page_bytes=CUDA_PAGE),
        }
        self.pool = CpuPagePool(sum(layout.range_pages for layout in layouts.values()), CUDA_PAGE, "gyges-bench-ffn")
        draw = torch.Generator().manual_seed(0)
        gate, up, down = (
            torch.randn(geometry.intermediate_size, self.hidden, generator=draw).mul_(self.hidden**-0.5).to(self.dtype)
            for _ in range(3)
        )
        self.layers: dict[str, LayerWeights] = {}
        for way, layout in layouts.items():
            where = self.pool.reserve(way, layout.range_pages)
            self.pool.map(where, np.arange(layout.range_pages))
            shards = []
            for (_, shard), at in layout.units.items():
                view = view_ffn(where, at, layout.rows[shard], self.hidden, self.dtype)
                _fill(view, gate, up, down)
                shards.append(view)
            self.layers[way] = LayerWeights({}, shards)
        unit = layouts["padded"].sizes[0]
        return {"unit_bytes": unit, "padding_bytes": layouts["padded"].padding_bytes}

    def measure(self, rows: int, budget_s: float) -> dict[str, Any]:
        """``slowdown``: of padded over packed, ``pieces_cost``: of four pieces over one; 0.01 is 1 %. Seconds of each.
        ``budget_s``: that each of the two comparisons may take."""
        x = torch.randn(rows, self.hidden, generator=torch.Generator().manual_seed(rows)).to(self.dtype)

        def of(way: str) -> Callable[[], torch.Tensor]:
            return lambda: self.decoder._ffn(self.layers[way], x)

        same = torch.equal(of("padded")(), of("packed")())
        padded, packed = _pairs(of("padded"), of("packed"), budget_s)
        pieces, whole = _pairs(of("padded"), of("whole"), budget_s)
        return {
            "same_result": same,
            "pairs": len(padded),
            "padded_s": float(np.median(padded)),
            "packed_s": float(np.median(packed)),
            "whole_s": float(np.median(whole)),
            "slowdown": _ratio(padded, packed),
            "pieces_cost": _ratio(pieces, whole),
        }

    def close(self) -> None:
        self.layers.clear()
        self.pool.close()


def _tp1(shards: int) -> ParallelLayout:
    return ParallelLayout(1, 0, ShardCount(kv=1, ffn=shards))


def _fill(view: FFNShard, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> None:
    rows = slice(view.rows.start, view.rows.stop)
    count = len(view.rows)
    view.gate_up[:count], view.gate_up[count:] = gate[rows], up[rows]
    view.down.copy_(down[rows].t())


def _pairs(one: Callable[[], Any], two: Callable[[], Any], budget_s: float) -> tuple[list[float], list[float]]:
    """Seconds of both, in turn; who goes first alternates. As many pairs as fit the budget, and a few at least."""
    _timed(two)
    estimate = _timed(one) + _timed(two)
    count = max(_MIN_PAIRS, int(budget_s / estimate))
    first, second = [], []
    for index in range(count):
        if index % 2:
            second.append(_timed(two))
            first.append(_timed(one))
        else:
            first.append(_timed(one))
            second.append(_timed(two))
    return first, second


def _timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _ratio(seconds: list[float], against: list[float]) -> dict[str, Any]:
    """``median`` of the pairs, minus 1; ``min`` and ``max`` are its quartiles, since anything else on the machine disturbs a
    single GEMM by more than what is looked for."""
    values = np.array(seconds) / np.array(against) - 1
    low, middle, high = (float(np.quantile(values, q)) for q in (0.25, 0.5, 0.75))
    return {"median": middle, "min": low, "max": high}

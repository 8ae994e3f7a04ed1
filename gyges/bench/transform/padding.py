"""What aligning FFN shards to pages costs: memory by arithmetic for uncut models, time by measuring (gyges.bench.transform.gemm).

Two ways to align the shards of every candidate TP degree:

    each matrix by itself (the paper's): rows of zeros (columns of the down-projection) until each of gate, up and down of a shard
        ends on a page; the pad is whole rows, so it is a multiple of page / gcd(page, bytes of a row), and the GEMMs compute it
    a shard in one piece (ours): gate, up and down of a shard one behind the other, and only the piece padded; no GEMM sees it
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import gcd
from typing import Any

from gyges.bench.child import Child, ChildError
from gyges.bench.transform.shapes import CUDA_PAGE, SHAPES
from gyges.core import ModelGeometry
from gyges.models.resident import resident_shapes
from gyges.parallel.sharding import ParallelLayout, ShardCount, ffn_shard_rows
from gyges.parallel.weight_layout import FFNLayout, ResidentLayout

Document = dict[str, Any]
Progress = Callable[[str], None]

MAX_DEGREES = (2, 4, 8)
PAPER_SHARE = (0.0, 0.14)  # weight memory of padding "+0 to +14 % by model" (arXiv 2509.19729)
GEMM_ROWS = (1, 16, 64, 512)
_MOST_FLOPS = 5e10  # of one FFN: a comparison needs dozens of them
_GEMM_TIMEOUT_S = 240.0


def candidate_degrees(max_degree: int) -> tuple[int, ...]:
    """1, 2, 4 ... up to and with ``max_degree``."""
    return tuple(1 << i for i in range(max_degree.bit_length()) if 1 << i <= max_degree)


def padding_memory(name: str, max_degree: int, page_bytes: int = CUDA_PAGE) -> Document:
    """Bytes on a TP1 worker of the uncut model, which holds all shards; shares of the FFN weights and of all weights."""
    shape = SHAPES.get(name)
    geometry = shape.geometry
    shards = ShardCount.for_degrees(geometry, candidate_degrees(max_degree))
    ffn = FFNLayout.build(geometry, ParallelLayout(1, 0, shards), padding=True, page_bytes=page_bytes)
    resident = ResidentLayout.build(resident_shapes(shape.decoder, shards), geometry.item_size, page_bytes)
    by_matrix = matrix_padding(geometry, shards.ffn, page_bytes)
    weights = ffn.used_bytes + resident.used_bytes
    return {
        "model": name,
        "source": shape.source,
        "max_degree": max_degree,
        "page_bytes": page_bytes,
        "ffn_bytes": ffn.used_bytes,
        "weight_bytes": weights,
        "padding_bytes": ffn.padding_bytes,
        "share_of_ffn": ffn.padding_bytes / ffn.used_bytes,
        "share_of_weights": ffn.padding_bytes / weights,
        "by_matrix_bytes": by_matrix,
        "by_matrix_share_of_ffn": by_matrix / ffn.used_bytes,
        "by_matrix_share_of_weights": by_matrix / weights,
    }


def matrix_padding(geometry: ModelGeometry, shards: int, page_bytes: int) -> int:
    """Bytes of zero rows over all layers and shards if gate, up and down are each aligned by whole rows."""
    row_bytes = geometry.hidden_size * geometry.item_size
    unit = page_bytes // gcd(page_bytes, row_bytes)  # rows
    counts = [len(ffn_shard_rows(geometry.intermediate_size, shards, shard)) for shard in range(shards)]
    return 3 * geometry.num_layers * sum(-count % unit for count in counts) * row_bytes


def measure_padding(
    models: Sequence[str],
    gemm_models: Sequence[str],
    progress: Progress,
    *,
    rows: Sequence[int] = GEMM_ROWS,
    budget_s: float = 2.0,
) -> Document:
    """``memory``: of ``models``; ``gemm``: of ``gemm_models``, measured, about ``budget_s`` seconds each, or why not."""
    found: Document = {
        "paper_share": list(PAPER_SHARE),
        "memory": [
            padding_memory(name, degree) for name in models for degree in MAX_DEGREES if _possible(name, degree)
        ],
        "gemm": [],
        "errors": {},
    }
    for name in gemm_models:
        try:
            # Its own process, since it needs torch, and one thread: what a worker has where devices outnumber the cores, and
            # two threads on a machine that does anything else are disturbed by more than what is looked for.
            with Child("gyges.bench.transform.gemm:FFNBench", 1) as child:
                child.call("load", _GEMM_TIMEOUT_S, name=name, threads=1)
                for count in rows:
                    if count * _flops_of_a_row(name) > _MOST_FLOPS:
                        continue
                    result = child.call("measure", _GEMM_TIMEOUT_S, rows=count, budget_s=budget_s)
                    found["gemm"].append({"model": name, "rows": count, **result})
                    slower, pieces = result["slowdown"]["median"], result["pieces_cost"]["median"]
                    progress(
                        f"padding: {name}, {count} rows: FFN {slower:+.2%} with padding, {pieces:+.1%} in 4 pieces"
                    )
        except ChildError as error:
            found["errors"][name] = str(error)
            progress(f"padding: {name}: {error}")
    return found


def _flops_of_a_row(name: str) -> int:
    geometry = SHAPES.get(name).geometry
    return 6 * geometry.hidden_size * geometry.intermediate_size


def _possible(name: str, degree: int) -> bool:
    return SHAPES.get(name).geometry.tp_degree_error(degree) is None

"""Triton kernels on the GPU at hand: right, and how fast beside ceilings measured in the same run (gyges/bench/gpu).

Each function takes the sizes of its benchmark, so that the tests run it in small form under Triton's interpreter.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gyges.doctor.checks import Document, goal

if TYPE_CHECKING:
    import torch

    from gyges.bench.gpu.attention import AttentionBench
    from gyges.bench.gpu.copies import CopyBench
    from gyges.bench.gpu.parity import Sizes
    from gyges.bench.gpu.step import StepBench

_OF_COPY, _SLOWER, _OF_FLOOR = 0.8, 0.05, 0.7
_OURS = ("shard-pages", "header-centric")
_ATTENTION_S, _TUNING_S = 45.0, 25.0  # no case is begun after


def _gpu() -> torch.device:
    import torch

    return torch.device("cuda", 0)


def interpreted() -> Document:
    """Without a GPU: the kernels under Triton's interpreter, with small sizes."""
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported: this process runs nothing else
    import torch

    from gyges.bench.gpu.parity import Sizes

    return parity(torch.device("cpu"), Sizes(dim=16, lengths=(1, 40), chunk=(17, 20)))


def parity(device: torch.device | None = None, sizes: Sizes | None = None) -> Document:
    from gyges.bench.gpu.parity import Sizes, check_kernels

    found = check_kernels(device or _gpu(), sizes or Sizes())
    worst = {dtype: max(v for k, v in found["worst"].items() if k.endswith(dtype)) for dtype in ("float32", "bfloat16")}
    text = ", ".join(f"{dtype} at most {value:.1e} off" for dtype, value in worst.items())
    return {"figures": found, "summary": f"{found['cases']} cases: {text}; copies and all-reduce exact"}


def compiled() -> Document:
    """For a GPU that need not be here: whether every kernel compiles, and to machine code that speed is possible with."""
    from gyges.bench.gpu.machine_code import machine_code
    from gyges.errors import EngineError

    rows = machine_code(90)
    spilled = [f"{row['kernel']} ({row['variant']})" for row in rows if row.get("stack_bytes")]
    if spilled:
        raise EngineError(f"registers are spilled to memory by {', '.join(spilled)}")
    return {
        "figures": {"kernels": rows},
        "summary": f"{len(rows)} variants for compute capability 9.0; none spills registers",
    }


def attention(device: torch.device | None = None, bench: AttentionBench | None = None) -> Document:
    """Decode attention in every layout. The first goal counts for the cases whose KV cache is larger than the L2."""
    from gyges.bench.gpu.attention import AttentionBench, layout_spread, measure_attention

    device = device or _gpu()
    found = measure_attention(bench or AttentionBench(repeats=10, deadline_s=_ATTENTION_S), device)
    found["l2_bytes"] = l2 = _l2_bytes(device)
    cases, slower = found["cases"], layout_spread(found["cases"])
    found["layout_spread"] = slower
    worst = min((c["of_copy"] for c in cases if c["layout"] in _OURS and c["bytes"] > l2), default=None)
    most = max((row["slower"] for row in slower if row["layout"] in _OURS), default=None)
    goals = [
        goal("decode attention, worst case of ours, of copy bandwidth", "at least 0.8x", _OF_COPY, worst, unit="ratio"),
        goal(
            "shard-pages and header-centric against token-first", "within 1.05x", 1 + _SLOWER,
            None if most is None else 1 + most, unit="ratio", least=False,
        ),
    ]  # fmt: skip
    ended = f"; {len(found['skipped'])} not reached or too large" if found["skipped"] else ""
    return {
        "figures": found,
        "goals": goals,
        "summary": f"{len(cases)} cases{ended}; {_range(cases, 'of_copy')} of copy",
    }


def copies(device: torch.device | None = None, bench: CopyBench | None = None) -> Document:
    from gyges.bench.gpu.copies import CopyBench, measure_copies

    found = measure_copies(bench or CopyBench(), device or _gpu())
    said = ", ".join(f"{row['layout']} {row['of_copy']:.2f}x" for row in found["layouts"])
    return {"figures": found, "summary": f"a shard of every block, of a plain copy: {said}"}


def steps(device: torch.device | None = None, bench: StepBench | None = None) -> Document:
    from gyges.bench.gpu.step import StepBench, measure_steps

    found = measure_steps(bench or StepBench(), device or _gpu())
    worst = min(step["of_floor"] for step in found["steps"])
    aim = goal(
        f"decode step, {found['shape']}, of its bandwidth floor", "at least 0.7x", _OF_FLOOR, worst, unit="ratio"
    )
    said = ", ".join(f"batch {step['batch']} {step['of_floor']:.2f}x" for step in found["steps"])
    return {"figures": found, "goals": [aim], "summary": f"of the floor of weights and KV: {said}"}


def tuning(device: torch.device | None = None, **sizes: Any) -> Document:
    """Launch parameters of decode attention; no goal, but what the defaults should become."""
    from gyges.bench.gpu.tuning import tune_decode

    rows = tune_decode(device or _gpu(), **({"deadline_s": _TUNING_S} | sizes))
    best = rows[0]
    text = f"tile {best['tile']}, {best['warps']} warps, {best['stages']} stages of {len(rows)} tried"
    return {"figures": {"rows": rows}, "summary": f"fastest: {text}"}


def _l2_bytes(device: torch.device) -> int:
    import torch

    return int(torch.cuda.get_device_properties(device).L2_cache_size) if device.type == "cuda" else 0


def _range(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    values = [row[name] for row in rows]
    return f"{min(values):.2f}x to {max(values):.2f}x" if values else "nothing"

"""Triton's kernels compiled for a GPU that need not be here, and what the machine code says about them.

    registers, stack_bytes   of a thread; a stack means that registers were spilled to memory
    shared_bytes             of a program
    reads                    global loads and asynchronous copies, how many by the bytes that a thread reads with one

Speed it cannot show, but what would rule speed out: a cache that is read element by element, spills, code that does not compile.
``python -m gyges.bench.gpu.machine_code 90`` prints it as JSON. In a process of its own: Triton's driver is replaced.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gyges.errors import EngineError

Document = dict[str, Any]

_DIM, _BLOCK, _KV_HEADS = 128, 128, 8
_SHARED_BYTES = {
    80: 166_912,
    86: 101_376,
    89: 101_376,
    90: 232_448,
    100: 232_448,
}  # of a block, CUDA C++ programming guide
_READS = re.compile(r"(ld\.global\S*|cp\.async\.c[ag]\.shared\.global\S*)\s+([^;]*);")


def machine_code(capability: int = 90, deadline_s: float = 180.0) -> list[Document]:
    """One entry per kernel and variant, for compute capability ``capability`` / 10. EngineError if one does not compile."""
    import os

    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "gyges.bench.gpu.machine_code", str(capability)],
        capture_output=True,
        text=True,
        timeout=deadline_s,
        env={**os.environ, "TRITON_INTERPRET": "0"},
    )
    if done.returncode:
        raise EngineError(
            f"the kernels do not compile for compute capability {capability / 10}:\n{done.stderr[-2000:]}"
        )
    found: list[Document] = json.loads(done.stdout)
    return found


class _Absent:
    """The driver of a GPU that is not here: enough for Triton to compile for it."""

    def __init__(self, capability: int) -> None:
        from triton.backends.compiler import GPUTarget

        self.target, self.utils = GPUTarget("cuda", capability, 32), self
        self.shared = _SHARED_BYTES.get(capability, 101_376)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        return self.target

    def get_device_properties(self, device: int) -> Document:
        return {"max_shared_mem": self.shared}


def _compile_all(capability: int) -> list[Document]:
    import torch
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    driver.set_active(_Absent(capability))
    compiled: list[tuple[str, Any]] = []

    def instead_of_a_launch(function: Any, grid: Any) -> Callable[..., None]:
        def compile_only(*args: Any, **kwargs: Any) -> None:
            compiled.append((function.fn.__name__, function.run(*args, grid=grid, warmup=True, **kwargs)))

        return compile_only

    JITFunction.__getitem__ = instead_of_a_launch
    rows: list[Document] = []
    for dtype, group in ((torch.bfloat16, 5), (torch.float32, 4)):
        _launch_attention(dtype, group)
        variant = f"{str(dtype).removeprefix('torch.')}, {group} query heads a KV head"
        rows += [{"kernel": name, "variant": variant} | _facts(kernel) for name, kernel in compiled]
        compiled.clear()
    for variant in ("aligned", "odd"):
        _launch_copy(variant)
        rows += [{"kernel": name, "variant": variant} | _facts(kernel) for name, kernel in compiled]
        compiled.clear()
    for synchronize in (True, False):
        _launch_all_reduce(synchronize)
        variant = "ranks meet by flags" if synchronize else "ordered by the caller"
        rows += [{"kernel": name, "variant": variant} | _facts(kernel) for name, kernel in compiled]
        compiled.clear()
    return rows


def _launch_attention(dtype: Any, group: int) -> None:
    """As the kernel set does, on empty host memory; nothing runs."""
    import torch

    from gyges.kernels.base import PagedCache
    from gyges.kernels.triton.decode import decode_attention
    from gyges.kernels.triton.prefill import prefill_attention
    from gyges.kernels.triton.write import rope_write

    def index(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.int64)

    heads, n = _KV_HEADS * group, 64
    cache = PagedCache(torch.empty(1 << 20, dtype=dtype), index(_KV_HEADS), _BLOCK * _DIM, _DIM, _BLOCK)
    base = 1 << 40  # so far out that offsets are 64 bits
    q, out = torch.empty((2, n, heads, _DIM), dtype=dtype)
    grouped = (n, _KV_HEADS, group, _DIM)
    decode_attention(q.view(grouped), cache, base, index(n, 64), index(n), 0.1, out.view(grouped), multiprocessors=1000)
    prefill_attention(q, cache, base, index(64), 100, 0.1, out)
    kv, angles = torch.empty((n, _KV_HEADS, 2, 1, _DIM), dtype=dtype), torch.empty((n, _DIM // 2))
    rope_write(q, kv, angles, angles, index(n), index(n), cache, base)


def _launch_copy(variant: str) -> None:
    import numpy as np
    import torch

    from gyges.kernels.triton.copy import copy_runs

    memory, unit = torch.empty(1 << 16, dtype=torch.uint8), 4096 if variant == "aligned" else 3
    starts = np.arange(2) * unit
    copy_runs(memory, memory, starts, starts, np.full(2, unit), ((2, 8 * unit, 8 * unit),))


def _launch_all_reduce(synchronize: bool) -> None:
    import torch

    from gyges.kernels.triton.allreduce import PeerBuffers, all_reduce

    peers = PeerBuffers([0] * 4, [0] * 4, 1, torch.device("cpu"))
    all_reduce(torch.empty(1 << 14, dtype=torch.bfloat16), peers, synchronize=synchronize)


def _facts(kernel: Any) -> Document:
    widths = Counter(_width(*found) for found in _READS.findall(kernel.asm["ptx"]))
    return {
        "shared_bytes": kernel.metadata.shared,
        "warps": kernel.metadata.num_warps,
        "reads": {str(width): count for width, count in sorted(widths.items())},
        "tensor_cores": "mma" in kernel.asm["ptx"],
    } | _resources(kernel.asm["cubin"])


def _width(operation: str, operands: str) -> int:
    """Bytes that one thread reads with it."""
    if operation.startswith("cp.async"):
        found = re.search(r"\], (0x[0-9a-f]+|\d+)", operands)
        assert found, f"an asynchronous copy without a size: {operands}"
        return int(found[1], 0)
    found = re.search(r"(?:\.v(\d))?\.[busf](\d+)$", operation)
    assert found, f"a load without a type: {operation}"
    return int(found[1] or 1) * int(found[2]) // 8


def _resources(cubin: bytes) -> Document:
    """Registers and stack of a thread, from the tool that comes with Triton; nothing where it does not."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        tool = Path(knobs.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        if not tool.exists():
            return {}
        said = subprocess.run(
            [str(tool), "--dump-resource-usage", file.name], capture_output=True, text=True, timeout=30, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", said)
    return {"registers": int(found[1]), "stack_bytes": int(found[2])} if found else {}


if __name__ == "__main__":
    print(json.dumps(_compile_all(int(sys.argv[1]))))

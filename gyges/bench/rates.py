"""What the machine can do at this moment, for the floor: fp32 matrix products and copies, on all cores."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

_COPY_BYTES = 256 << 20  # each of two buffers; with both, larger than the last-level caches of today's CPUs
_SQUARE, _ROWS = 2048, 512
_REPEATS = 9


class Rates:
    """Runs in a child process, so that it has all cores and its own allocator."""

    def write_checkpoint(self, preset: str, folder: str) -> None:
        """A preset's seeded weights as a Hugging Face checkpoint in ``folder``: here, because it needs torch."""
        from gyges.models.hub import resolve_model
        from gyges.models.source import save_checkpoint

        model = resolve_model(preset)
        save_checkpoint(model.source_spec.open(model.config), model.hf_config, folder)

    def load(self, threads: int, hidden: int, intermediate: int) -> None:
        import torch

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self._products = {
            f"{m}x{k}x{n}": (torch.randn(m, k), torch.randn(k, n), torch.empty(m, n), 2.0 * m * k * n)
            for m, k, n in ((_ROWS, hidden, 2 * intermediate), (_SQUARE, _SQUARE, _SQUARE))
        }
        self._source = torch.ones(_COPY_BYTES // 4)
        self._target = torch.empty_like(self._source)
        self.measure()

    def measure(self) -> dict[str, Any]:
        """``gemm_flops_per_s``: the best shape's; ``copy_bytes_per_s``: read + written. Medians of several."""
        import torch

        flops_per_s = {}
        for shape, (a, b, out, flops) in self._products.items():
            flops_per_s[shape] = flops / _median_s(lambda a=a, b=b, out=out: torch.mm(a, b, out=out))  # type: ignore[misc]
        copy_s = _median_s(lambda: self._target.copy_(self._source))
        return {
            "gemm_flops_per_s": max(flops_per_s.values()),
            "gemm_shapes": flops_per_s,
            "copy_bytes_per_s": 2 * _COPY_BYTES / copy_s,
        }

    def close(self) -> None:
        return None


def _median_s(work: Callable[[], Any]) -> float:
    work()
    seconds = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)

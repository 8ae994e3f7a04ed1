"""The smallest Triton kernel, for asking what its launcher takes. Imports triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _add_one(flat, at):  # type: ignore[no-untyped-def]
    tl.store(flat + at, tl.load(flat + at) + 1)


def add_one(flat: torch.Tensor, at: int) -> None:
    """Adds 1 to element ``at``. Raises ValueError if the launcher refuses the tensor."""
    _add_one[(1,)](flat, at)

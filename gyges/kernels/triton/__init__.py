"""Triton kernels: the GPU's kernel set, page copies and an all-reduce. Each has a twin in gyges.kernels.reference.

    decode.py       paged decode attention, split over the context (flash-decoding)
    prefill.py      paged prefill attention of a chunk that has history
    write.py        KV write with the rotary embedding fused in
    copy.py         runs of bytes from pages to pages: transfers and compaction
    allreduce.py    one-shot all-reduce over peer memory
    kernel_set.py   what the decoder calls

Nothing here but this file may be imported without triton. The same kernels run on a CPU under Triton's interpreter
(``TRITON_INTERPRET=1`` in the environment before Python starts), slowly: that is how they are tested where there is no GPU.
Not yet run on hardware (docs/cuda.md).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from math import gcd
from typing import TYPE_CHECKING

from gyges.errors import UserError

if TYPE_CHECKING:
    import torch


def interpreting() -> bool:
    """Whether kernels of this process run in Triton's interpreter. It is decided when triton is first imported."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "y", "yes")


def has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def why_not(device: torch.device) -> str:
    """Why Triton kernels cannot run on ``device`` in this process, with the remedy; empty if they can."""
    if not has_triton():
        return "the Triton kernels need the package triton: pip install 'triton>=3.6' (Linux only)"
    if device.type == "cpu" and not interpreting():
        return (
            "Triton kernels run on a GPU; on a CPU only in Triton's interpreter: set TRITON_INTERPRET=1 before Python starts, "
            "or use the kernel set 'cpu'"
        )
    if interpreting() and _release("triton") < (3, 7) and _release("numpy") >= (2, 4):
        return "the interpreter of Triton 3.6 fails with numpy 2.4 and newer: pip install 'triton>=3.7' or 'numpy<2.4'"
    return ""


def _release(package: str) -> tuple[int, ...]:
    return tuple(int(part) for part in importlib.metadata.version(package).split(".")[:2])


def require_triton(device: torch.device) -> None:
    """Raises UserError if Triton kernels cannot run on ``device`` in this process."""
    if reason := why_not(device):
        raise UserError(reason)


def alignment(head_dim: int) -> int:
    """Elements that every offset into a KV cache is a multiple of: each stride is a multiple of a head, and pages start on 4 KiB.

    The compiler cannot know it of offsets that are loaded from memory, and would load element by element.
    """
    return gcd(head_dim, 16)

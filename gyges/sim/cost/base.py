"""What a step costs: the contract between the simulator's loop and its sources of step times. Torch-free.

Who calls it: the loop, once per step that mixes prefill and decode (``step_s``), and once per *jump* over steps that only decode
(``decode_steps_s``). Both must agree to the last bit: ``decode_steps_s(n, c, m, k)[i] == step_s`` of the i-th of those steps, so
that a simulation that jumps and one that goes step by step give the same times.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True, slots=True)
class StepShape:
    """What one step of one instance computes. Lengths in tokens.

    decodes: sequences that compute one token.   decode_context: sum of the tokens of KV cache that they read (their own new token
    included).   decode_longest: the largest of them.   prefills: (tokens of the chunk, tokens before it in the KV cache) of each.
    sampled: sequences that sample a token at the end of the step.
    """

    decodes: int = 0
    decode_context: int = 0
    decode_longest: int = 0
    prefills: tuple[tuple[int, int], ...] = ()
    sampled: int = 0


class CostModel(Protocol):
    """Step times of one model on one kind of device at one TP degree."""

    degree: int

    def step_s(self, shape: StepShape) -> float:
        """Seconds from the start of a step to the start of the next one."""
        ...

    def decode_steps_s(self, decodes: int, context: int, longest: int, steps: int) -> np.ndarray:
        """float64 [steps]: the same ``decodes`` sequences, ``steps`` times in a row.

        ``context`` and ``longest`` are those of the first step; each step adds ``decodes`` to one and 1 to the other.
        """
        ...

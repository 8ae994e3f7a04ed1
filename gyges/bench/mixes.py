"""The requests that every peer gets: token ids and how many tokens to generate, all from a seed. No torch."""

from __future__ import annotations

import random
from dataclasses import dataclass

from gyges.registry import Registry


@dataclass(frozen=True, slots=True)
class Mix:
    """Lengths in tokens, drawn uniformly from ``low .. high``, both included."""

    prompt: tuple[int, int]
    output: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Work:
    """Request i: ``prompts[i]`` (token ids), of which exactly ``outputs[i]`` further tokens are wanted."""

    prompts: tuple[tuple[int, ...], ...]
    outputs: tuple[int, ...]

    @property
    def lengths(self) -> list[tuple[int, int]]:
        """(prompt, output) tokens of each request."""
        return [(len(prompt), output) for prompt, output in zip(self.prompts, self.outputs, strict=True)]

    @property
    def useful_tokens(self) -> int:
        """Generated tokens that were asked for."""
        return sum(self.outputs)


MIXES: Registry[Mix] = Registry("request mix")
MIXES.add("mixed", Mix(prompt=(16, 512), output=(8, 256)))
MIXES.add("decode-heavy", Mix(prompt=(16, 64), output=(8, 512)))

_SPECIAL_IDS = 2  # beginning and end of sequence, in every preset


def make_work(name: str, requests: int, vocab_size: int, seed: int) -> Work:
    """``requests`` requests of mix ``name``; a function of its arguments alone. Raises UserError for an unknown name."""
    mix = MIXES.get(name)
    draw = random.Random(f"{seed}/{name}")
    lengths = [(draw.randint(*mix.prompt), draw.randint(*mix.output)) for _ in range(requests)]
    return Work(
        tuple(tuple(draw.randrange(_SPECIAL_IDS, vocab_size) for _ in range(prompt)) for prompt, _ in lengths),
        tuple(output for _, output in lengths),
    )

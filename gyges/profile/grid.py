"""Which steps are run: token counts for the dense operators, and points of the four axes of attention. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

# Around 48 and 128 tokens the CPU decoder changes how it multiplies (gyges.models.decoder.NARROW).
_TOKENS = (1, 2, 4, 8, 16, 24, 32, 48, 49, 64, 96, 128, 129, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096)
_DECODES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_CONTEXTS = (16, 64, 256, 1024, 2048, 4096, 8192, 16384)
_CHUNKS = (2, 16, 64, 128, 256, 512, 1024, 2048, 4096)
_BEFORE = (0, 64, 256, 1024, 2048, 4096, 8192)
_MIXED_DECODES = (1, 8, 32)
_MIXED_CONTEXTS = (64, 1024)


@dataclass(frozen=True, slots=True)
class Limits:
    """What the profiled instance can do in one step: tokens, sequences, and tokens of KV cache in whole blocks."""

    max_batch_tokens: int
    max_seqs: int
    kv_tokens: int
    block_size: int
    max_context: int


@dataclass(frozen=True, slots=True)
class Point:
    """``decodes`` sequences of one token with ``context`` tokens each (their own included), and one chunk if it has tokens."""

    chunk: int = 0
    before: int = 0
    decodes: int = 0
    context: int = 0

    @property
    def tokens(self) -> int:
        return self.chunk + self.decodes

    def fits(self, limits: Limits) -> bool:
        def held(length: int) -> int:
            return -(-length // limits.block_size) * limits.block_size

        longest = max(self.before + self.chunk, self.context)
        kv = self.decodes * held(self.context) + held(self.before + self.chunk)
        seqs = self.decodes + bool(self.chunk)
        return (
            self.tokens <= limits.max_batch_tokens
            and seqs <= limits.max_seqs
            and longest < limits.max_context
            and kv <= limits.kv_tokens
        )


def dense_points(limits: Limits) -> list[Point]:
    """Steps for the operators over all tokens: decodes of a short context where there may be so many, else one chunk."""
    most = limits.max_batch_tokens
    counts = [n for n in _up_to(_TOKENS, most) if n <= most]
    points = [Point(decodes=n, context=16) if n <= min(limits.max_seqs, 32) else Point(chunk=n) for n in counts]
    return [point for point in points if point.fits(limits)]


def attention_points(limits: Limits, quick: bool = False) -> list[Point]:
    """A grid of each axis up to the limits; with ``quick`` two or three values of each."""
    longest = limits.max_context - 1
    decodes, chunks = _up_to(_DECODES, limits.max_seqs), _up_to(_CHUNKS, limits.max_batch_tokens)
    contexts, before = _up_to(_CONTEXTS, longest), [b for b in _BEFORE if b < longest]
    mixed = [n for n in _MIXED_DECODES if n < limits.max_seqs]
    if quick:
        decodes, chunks, contexts, before, mixed = decodes[::3], chunks[::3], contexts[:3], before[:2], mixed[:1]
    points = [Point(decodes=n, context=c) for n in decodes for c in contexts]
    for chunk in chunks:
        for past in before:
            points.append(Point(chunk, past))
            points += [Point(chunk, past, n, c) for n in mixed for c in _MIXED_CONTEXTS]
    return [point for point in points if point.fits(limits)]


def _up_to(values: Iterable[int], most: int) -> list[int]:
    """Those up to ``most``, and ``most`` itself."""
    return sorted({value for value in values if value < most} | {most})

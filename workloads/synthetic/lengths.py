"""Distributions of lengths, in tokens. Written ``1000``, ``uniform:32:256`` or ``lognormal:90:0.6:32:256``."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gyges.errors import UnknownNameError, UserError

Lengths = NDArray[np.int64]


class LengthDistribution(ABC):
    """Draws lengths of at least 1 token; ``str`` of one is the spec that makes it."""

    @abstractmethod
    def draw(self, count: int, rng: np.random.Generator) -> Lengths:
        """``count`` lengths, tokens."""


@dataclass(frozen=True, slots=True)
class Fixed(LengthDistribution):
    """Always ``tokens``."""

    tokens: int

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise UserError(f"a length is at least 1 token, got {self.tokens}")

    def draw(self, count: int, rng: np.random.Generator) -> Lengths:
        return np.full(count, self.tokens, dtype=np.int64)

    def __str__(self) -> str:
        return str(self.tokens)


@dataclass(frozen=True, slots=True)
class Uniform(LengthDistribution):
    """Every whole number from ``low`` to ``high``, both included."""

    low: int
    high: int

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.high:
            raise UserError(f"uniform lengths need 1 <= low <= high, got {self.low} and {self.high}")

    def draw(self, count: int, rng: np.random.Generator) -> Lengths:
        return rng.integers(self.low, self.high, count, endpoint=True)

    def __str__(self) -> str:
        return f"uniform:{self.low}:{self.high}"


@dataclass(frozen=True, slots=True)
class LogNormal(LengthDistribution):
    """Median ``median``, ``sigma`` of the logarithm; drawn anew is costly, so values are clipped to [low, high]."""

    median: float
    sigma: float
    low: int
    high: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.median) and self.median > 0 and math.isfinite(self.sigma) and self.sigma >= 0):
            raise UserError(f"lognormal lengths need a positive median and sigma >= 0, got {self.median}, {self.sigma}")
        if not 1 <= self.low <= self.high:
            raise UserError(f"lognormal lengths need 1 <= low <= high, got {self.low} and {self.high}")

    def draw(self, count: int, rng: np.random.Generator) -> Lengths:
        values = rng.lognormal(math.log(self.median), self.sigma, count)
        return np.clip(np.rint(values), self.low, self.high).astype(np.int64)

    def __str__(self) -> str:
        return f"lognormal:{self.median:g}:{self.sigma:g}:{self.low}:{self.high}"


def parse_lengths(text: str) -> LengthDistribution:
    """The distribution that a spec names."""
    kind, *arguments = text.split(":")
    try:
        if not arguments:
            return Fixed(int(kind))
        if kind == "uniform":
            low, high = arguments
            return Uniform(int(low), int(high))
        if kind == "lognormal":
            median, sigma, low, high = arguments
            return LogNormal(float(median), float(sigma), int(low), int(high))
    except UserError:
        raise
    except ValueError:
        raise UserError(
            f"cannot read lengths {text!r}; write TOKENS, uniform:LOW:HIGH or lognormal:MEDIAN:SIGMA:LOW:HIGH"
        ) from None
    raise UnknownNameError("length distribution", kind, ["uniform", "lognormal"], "A bare number is a fixed length.")

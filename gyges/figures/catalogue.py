"""Every figure, so that the registry knows them, in the order in which they are made and listed."""

from gyges.figures import (  # noqa: F401, I001 - in this order
    tradeoff,
    kv,
    weights,
    steps,
    schedulers,
    end_to_end,
    break_even,
    buckets,
    traces,
    scaling,
)
from gyges.figures.base import FIGURES

__all__ = ["FIGURES"]

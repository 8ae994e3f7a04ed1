"""Synthetic traces: load shapes, length distributions, mixes of both. Needs numpy and nothing else."""

from workloads.synthetic.mixes import MIXES, NamedMix, Stream, generate, poisson_arrivals
from workloads.synthetic.shapes import SHAPES, Shape
from workloads.synthetic.spec import load_synthetic

__all__ = ["MIXES", "SHAPES", "NamedMix", "Shape", "Stream", "generate", "load_synthetic", "poisson_arrivals"]

"""Traces: what arrives, when, and how long it is. One schema, many sources, recorded transformations.

:func:`load_trace` is the one entry point. What is heavy (numpy, datasets, pyarrow, matplotlib) is imported where used.
"""

from workloads.load import load_trace
from workloads.options import TraceOptions
from workloads.schema import Provenance, Trace, TraceRequest, TransformRecord

__all__ = ["Provenance", "Trace", "TraceOptions", "TraceRequest", "TransformRecord", "load_trace"]

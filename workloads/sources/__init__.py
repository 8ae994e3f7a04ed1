"""Trace sources. Importing this package registers every file format, the specific ones before the plain ones."""

# ruff: noqa: F401, I001 - recognition tries formats in the order in which these imports register them
from workloads.sources import (
    azure as _azure,
    mooncake as _mooncake,
    qwen_bailian as _qwen_bailian,
    burstgpt as _burstgpt,
    vidur as _vidur,
    splitwise as _splitwise,
    servegen as _servegen,
    plain as _plain,
)
from workloads.sources.base import FORMATS, RawRow, ReadOptions, TraceFormat
from workloads.sources.values import RowError

__all__ = ["FORMATS", "RawRow", "ReadOptions", "RowError", "TraceFormat"]

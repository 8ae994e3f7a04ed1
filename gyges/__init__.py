"""Gyges: LLM serving whose tensor parallelism changes while requests run, and the tools to measure it.

The names below are resolved on first use, so that ``import gyges`` pulls in neither torch nor the engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gyges.version import __version__

if TYPE_CHECKING:
    from gyges.config import EngineConfig
    from gyges.core import FinishReason, Request, RequestOutput, SamplingParams
    from gyges.engine.engine import Engine

_HOMES = {
    "Engine": "gyges.engine.engine",
    "EngineConfig": "gyges.config",
    "Request": "gyges.core",
    "RequestOutput": "gyges.core",
    "SamplingParams": "gyges.core",
    "FinishReason": "gyges.core",
}

__all__ = ["Engine", "EngineConfig", "FinishReason", "Request", "RequestOutput", "SamplingParams", "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'gyges' has no attribute {name!r}")

"""Vidur: seconds from the start, prefill and decode tokens."""

from workloads.sources.base import TraceFormat, register

VIDUR = register(
    TraceFormat(
        name="vidur",
        description="Vidur CSV: arrived_at (s), num_prefill_tokens, num_decode_tokens",
        containers=("csv",),
        signature=frozenset({"num_prefill_tokens", "num_decode_tokens"}),
        roles={
            "arrival": ("arrived_at",),
            "prompt": ("num_prefill_tokens",),
            "output": ("num_decode_tokens",),
            "session": ("session_id",),
        },
    )
)

"""BurstGPT: whole seconds. Its third file inserts Session ID and Elapsed time, so columns go by name only.

Rows with zero response tokens (about 8 %) are requests that failed; ``--repair`` drops and counts them.
"""

from workloads.sources.base import TraceFormat, register

BURSTGPT = register(
    TraceFormat(
        name="burstgpt",
        description="BurstGPT CSV: Timestamp (whole s), Request tokens, Response tokens, maybe Session ID",
        containers=("csv",),
        signature=frozenset({"Timestamp", "Request tokens", "Response tokens"}),
        roles={
            "arrival": ("Timestamp",),
            "prompt": ("Request tokens",),
            "output": ("Response tokens",),
            "session": ("Session ID",),
        },
    )
)

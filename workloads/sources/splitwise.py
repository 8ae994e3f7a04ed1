"""Splitwise's simulator (and its descendants, such as SageServe): seconds, prompt and token sizes."""

from workloads.sources.base import TraceFormat, register

SPLITWISE = register(
    TraceFormat(
        name="splitwise",
        description="Splitwise CSV: request_id, arrival_timestamp (s), prompt_size, token_size",
        containers=("csv",),
        signature=frozenset({"arrival_timestamp", "prompt_size", "token_size"}),
        roles={"arrival": ("arrival_timestamp",), "prompt": ("prompt_size",), "output": ("token_size",)},
    )
)

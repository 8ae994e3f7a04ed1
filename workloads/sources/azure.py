"""Azure LLM inference traces of 2023 and 2024: instants with seven fractional digits (100 ns), all kept."""

from workloads.sources.base import TraceFormat, register

AZURE = register(
    TraceFormat(
        name="azure",
        description="Azure 2023/2024 CSV: TIMESTAMP (instant), ContextTokens, GeneratedTokens",
        containers=("csv",),
        signature=frozenset({"TIMESTAMP", "ContextTokens", "GeneratedTokens"}),
        roles={"arrival": ("TIMESTAMP",), "prompt": ("ContextTokens",), "output": ("GeneratedTokens",)},
    )
)

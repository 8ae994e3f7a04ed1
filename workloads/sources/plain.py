"""Plain CSV, JSON lines, JSON arrays and Parquet: any columns, named by ``--columns`` or by custom.

Our own canonical files (what ``gyges trace convert`` writes) are plain files with the schema's own names.
"""

from __future__ import annotations

from pathlib import Path

from workloads.sources.base import ReadOptions, Roles, TraceFormat, register
from workloads.sources.containers import Head

CANONICAL_ARRIVAL = "arrival_s"

ROLE_NAMES: Roles = {
    "arrival": (CANONICAL_ARRIVAL, "arrival", "arrived_at", "arrival_time", "arrival_timestamp", "timestamp"),
    "prompt": (
        "prompt_tokens",
        "input_tokens",
        "input_length",
        "prompt_length",
        "prompt_len",
        "num_prefill_tokens",
        "prompt_size",
    ),
    "output": ("output_tokens", "output_length", "output_len", "completion_tokens", "num_decode_tokens"),
    "session": ("session", "session_id"),
    "hashes": ("prefix_hashes",),
    "hash_block": ("hash_block",),
    "text": ("text",),
    "chat": ("conversations", "conversation", "messages"),
}


class _Plain(TraceFormat):
    def keeps_origin(self, head: Head, options: ReadOptions) -> bool:
        """``arrival_s`` is, by definition, seconds since the start of the trace; any other clock has its own origin."""
        return options.columns.get("arrival", CANONICAL_ARRIVAL) == CANONICAL_ARRIVAL and (
            CANONICAL_ARRIVAL in head.columns
        )


def _plain(name: str, container: str, description: str) -> TraceFormat:
    return register(
        _Plain(
            name=name,
            description=description,
            containers=(container,),
            signature=frozenset(),
            roles=ROLE_NAMES,
        )
    )


CSV = _plain("csv", "csv", "any CSV; columns by --columns or customary names (arrival_s, prompt_tokens, ...)")
JSONL = _plain("jsonl", "jsonl", "any JSON lines file; likewise, or chats measured in tokens")
JSON = _plain("json", "json", "any JSON array of objects (ShareGPT files, say); likewise")
PARQUET = _plain("parquet", "parquet", "any Parquet file; likewise")


def plain_format(path: Path, head: Head) -> TraceFormat:
    """The plain format of a file's container."""
    return next(each for each in (CSV, JSONL, JSON, PARQUET) if each.sniff(path, head))

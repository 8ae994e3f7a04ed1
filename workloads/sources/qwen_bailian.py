"""Qwen-Bailian: seconds, one hash per 16 prompt tokens, and conversations as chains of parent ids."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from workloads.sources.base import RawRow, ReadOptions, TraceFormat, register
from workloads.sources.containers import CONTAINERS, Head
from workloads.sources.values import to_name


class _QwenBailian(TraceFormat):
    def read(self, path: Path, head: Head, options: ReadOptions) -> Iterator[RawRow]:
        """A request's session is the first chat of its chain, or the oldest parent that the file mentions."""
        mapper = self.mapper(path, head, options)
        chained = "session" not in options.columns
        root: dict[str, str] = {}
        for line, row in CONTAINERS.get(head.container).rows(path):
            raw = mapper(line, row)
            if chained:
                chat, parent = to_name(row.get("chat_id")), to_name(row.get("parent_chat_id"))
                if chat is not None:
                    root[chat] = chat if parent in (None, "-1") else root.get(str(parent), str(parent))
                    raw.session = root[chat]
            yield raw


QWEN_BAILIAN = register(
    _QwenBailian(
        name="qwen-bailian",
        description="Qwen-Bailian JSONL: chat_id, parent_chat_id, timestamp (s), lengths, hash_ids (16 tokens each)",
        containers=("jsonl",),
        signature=frozenset({"chat_id", "parent_chat_id", "timestamp", "input_length", "output_length"}),
        roles={
            "arrival": ("timestamp",),
            "prompt": ("input_length",),
            "output": ("output_length",),
            "hashes": ("hash_ids",),
        },
        hash_block=16,
    )
)

"""ServeGen: what its ``save_requests_to_csv`` writes, seconds and tokens; multimodal prompts as a sum of parts.

Language and reasoning workloads have ``input_tokens``; multimodal ones ``text_tokens`` and a list of tokens per image,
audio or video. A prompt is then all of these together, since each of them takes KV cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from workloads.sources.base import RawRow, ReadOptions, TraceFormat, register
from workloads.sources.containers import CONTAINERS, Head
from workloads.sources.values import BadValue, RowError, json_or_none, to_length

_PARTS = ("text_tokens", "image_tokens", "audio_tokens", "video_tokens")


def _part_tokens(value: object) -> int:
    """Tokens of one modality: a number, a list of numbers, the text of either, or nothing."""
    if value is None or value == "":
        return 0
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = json_or_none(value)
    if isinstance(value, list):
        return sum(to_length(item) for item in value)
    return to_length(value)


class _ServeGen(TraceFormat):
    def sniff(self, path: Path, head: Head) -> bool:
        return super().sniff(path, head) and bool({"input_tokens", "text_tokens"} & set(head.columns))

    def read(self, path: Path, head: Head, options: ReadOptions) -> Iterator[RawRow]:
        parts = [name for name in _PARTS if name in head.columns]
        if "input_tokens" in head.columns or "prompt" in options.columns or not parts:
            yield from super().read(path, head, options)
            return
        # The parts are added below to a prompt that begins at nothing.
        mapper = self.mapper(path, head, replace(options, columns={**options.columns, "prompt": "0"}))
        for line, row in CONTAINERS.get(head.container).rows(path):
            raw = mapper(line, row)
            for name in parts:
                try:
                    raw.prompt_tokens += _part_tokens(row.get(name))
                except BadValue as error:
                    raise RowError(str(path), line, name, row.get(name), str(error)) from None
            yield raw


SERVEGEN = register(
    _ServeGen(
        name="servegen",
        description="ServeGen CSV: request_id, timestamp (s), input_tokens (or text/image/... parts), output_tokens",
        containers=("csv", "jsonl"),
        signature=frozenset({"timestamp", "output_tokens"}),
        never=frozenset({"arrival_s"}),
        roles={"arrival": ("timestamp",), "prompt": ("input_tokens",), "output": ("output_tokens",)},
    )
)

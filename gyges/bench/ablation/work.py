"""The requests that cells replay, as a file that every backend can read: arrival, prompt tokens, output length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gyges.core import Request, SamplingParams
from gyges.engine.replay import TimedRequest


@dataclass(frozen=True)
class Work:
    """Requests and where they came from. ``sha256``: of the trace's content; ``seed``: of prompts.   trace: for the manifest."""

    items: Sequence[TimedRequest]
    sha256: str
    seed: int
    trace: Mapping[str, Any]

    @property
    def duration_s(self) -> float:
        """Until the last arrival."""
        return max((item.scheduled_s for item in self.items), default=0.0)

    @property
    def longest(self) -> int:
        """Tokens, prompt plus output."""
        return max((_length(item.request) for item in self.items), default=0)


def _length(request: Request) -> int:
    return len(request.prompt) + request.sampling.max_tokens


def write_work(path: Path, items: Sequence[TimedRequest]) -> None:
    """As Parquet. Every request runs to its ``max_tokens``, greedily."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "request_id": pa.array([item.request.request_id for item in items], pa.string()),
        "scheduled_s": pa.array([item.scheduled_s for item in items], pa.float64()),
        "prompt": pa.array([list(item.request.prompt) for item in items], pa.list_(pa.int32())),
        "output_tokens": pa.array([item.request.sampling.max_tokens for item in items], pa.int64()),
    }
    pq.write_table(pa.table(columns), path, compression="zstd")


def read_work(path: str | Path) -> list[TimedRequest]:
    """What :func:`write_work` wrote."""
    import pyarrow.parquet as pq

    return [
        TimedRequest(
            row["scheduled_s"],
            Request(
                row["request_id"],
                tuple(row["prompt"]),
                SamplingParams(max_tokens=row["output_tokens"], ignore_eos=True),
            ),
        )
        for row in pq.read_table(path).to_pylist()
    ]

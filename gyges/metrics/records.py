"""What a run records: one record per request, samples of each instance over time, and transformations.

Every time is seconds from the run's start; lengths are tokens; KV sizes are blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from struct import pack
from typing import Literal

Status = Literal["completed", "failed", "rejected", "partial"]
STATUSES: tuple[Status, ...] = ("completed", "failed", "rejected", "partial")


@dataclass(slots=True)
class RequestRecord:
    """One offered request, from its scheduled arrival to its end.

    scheduled_s: when the trace (or arrival process) wanted it sent.   sent_s: when the client sent it; None: never.
    first_scheduled_s: when any of it was first put in a batch.
    token_times: when the engine had each output token; empty where only deliveries can be seen.
    chunk_times: when each delivery reached the client; one delivery may hold several tokens.
    output_tokens: generated.   target_output_tokens: wanted (the trace's output length, or max_tokens).
    status: "partial" means that the run ended before the request did.   reason: why it failed or was rejected.
    tokens_digest: of the output's token ids (:class:`TokensHasher`), so that two runs can be compared; None: no token,
    or not recorded.
    """

    request_id: str
    scheduled_s: float
    sent_s: float | None = None
    first_scheduled_s: float | None = None
    token_times: list[float] = field(default_factory=list)
    chunk_times: list[float] = field(default_factory=list)
    end_s: float | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0
    target_output_tokens: int = 0
    status: Status = "partial"
    reason: str | None = None
    instance: str | None = None
    preemptions: int = 0
    tokens_digest: str | None = None

    @property
    def first_token_s(self) -> float | None:
        """When the first output token existed; where token times are unknown, when the first delivery arrived."""
        if len(self.token_times):
            return self.token_times[0]
        return self.chunk_times[0] if len(self.chunk_times) else None

    @property
    def last_seen_s(self) -> float:
        """The end, or for a request that never ended the last moment it was heard of."""
        if self.end_s is not None:
            return self.end_s
        seen = [self.scheduled_s]
        seen += [moment for moment in (self.sent_s, self.first_scheduled_s) if moment is not None]
        seen += [times[-1] for times in (self.token_times, self.chunk_times) if len(times)]
        return max(seen)


@dataclass(slots=True)
class TimelineSample:
    """One instance at one moment. An instance is over once a sample of another instance names one of its devices.

    output_tokens, prompt_tokens (computed, not merely received) and preemptions are cumulative over an instance's life.
    tp 0: no instance has these devices at the moment, because a worker died.
    """

    t_s: float
    instance: str
    devices: tuple[int, ...]
    tp: int
    running: int
    waiting: int
    kv_used_blocks: int
    kv_total_blocks: int
    output_tokens: int = 0
    prompt_tokens: int = 0
    preemptions: int = 0

    @property
    def kv_use(self) -> float:
        """Fraction of KV blocks in use, 0 to 1. Each device of the instance holds its shard of the same blocks."""
        return self.kv_used_blocks / self.kv_total_blocks if self.kv_total_blocks else 0.0


@dataclass(slots=True)
class TransformationEvent:
    """One merge or split on ``devices``.

    start_s: when the instances concerned had finished their steps; asked_s: when it was wanted; None: not recorded.
    bytes_moved: between devices.   pause_s: longest time that any running request stood still for it.
    cause: why the policy (or the person) wanted it.   before, after: TP degrees of the instances on these devices.
    overlap: whether serving went on between its parts; stopped: why it then came to a stop all the same.
    extra_bytes: device memory beyond the larger of before and after, on the device that needed most; None: not recorded.
    steps, tokens: computed on these devices meanwhile.   error: set if it broke and was not carried out.
    """

    kind: Literal["merge", "split"]
    devices: tuple[int, ...]
    start_s: float
    end_s: float
    bytes_moved: int = 0
    pause_s: float = 0.0
    cause: str = ""
    asked_s: float | None = None
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    overlap: bool = True
    stopped: str = ""
    steps: int = 0
    tokens: int = 0
    error: str = ""
    extra_bytes: int | None = None


class TokensHasher:
    """Digests token ids as they come: 128 bits of BLAKE2b over them as little-endian int32, in hex."""

    def __init__(self) -> None:
        self._hash = blake2b(digest_size=16)

    def update(self, token_ids: Sequence[int]) -> None:
        self._hash.update(pack(f"<{len(token_ids)}i", *token_ids))

    def hexdigest(self) -> str:
        return self._hash.hexdigest()

"""Shared nouns. This module imports no sibling except errors; everything else may import it. No torch here.

Times are seconds on one monotonic clock (``time.monotonic``) unless a name says otherwise; lengths are tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from gyges.errors import UserError


class FinishReason(StrEnum):
    """Why a request ended. Every submitted request ends exactly once, with one of these."""

    STOP = "stop"  # an end-of-sequence or stop token
    LENGTH = "length"  # max_tokens reached
    REJECTED = "rejected"  # could never fit; ``RequestOutput.error`` says what it would have needed
    FAILED = "failed"  # the engine lost it (a worker died, say)
    ABORTED = "aborted"  # the caller withdrew it


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen and when a request stops.

    temperature: 0 is greedy. Otherwise logits are divided by it before the softmax.
    top_k: keep the k most probable tokens; 0 keeps all. top_p: keep the smallest set whose probability reaches p.
    seed: with temperature > 0, token i of a request is a pure function of (seed, i, its logits), so it does not depend
    on what else is in the batch or on the TP degree. None draws a seed from the request's id.
    stop_token_ids: stop after one of these (it is part of the output), besides the model's end-of-sequence ids.
    ignore_eos: neither stop; run to ``max_tokens`` (what replays use to reproduce a trace's output length).
    """

    max_tokens: int = 16
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UserError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if not self.temperature >= 0:
            raise UserError(f"temperature must be 0 (greedy) or positive, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.top_k < 0:
            raise UserError(f"top_k must be 0 (off) or positive, got {self.top_k}")


@dataclass(frozen=True, slots=True)
class Request:
    """One request as a caller hands it in. ``prompt`` holds token ids; ``request_id`` is unique within an engine."""

    request_id: str
    prompt: tuple[int, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)

    def __post_init__(self) -> None:
        if not self.prompt:
            raise UserError(f"request {self.request_id!r} has an empty prompt; give at least one token")

    @property
    def max_length(self) -> int:
        """Tokens in the KV cache at the very end: the last sampled token is never written."""
        return len(self.prompt) + self.sampling.max_tokens - 1


@dataclass(slots=True)
class RequestOutput:
    """What the engine says of a request: either news while it runs, or, with ``finish_reason`` set, its end.

    ``token_ids`` are the tokens since the previous output of this request (streaming) or all of them
    (``Engine.generate``); ``token_times`` are when the controller had each of them, monotonic seconds.
    """

    request_id: str
    token_ids: list[int]
    token_times: list[float]
    finish_reason: FinishReason | None = None
    error: str | None = None
    # Set on the last output only:
    prompt_tokens: int = 0
    submitted_s: float | None = None  # when the engine took it
    scheduled_s: float | None = None  # when its first token was first put in a batch
    finished_s: float | None = None
    instance: str | None = None  # the instance that ended it
    preemptions: int = 0

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None


@dataclass(frozen=True, slots=True)
class ModelGeometry:
    """The sizes of a dense decoder, all that planners, layouts and cost models need. Lengths in elements.

    ``item_size`` is bytes per element of weights and KV (4: fp32, 2: bf16).
    """

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    item_size: int
    tied_embeddings: bool

    @property
    def kv_bytes_per_token(self) -> int:
        """K and V of one token over all layers and KV heads, in bytes."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * self.item_size

    def valid_tp_degrees(self, up_to: int) -> list[int]:
        """Degrees d <= up_to that divide the query heads and FFN rows, and divide or are divided by the KV heads."""
        return [d for d in range(1, up_to + 1) if self.tp_degree_error(d) is None]

    def tp_degree_error(self, degree: int) -> str | None:
        """Why ``degree`` is impossible for this model, or None if it is possible."""
        if degree < 1:
            return "a TP degree is at least 1"
        if self.num_heads % degree:
            return f"{self.num_heads} query heads are not divisible by {degree}"
        if self.num_kv_heads % degree and degree % self.num_kv_heads:
            return f"{self.num_kv_heads} KV heads can neither be divided nor replicated evenly over {degree} workers"
        if self.intermediate_size % degree:
            return f"{self.intermediate_size} FFN rows are not divisible by {degree}"
        return None

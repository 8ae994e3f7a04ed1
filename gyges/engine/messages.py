"""Everything that crosses between controller and workers: small, typed, diffs instead of state. Tensors never do.

Controller -> worker: Setup once, then Step messages, then Stop.   Worker -> controller: Ready once, then StepDone (rank 0
only), or Failed from anyone. Encoded as MessagePack arrays, tagged by type; token ids travel as int32 bytes.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np


class Message(msgspec.Struct, array_like=True, tag=True, frozen=True):
    """Base of all messages."""


class Setup(Message):
    """What a worker is: its place in the host, the model, its pages, its KV blocks. All a worker ever needs to start."""

    worker: int
    engine: dict[str, Any]  # EngineConfig.to_dict()
    hf_config: dict[str, Any]
    source: dict[str, Any]  # SourceSpec's fields
    dtype: str
    members: tuple[int, ...]  # workers of its instance, in rank order
    groups: tuple[int, int]  # block groups to map: first, end
    max_positions: int
    arena_fd: int  # -1: a group of one
    arena_bytes: int


class NewSequence(Message):
    """A request joins the batch (again, after a preemption). ``tokens``: all known ones, int32 little-endian bytes."""

    slot: int
    tokens: bytes
    prompt_tokens: int
    max_length: int
    blocks: list[int]
    temperature: float
    top_p: float
    top_k: int
    seed: int


class Step(Message):
    """One step. ``rows``: (slot, start, count, samples). ``sampled``: (slot, position, token) of the last step, for ranks > 0."""

    step: int
    rows: list[tuple[int, int, int, bool]]
    new: list[NewSequence] = []
    extended: list[tuple[int, list[int]]] = []
    dropped: list[int] = []
    sampled: list[tuple[int, int, int]] = []


class Stop(Message):
    """Leave in good order."""


class Ready(Message):
    """The worker has its pages and its weights. Page counts, bytes, seconds."""

    worker: int
    weight_pages: int
    kv_pages: int
    free_pages: int
    load_s: float
    rss_bytes: int


class StepDone(Message):
    """Sampled tokens in row order, and the seconds that the step took on rank 0."""

    step: int
    tokens: list[int]
    compute_s: float


class Failed(Message):
    """The worker cannot go on; it exits after this."""

    error: str


ToWorker = Setup | Step | Stop
FromWorker = Ready | StepDone | Failed

encode = msgspec.msgpack.Encoder().encode
decode_to_worker = msgspec.msgpack.Decoder(ToWorker).decode
decode_from_worker = msgspec.msgpack.Decoder(FromWorker).decode


def pack_tokens(tokens: list[int] | tuple[int, ...]) -> bytes:
    return np.asarray(tokens, dtype="<i4").tobytes()


def unpack_tokens(data: bytes) -> np.ndarray:
    return np.frombuffer(data, dtype="<i4").astype(np.int64)

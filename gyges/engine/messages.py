"""Everything that crosses between controller and workers: small, typed, diffs instead of state. Tensors never do.

Controller -> worker: Setup once, Peers once where instances may transform, then Step and Transform, then Stop; Park and Reset
where an instance broke.   Worker -> controller: Ready after Setup and Reset, StepDone (rank 0 only), Transformed (everyone),
Parked, or Failed from anyone. Encoded as MessagePack arrays, tagged by type; token ids travel as int32 bytes.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from gyges.transform.ops import AnyOp


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
    max_positions: int
    arena_fd: int  # -1: a group of one
    arena_bytes: int
    store_fd: int = -1  # an empty memfd that all workers have, where process groups find each other


class Peers(Message):
    """Descriptors of these workers' pages follow on the socket, so many for each."""

    workers: tuple[int, ...]
    each: int


class NewSequence(Message):
    """A request joins the batch (again, after a preemption). ``tokens``: those from position ``first`` on that are known,
    int32 little-endian bytes.   narrow: while a transformation runs, the narrow instance that the request belongs to.
    switched: it is attended to from the back."""

    slot: int
    first: int
    tokens: bytes
    prompt_tokens: int
    max_length: int
    blocks: list[int]
    temperature: float
    top_p: float
    top_k: int
    seed: int
    narrow: int = -1
    switched: bool = False


class Step(Message):
    """One step. ``rows``: (slot, start, count, samples). ``sampled``: (slot, position, token) of the last step, for ranks > 0.
    ``joined``: at a Join, sequences that others have and all need. Done in this order: dropped, ops, preempted, late, new,
    extended. Without rows, the workers only wait for each other."""

    step: int
    rows: list[tuple[int, int, int, bool]]
    new: list[NewSequence] = []
    extended: list[tuple[int, list[int]]] = []
    dropped: list[int] = []
    sampled: list[tuple[int, int, int]] = []
    ops: list[AnyOp] = []
    joined: list[NewSequence] = []
    preempted: list[int] = []
    late: list[AnyOp] = []


class Transform(Message):
    """Operations between steps; every worker answers with Transformed. ``new``: sequences that others have and all need;
    ``dropped`` and ``sampled`` as in Step."""

    ops: list[AnyOp]
    new: list[NewSequence] = []
    dropped: list[int] = []
    sampled: list[tuple[int, int, int]] = []


class Park(Message):
    """Whatever was going on is over; answer with Parked, then wait for Reset. ``recovery`` is repeated in all answers."""

    recovery: int


class Reset(Message):
    """Start again as a member of ``members``, with an empty KV cache and FFN weights from the source; answer with Ready."""

    recovery: int
    members: tuple[int, ...]


class Stop(Message):
    """Leave in good order."""


class Ready(Message):
    """The worker has its pages and its weights. Page counts, bytes, seconds. Where instances may transform, the
    descriptors of its pages follow on the socket the first time."""

    worker: int
    weight_pages: int
    free_pages: int
    load_s: float
    rss_bytes: int
    recovery: int = 0


class StepDone(Message):
    """Sampled tokens in row order, and the seconds that the step took on rank 0."""

    step: int
    tokens: list[int]
    compute_s: float


class Transformed(Message):
    """A Transform message is carried out. ``spent``: gyges.transform.device.Spent's fields, since the Join."""

    worker: int
    spent: dict[str, float]


class Parked(Message):
    """The worker is in no collective and computes nothing."""

    worker: int
    recovery: int


class Failed(Message):
    """The worker cannot go on; it exits after this. ``user``: the error is meant for the person at the terminal, as it stands."""

    error: str
    user: bool = False


ToWorker = Setup | Peers | Step | Transform | Park | Reset | Stop
FromWorker = Ready | StepDone | Transformed | Parked | Failed

encode = msgspec.msgpack.Encoder().encode
decode_to_worker = msgspec.msgpack.Decoder(ToWorker).decode
decode_from_worker = msgspec.msgpack.Decoder(FromWorker).decode


def pack_tokens(tokens: list[int] | tuple[int, ...]) -> bytes:
    return np.asarray(tokens, dtype="<i4").tobytes()


def unpack_tokens(data: bytes) -> np.ndarray:
    return np.frombuffer(data, dtype="<i4").astype(np.int64)
